"""Files of a record: JSON, one per subject, without what differs from run to run; and how two of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ABSENT = "(absent)"
Subjects = Iterator[tuple[str, Any]]
"""Name of a file, ``part/subject``, and its content."""
Wanted = Callable[[str], bool]
"""Whether a subject is asked for; others are made where these need them."""


@dataclass(frozen=True)
class Difference:
    """A value that two records do not share."""

    file: str
    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before, after = (
            value if value is ABSENT else json.dumps(value, ensure_ascii=False) for value in (self.before, self.after)
        )
        return f"{self.file}: {self.key or '(all)'}\n  before  {before}\n  after   {after}"


def plain(content: Any, root: Path | None = None) -> Any:
    """Content as JSON gives it back; paths in the folder ``root`` start with ``ROOT``."""
    text = json.dumps(content, ensure_ascii=False)
    if root is not None:
        text = text.replace(str(root), "ROOT")
    return json.loads(text)


def flat(content: Any, key: str = "") -> dict[str, Any]:
    """Every value by the way to it; lists of numbers are values, others have a key for each item."""
    if isinstance(content, Mapping):
        items = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list) and any(isinstance(item, (str, list, dict)) for item in content):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        return {key: content}
    values: dict[str, Any] = {} if items else {key: content}
    for name, value in items:
        values |= flat(value, f"{key} > {name}" if key else name)
    return values


def against_first(cases: Mapping[str, Any]) -> dict[str, Any]:
    """The first case as it is, and of each other one only the values that differ from it, if that is shorter."""
    first = next(iter(cases))
    base, short = flat(cases[first]), {first: cases[first]}
    for case, content in cases.items():
        if case != first:
            values = flat(content)
            lost = {key: ABSENT for key in base if key not in values}
            changed = {key: v for key, v in values.items() if key not in base or not _equal(base[key], v)} | lost
            short[case] = min(changed, content, key=lambda written: len(json.dumps(written)))
    return short


def write(folder: Path, subject: str, content: Any) -> None:
    """Write the file of a subject."""
    file = folder / f"{subject}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    file.write_text(_lists_in_a_line(text) + "\n", encoding="utf-8")


def _lists_in_a_line(text: str) -> str:
    """JSON whose lists of numbers take one line each."""
    lines: list[str] = []
    opened: list[str] | None = None
    for line in text.split("\n"):
        word = line.strip()
        if opened is not None and (word[:1] in "-0123456789" or word.startswith(("NaN", "Infinity", "null"))):
            opened.append(word)
        elif opened is not None and word.startswith("]"):
            lines.append(opened[0] + " ".join(opened[1:]) + word)
            opened = None
        else:
            if opened is not None:
                lines += opened
            opened = [line] if word.endswith("[") else None
            if opened is None:
                lines.append(line)
    return "\n".join(lines)


def read(folder: Path) -> dict[str, Any]:
    """Content of every file of a record, by subject."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no record: make one with `python -m tests.golden write {folder}`")
    return {file.relative_to(folder).with_suffix("").as_posix(): json.loads(file.read_text("utf-8")) for file in files}


def renamed(content: Any, names: Mapping[str, str]) -> Any:
    """Content with every old name replaced by the new one, in keys and values; longer names come first."""
    text = json.dumps(content, ensure_ascii=False)
    for old in sorted(names, key=len, reverse=True):
        text = text.replace(old, names[old])
    return json.loads(text)


def differences(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    tolerance: float = 0.0,
    ignore: Sequence[str] = (),
) -> list[Difference]:
    """Every value of the subjects in ``after`` that differs.

    Args:
        tolerance: relative, of numbers that are not whole.
        ignore: patterns of ``subject: key`` that are not compared.
    """
    found = []
    for subject, content in after.items():
        if subject not in before:
            found.append(Difference(subject, "", ABSENT, "(a file that the record does not have)"))
            continue
        old, new = flat(before[subject]), flat(content)
        for key in dict.fromkeys([*old, *new]):
            one, two = old.get(key, ABSENT), new.get(key, ABSENT)
            if not _equal(one, two, tolerance) and not any(fnmatchcase(f"{subject}: {key}", p) for p in ignore):
                found.append(Difference(subject, key, one, two))
    return found


def _equal(one: Any, two: Any, tolerance: float = 0.0) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(_equal(a, b, tolerance) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and isinstance(two, float):
        both_undefined = math.isnan(one) and math.isnan(two)
        return both_undefined or one == two or math.isclose(one, two, rel_tol=tolerance, abs_tol=tolerance / 1000)
    return type(one) is type(two) and bool(one == two)
