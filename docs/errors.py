"""All errors of this package, gathered from its source: code, messages, part. ``python docs/errors.py`` prints them."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "nnunet_fm"
PLACEHOLDER = "…"
"""What stands for all that a message puts in."""
PARTS = {
    "dataset_conversion": "Converting datasets",
    "plans": "Planning",
    "preprocessing": "Raw datasets and preprocessing",
    "planfile": "Plan files and trained folders",
    "models": "Names and cards",
    "weights": "Official weights and checkpoints",
    "networks": "Networks",
    "backbones": "Backbones",
    "heads": "Decode heads",
    "adapters": "Adapters",
    "data": "Data",
    "trainers": "Training",
    "losses": "Losses",
    "adaptation": "Adaptation",
    "inference": "Predicting",
    "metrics": "Evaluation",
    "reporting": "Reports",
    "records": "Records",
    "studies": "Studies",
    "cli": "Flags",
    "hook": "The hook",
    "io": "Files",
    "cpu": "Limits of the machine",
    "host": "The version of nnU-Net",
    "moved": "Former paths",
    "insides": "Insides of other packages",
    "checks": "Checks of the machine",
    "published_quirks": "Quirks of published code",
}
"""Folder or module of the package -> heading."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Error(NamedTuple):
    """A place of the source that makes an error.

    Attributes:
        code: of the error.
        message: as it stands in the source, with ``…`` for what is put in; empty where it is another error's.
        part: heading of its part of the package.
    """

    code: str
    message: str
    part: str


@cache
def errors() -> tuple[Error, ...]:
    """All errors of the package, each once, in the order of `PARTS` and of the source."""
    source = _Source()
    found = [error for file in source.trees for error in source.errors_in(file)]
    return tuple(dict.fromkeys(sorted(found, key=lambda error: list(PARTS.values()).index(error.part))))


def messages(code: str) -> list[str]:
    """Messages of a code, without repetition."""
    return list(dict.fromkeys(error.message for error in errors() if error.code == code and error.message))


def codes() -> list[str]:
    """All codes, sorted."""
    return sorted({error.code for error in errors()})


HEADING = re.compile(r"^### ((?:[a-z0-9]+-)+[a-z0-9]+)$", re.MULTILINE)
"""A heading of a page that is a code."""


def with_messages(page: str) -> str:
    """A page in Markdown with the messages of each code below its heading."""
    return HEADING.sub(
        lambda found: "\n".join([found[0], "", *(f"> {escaped(m)}\n" for m in messages(found[1]))]), page
    )


def as_list(explained: Collection[str]) -> str:
    """All errors by part of the package, one line for each message; each code is the anchor of one line or heading.

    Args:
        explained: codes that have a heading on the same page.
    """
    lines, anchored = [], set(explained)
    for part in dict.fromkeys(error.part for error in errors()):
        lines += [f"### {part}", ""]
        for code in sorted({error.code for error in errors() if error.part == part}):
            texts = [error.message for error in errors() if (error.part, error.code) == (part, code) and error.message]
            for text in texts or ["words of what has failed"]:
                shown = f"[`{code}`](#{code})" if code in anchored else f"`{code}`{{ #{code} }}"
                anchored.add(code)
                lines.append(f"* {shown}: {escaped(text)}")
        lines.append("")
    return "\n".join(lines)


