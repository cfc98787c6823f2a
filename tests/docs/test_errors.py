"""Errors: each has a stable code, wherever it is raised, and keeps it on its way to another process."""

from __future__ import annotations

import ast
import errno
import importlib
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm import errors
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, Problem
from nnunet_fm.errors import FMError, WriteError, code_of, one_line
from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.planfile.schema import PlanError

REPOSITORY = Path(__file__).parents[2]
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
INNER = re.compile(r"\w+\.code|problems\[0\]\.code|code")
"""What stands for the code of an error that is put into another."""


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


def test_every_error_has_a_code() -> None:
    classes = error_classes()
    found = 0
    for place, name, call in calls():
        given = [k.value for k in call.keywords if k.arg == "code"]
        if name == "Problem":
            given += call.args[3:]
            if any(k.arg is None for k in call.keywords):  # one that was written to a file
                continue
        if not given:
            assert name != "Problem" and classes[name].code != FMError.code, place
            continue
        (code,) = given
        if isinstance(code, ast.Call) and ast.unparse(code.func) == "code_of":
            code = code.args[1]
        if not isinstance(code, ast.Constant):
            assert INNER.fullmatch(ast.unparse(code)), place
            continue
        assert isinstance(code.value, str) and CODE.fullmatch(code.value), place
        found += 1
    assert found > 400
    for kind in classes.values():
        assert kind is FMError or kind.code == FMError.code or CODE.fullmatch(kind.code), kind


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
