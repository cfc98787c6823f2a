"""The tables of the reliability page, gathered from the source of `tests/faults`: nothing is broken to write them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "faults"


class Row(NamedTuple):
    """What the page says of a fault: the arguments of its decorator (`tests.faults.registry.Fault`)."""

    stage: str
    broken: str
    happens: str
    keeps: str
    code: str = ""
    case: str = ""
    says: str = ""


def rows() -> list[Row]:
    """All faults, by stage and then in the order of the source."""
    found = [row for file in sorted(FOLDER.glob("*.py")) for row in _faults_in(file)]
    return sorted(found, key=lambda row: stages().index(row.stage))


def stages() -> tuple[str, ...]:
    """Stages of work, in the order of the page."""
    return tuple(_constants(FOLDER / "registry.py")["STAGES"])


def _constants(file: Path) -> dict[str, Sequence[str]]:
    """Names of a module that stand for text, or for several."""
    lines = ast.parse(file.read_text(encoding="utf-8")).body
    texts = [
        node for node in lines if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Tuple)
    ]
    simple = [node for node in texts if all(isinstance(n, ast.Constant) for n in getattr(node.value, "elts", ()))]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in simple}


def _faults_in(file: Path) -> Iterator[Row]:
    constants = _constants(file)
    for function in ast.parse(file.read_text(encoding="utf-8")).body:
        for call in function.decorator_list if isinstance(function, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "fault":
                named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg in Row._fields}
                yield Row(str(constants["STAGE"]), ast.literal_eval(call.args[1]), **named)


def as_tables(messages: Callable[[str], Sequence[str]]) -> str:
    """A table for each stage.

    Args:
        messages: those of a code.
    """
    parts = []
    for stage in stages():
        parts += [f"## {stage}", "", "| fault | what happens | what is kept | message |", "|---|---|---|---|"]
        for row in rows():
            if row.stage == stage:
                cells = [cell.replace("|", r"\|") for cell in (row.broken, row.happens, row.keeps)]
                parts.append(f"| {' | '.join((*cells, _message(row, messages)))} |")
        parts.append("")
    return "\n".join(parts)


def _message(row: Row, messages: Callable[[str], Sequence[str]]) -> str:
    """The code, which leads to its messages, and the words where there is one message alone."""
    codes = " ".join(f"[`{code}`](troubleshooting.md#{code})" for code in (row.code, row.case) if code)
    texts = [f"`{row.says}`"] if row.says else messages(row.case or row.code)
    return "<br>".join(filter(None, (codes, *(texts if len(texts) == 1 else ()))))