class _Source:
    """The parsed package."""

    def __init__(self) -> None:
        self.trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree)]
        self.functions = {node.name: node for node in nodes if isinstance(node, Function)}
        self.codes = {
            node.name: code for node in nodes if isinstance(node, ast.ClassDef) and (code := _class_code(node))
        }

    def errors_in(self, file: Path) -> Iterator[Error]:
        """Errors that a module makes, in its order."""
        part = PARTS.get(file.relative_to(PACKAGE).parts[0].removesuffix(".py"))
        for call, scope in _calls(self.trees[file], self.trees[file]) if part else ():
            code = self._code(call, scope)
            if code is None:
                continue
            assert part is not None
            texts = [text for text in self._texts(_message(call), scope) if text.strip(f"{PLACEHOLDER}: ")]
            prefix = f"{PLACEHOLDER}: " if _is_problem(call) else ""
            for text in texts or [""]:
                yield Error(code, f"{prefix}{text}" if text else "", part)

    def _code(self, call: ast.Call, scope: ast.AST) -> str | None:
        """The code of the error that a call makes; None for other calls, and for errors that take over another's."""
        if isinstance(scope, ast.ClassDef) and ast.unparse(call.func) == "super().__init__":
            return self.codes.get(scope.name)
        given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
        if _name(call) == "Problem":
            given += call.args[3:]
        if not given:
            return self.codes.get(_name(call))
        code = given[0]
        if isinstance(code, ast.Call) and _name(code) == "code_of":
            code = code.args[1]
        return code.value if isinstance(code, ast.Constant) and isinstance(code.value, str) else None

    def _texts(self, node: ast.expr | None, scope: ast.AST, depth: int = 4) -> Iterator[str]:
        """The texts that an expression may be: of a variable, those put into it; of a call, those returned."""
        if isinstance(node, ast.JoinedStr) and (ends := list(self._ends(node.values[-1], scope, depth))):
            head = template(ast.JoinedStr(node.values[:-1]))
            yield from (_without_repetition(head + end) for end in ends)
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            yield template(node)
        elif isinstance(node, ast.IfExp | ast.BoolOp):
            for choice in [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values:
                yield from self._texts(choice, scope, depth)
        elif isinstance(node, ast.Name) and depth > 0:
            for value in _values(node, scope):
                yield from self._texts(value, scope, depth - 1)
        elif isinstance(node, ast.Call) and depth > 0 and (function := self.functions.get(_name(node))):
            for inner in ast.walk(function):
                if isinstance(inner, ast.Return):
                    yield from self._texts(inner.value, function, depth - 1)

    def _ends(self, node: ast.expr, scope: ast.AST, depth: int) -> Iterator[str]:
        """The texts of a variable that a message ends in."""
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
            yield from self._texts(node.value, scope, depth - 1)


def _class_code(node: ast.ClassDef) -> str | None:
    for line in node.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code":
            return str(ast.literal_eval(line.value))
    return None


def _calls(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """All calls, each with the function that it stands in; for ``__init__`` its class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child, scope
        inner = child if isinstance(child, Function | ast.ClassDef) else scope
        if isinstance(child, Function) and child.name == "__init__":
            inner = scope
        yield from _calls(child, inner)


def _values(variable: ast.Name, scope: ast.AST) -> list[ast.expr]:
    """What is put into a variable of a function: in the condition just before it is used, or by any statement."""
    nodes = list(ast.walk(scope))
    tested = [node for node in nodes if isinstance(node, ast.NamedExpr) and node.target.id == variable.id]
    before = [node for node in tested if node.lineno <= variable.lineno]
    if before:
        return [max(before, key=lambda node: node.lineno).value]
    assigned = [node for node in nodes if isinstance(node, ast.Assign)]
    return [node.value for node in assigned if variable.id in [ast.unparse(target) for target in node.targets]]


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_problem(call: ast.Call) -> bool:
    """Whether the message is a file and the rule that it is against."""
    return _name(call) in ("Invalid", "Problem")


def _message(call: ast.Call) -> ast.expr | None:
    second = _is_problem(call) or (_name(call) == "WriteError" and len(call.args) > 1)  # after a file, or a number
    arguments = call.args[second:]
    return arguments[0] if arguments else None


def template(node: ast.expr) -> str:
    """A text as it stands in the source, with ``…`` for all that is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else PLACEHOLDER
    if isinstance(node, ast.JoinedStr):
        text = "".join(template(part) for part in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = template(node.left) + template(node.right)
    else:
        text = PLACEHOLDER
    return _without_repetition(text)


def _without_repetition(text: str) -> str:
    return re.sub(rf"{PLACEHOLDER}(\s*{PLACEHOLDER})+", PLACEHOLDER, text)


def escaped(text: str) -> str:
    """Markdown that shows the text as it is; code stays code."""
    parts = " ".join(text.split()).split("`")
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([\\*_>\[\]#|])", r"\\\1", parts[number]).replace("<", "&lt;")
    return "`".join(parts)


if __name__ == "__main__":
    for name in codes():
        print(name, *messages(name), sep="\n    ")
