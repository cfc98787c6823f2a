"""The table of insides of other packages: complete, true of what is installed, and the only way to replace a name."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import nnunet_fm
from nnunet_fm import insides
from nnunet_fm.insides import CHECKED, INSIDES, Inside, faults, replaced

PACKAGE = Path(nnunet_fm.__file__).parent
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
PUBLIC = {"_exit", "_replace"}
"""Documented names that start with an underscore: of ``os`` and of named tuples."""
NOT_RELIED_ON = ("typing", "enum", "abc", "pydantic")
"""Modules whose own machinery puts private names into classes."""
MACHINERY = {"_abc_impl", "_backward_cls"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def of_file(file: str) -> list[Inside]:
    return [inside for inside in INSIDES if any(file == f or file.startswith(f"{f}/") for f in inside.files)]


def listed(file: str) -> set[str]:
    return {inside.attribute for inside in of_file(file)}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """File and node, of all files."""
    return [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)]


def own_names() -> set[str]:
    """Names that this package defines or assigns."""
    names = set()
    for _, node in nodes():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def test_insides_are_as_they_were_checked() -> None:
    assert faults() == []


@pytest.mark.parametrize("inside", INSIDES, ids=lambda inside: inside.name)
def test_entries_are_true_of_this_package(inside: Inside) -> None:
    assert inside.package in CHECKED
    assert inside.why.endswith(".")
    word = re.compile(rf"\b{inside.attribute if inside.attribute != '__init__' else '__dict__'}\b")
    for file in inside.files:
        paths = [PACKAGE / file] if file.endswith(".py") else (PACKAGE / file).rglob("*.py")
        assert any(word.search(path.read_text(encoding="utf-8")) for path in paths), (
            f"{file} no longer names {inside.attribute}"
        )


def test_no_file_uses_mock() -> None:
    assert [
        file
        for file, node in nodes()
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unittest")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "unittest" for alias in node.names))
    ] == []


def test_private_names_of_others_are_listed() -> None:
    ours, missing = own_names(), set()
    for file, node in nodes():
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in ours | PUBLIC | listed(file):
            missing.add((file, ast.unparse(node)))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("nnunet_fm"):
            hidden = any(private(part) for part in (node.module or "").split("."))
            missing |= {
                (file, f"{node.module}.{alias.name}")
                for alias in node.names
                if (hidden or private(alias.name)) and alias.name not in listed(file)
            }
    assert missing == set()


def test_overridden_private_methods_are_listed() -> None:
    missing = set()
    for found in pkgutil.walk_packages(nnunet_fm.__path__, "nnunet_fm."):
        if ".ext" in found.name:
            continue
        module = importlib.import_module(found.name)
        file = Path(str(module.__file__)).relative_to(PACKAGE).as_posix()
        for own in vars(module).values():
            if isinstance(own, type) and own.__module__ == module.__name__:
                foreign = [base for base in own.__mro__[1:] if base.__module__.split(".")[0] != "nnunet_fm"]
                foreign = [base for base in foreign if base.__module__.split(".")[0] not in NOT_RELIED_ON]
                missing |= {
                    (file, f"{own.__name__}.{name}")
                    for name in vars(own)
                    if private(name) and name not in MACHINERY | listed(file)
                    if any(name in vars(base) for base in foreign)
                }
    assert missing == set()


def test_changes_in_place_are_listed() -> None:
    """Classes, functions and modules that are put in the place of others."""
    missing = set()
    for file, tree in TREES.items():
        nodes = list(ast.walk(tree))
        names, uses = listed(file), {inside.use for inside in of_file(file)}
        functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        for node in nodes:
            if isinstance(node, ast.Assign):
                others = [t for t in node.targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) != "self"]
                targets = {target.attr for target in others}
                is_function = isinstance(node.value, ast.Name) and node.value.id in functions
                allowed = ("class changed" in uses or "__class__" not in targets) and (
                    targets <= names or not is_function
                )
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
                updated = ast.unparse(node.func.value)
                allowed = (updated != "sys.modules" or "modules" in names) and (
                    not updated.endswith("__dict__") or "__init__" in names
                )
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "replaced":
                name = node.args[1]
                allowed = isinstance(name, ast.Constant) and name.value in names and "replaced" in uses
            else:
                continue
            if not allowed:
                missing.add((file, ast.unparse(node)))
    assert missing == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "torch.nn:Conv3d._gone", "reader": None}, "is gone"),
        ({"name": "torch.gone:conv", "reader": None}, "is gone"),
        ({"parameters": "self, input"}, r"has the parameters \(self, input, weight, bias\), not \(self, input\)"),
        ({"reader": "torch.nn:Conv3d.__repr__"}, "is no longer named by"),
        ({"reader": "torch.nn:Conv3d.gone"}, "which is gone"),
        ({"source": "0" * 12}, "has another source"),
    ],
)
def test_what_changed_is_named(change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = next(inside for inside in INSIDES if inside.name == "torch.nn:Conv3d._conv_forward")
    monkeypatch.setattr(insides, "INSIDES", (replace(stock, **change),))
    (fault,) = faults()
    assert re.search(message, fault)
    assert "cpu/channels_last.py" in fault
    assert CHECKED["torch"] in fault


class Parent:
    @classmethod
    def name(cls) -> str:
        return cls.__name__


class Child(Parent):
    pass


@pytest.mark.parametrize("holder", [Parent, Child])
def test_a_replaced_name_comes_back(holder: type[Parent]) -> None:
    before = dict(vars(holder))
    with pytest.raises(ZeroDivisionError), replaced(holder, "name", lambda: "other"):
        assert holder.name() == "other"
        raise ZeroDivisionError
    assert dict(vars(holder)) == before
    assert Child.name() == "Child"


def test_an_unknown_name_is_not_replaced() -> None:
    with pytest.raises(AttributeError, match="gone"), replaced(nn, "gone", None):
        pass
    assert not hasattr(nn, "gone")


def test_one_thread_replaces_at_a_time() -> None:
    holder = SimpleNamespace(name="stock", other="stock")
    ready, seen = threading.Event(), []

    def second() -> None:
        ready.set()
        with replaced(holder, "name", "second"):
            seen.append(holder.name)

    thread = threading.Thread(target=second)
    with replaced(holder, "name", "first"), replaced(holder, "other", "first"):
        thread.start()
        ready.wait()
        assert not thread.join(0.05)
        assert holder.name == holder.other == "first"
        assert seen == []
    thread.join()
    assert (seen, holder.name, holder.other) == (["second"], "stock", "stock")
