"""Errors: each has a stable code, wherever it is raised, and keeps it on its way to another process."""

from __future__ import annotations

import ast
import errno
import importlib
import pickle
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm import errors
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, Problem
from nnunet_fm.errors import FMError, WriteError, code_of, one_line
from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.planfile.schema import PlanError
from tests.helpers.site_programs import site_program

REPOSITORY = Path(__file__).parents[2]
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
INNER = re.compile(r"\w+\.code|problems\[0\]\.code|code")
"""What stands for the code of an error that is put into another."""


@cache
def error_classes() -> dict[str, type[FMError]]:
    """All error classes of the package by name."""
    for file in (REPOSITORY / "nnunet_fm").rglob("*.py"):
        if re.search(r"^class \w+\(.*Error.*\):", file.read_text(encoding="utf-8"), re.MULTILINE):
            importlib.import_module(".".join(file.relative_to(REPOSITORY).with_suffix("").parts))
    found, waiting = {FMError.__name__: FMError}, [FMError]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            if kind.__module__.startswith("nnunet_fm."):
                found[kind.__name__] = kind
                waiting.append(kind)
    return found


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File and line, name of the class, and call, for each place of the source that makes an error or a problem."""
    names = {*error_classes(), "Problem"} - {"FMError"}
    for file in sorted((REPOSITORY / "nnunet_fm").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{file.relative_to(REPOSITORY)}:{node.lineno}", node.func.id, node


def named(name: str, call: ast.Call) -> str | None:
    """The code that a call gives to an error; None where it takes over another error's, or gives none."""
    given = [k.value for k in call.keywords if k.arg == "code"] + (call.args[3:] if name == "Problem" else [])
    if not given:
        assert name == "Problem" or error_classes()[name].code != FMError.code
        return None
    (code,) = given
    if isinstance(code, ast.Call) and ast.unparse(code.func) == "code_of":
        code = code.args[1]
    if isinstance(code, ast.Constant):
        assert isinstance(code.value, str) and CODE.fullmatch(code.value)
        return code.value
    assert INNER.fullmatch(ast.unparse(code))
    return None


def test_every_error_has_a_code() -> None:
    for place, name, call in calls():
        try:
            code = named(name, call)
        except AssertionError:
            pytest.fail(f"{place}: {name} has no code")
        from_a_file = any(keyword.arg is None for keyword in call.keywords)
        assert name != "Problem" or code or from_a_file or len(call.args) == 4, place
    for kind in error_classes().values():
        assert kind.code == FMError.code or CODE.fullmatch(kind.code), kind


def test_commands_raise_no_error_without_a_code() -> None:
    for file in (REPOSITORY / "nnunet_fm" / "cli").rglob("*.py"):
        assert "BadParameter(" not in file.read_text(encoding="utf-8").replace("typer.BadParameter):", ""), file


def made(kind: type[FMError]) -> Any:
    """An error of a class, with a code of its own where the class lets it have one."""
    if kind is Invalid:
        return kind("file.nii", "is empty", code="image-empty")
    if kind is ConversionError:
        return kind("1 problem", [Problem("file.nii", "is empty", code="image-empty")], code="problems-found")
    if kind is UnknownNameError:
        return kind("stunet_m", ["stunet_s"], "look")
    if issubclass(kind, OSError):
        return kind(errno.ENOSPC, "no room", code="disk-full")
    error = kind.__new__(kind)
    FMError.__init__(error, "what is wrong", code="some-code")
    error.extra = {"further": "attributes"}  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("kind", error_classes().values(), ids=lambda kind: kind.__name__)
def test_errors_cross_the_border_of_a_process(kind: type[FMError]) -> None:
    error = made(kind)
    received = pickle.loads(pickle.dumps(error))
    assert type(received) is kind
    assert (str(received), received.code, vars(received)) == (str(error), error.code, vars(error))
    assert getattr(received, "errno", None) == getattr(error, "errno", None)


def test_one_line_ends_with_the_code() -> None:
    assert one_line(PlanError("two\n lines", code="plan-version")) == "two lines [plan-version]"
    assert one_line(KeyError()) == "KeyError"
    assert code_of(WriteError("x", code="disk-full"), "other-code") == "disk-full"
    assert code_of(ValueError("x"), "other-code") == "other-code"
    assert errors.FMError.code == "error"


def page() -> str:
    return (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def test_the_list_of_errors_has_every_code() -> None:
    made = {code for _, name, call in calls() if (code := named(name, call))}
    made |= {kind.code for kind in error_classes().values()} - {FMError.code}
    assert len(made) > 200
    module = site_program("errors")
    assert set(module.codes()) == made
    parts = [*(REPOSITORY / "nnunet_fm").glob("*.py"), *(REPOSITORY / "nnunet_fm").glob("*/__init__.py")]
    folders = {file.stem if file.name != "__init__.py" else file.parent.name for file in parts}
    assert folders - {"nnunet_fm", "errors"} <= set(module.PARTS), "a folder of the package has no heading"


def test_messages_are_gathered_as_they_read() -> None:
    module = site_program("errors")
    assert "… has trained models (…) and would change." in module.messages("plan-trained")[0]
    assert any("is being trained by …" in text for text in module.messages("fold-busy"))  # made by a function
    assert any("'file_ending' must be" in text for text in module.messages("dataset-json"))  # put in at the end
    assert any(text.startswith("…: the mask is empty") for text in module.messages("mask-empty"))
    assert any("is not a name" in text for text in module.messages("name-unknown"))  # of the class itself
    (tree,) = ast.parse("f'{a} has no {b}{c}: ' f'give one of {d}'").body
    assert module.template(tree.value) == "… has no …: give one of …"  # type: ignore[attr-defined]
    assert module.escaped("a_b `c_d <e>` * <f>") == r"a\_b `c_d <e>` \* &lt;f\>"


def test_headings_of_troubleshooting_are_codes_and_get_their_messages() -> None:
    module = site_program("errors")
    headings = module.HEADING.findall(page())
    assert len(headings) > 20
    assert set(headings) <= set(module.codes())
    assert re.findall("^### .*$", page(), re.MULTILINE) == [f"### {code}" for code in headings]
    built = module.with_messages(page()).replace("<!-- errors -->", module.as_list(headings))
    for code in module.codes():
        assert f"`{code}`" in built
    assert f"### plan-stock\n\n> {module.escaped(module.messages('plan-stock')[0])}" in built
