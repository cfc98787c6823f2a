"""Cases for training, validation and test: published lists, a user's file, seeded folds."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_fm.dataset_conversion.problems import ConversionError
from nnunet_fm.io.untrusted import read_json, read_text

FOLDS = 5
SEED = 12345
"""nnU-Net's own."""

PARTS = ("train", "val", "test")
Fold = dict[str, list[str]]


@dataclass(frozen=True)
class Split:
    """Names of cases; those in none of the three are left out of the dataset.

    Attributes:
        train: trained on in fold 0; without ``val``, in all seeded folds.
        val: validated on in fold 0.
        test: written to ``imagesTs``.
        folds: all folds, where a file gives them.
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, parts: Mapping[str, str]) -> Split:
        """Make a split of a mapping from cases to ``train``, ``val`` or ``test``."""
        train, val, test = (tuple(sorted(case for case, p in parts.items() if p == part)) for part in PARTS)
        return cls(train, val, test)

    @property
    def parts(self) -> dict[str, str]:
        """Case -> ``train``, ``val`` or ``test``."""
        return {case: part for part in PARTS for case in getattr(self, part)}

    def only(self, cases: Collection[str]) -> Split:
        """The split of some of its cases."""
        folds = tuple((tuple(c for c in a if c in cases), tuple(c for c in b if c in cases)) for a, b in self.folds)
        return replace(Split.of({c: p for c, p in self.parts.items() if c in cases}), folds=folds)


def make_folds(split: Split, subjects: Mapping[str, str]) -> list[Fold]:
    """Folds for ``splits_final.json``, over the training cases.

    Fold 0 is the published one where there is one. The others are those of a seeded five-fold split over subjects,
    whose cases stay together; it is nnU-Net's own where every case is a subject.

    Args:
        split: of cases that have been converted.
        subjects: case -> subject.

    Returns:
        Five folds, or as many as there are subjects; none for a single subject.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if split.folds:
        return [{"train": list(train), "val": list(val)} for train, val in split.folds]
    cases = sorted((*split.train, *split.val))
    people = sorted({subjects[case] for case in cases})
    folds: list[Fold] = []
    if len(people) > 1:
        for fold in generate_crossval_split(people, SEED, min(FOLDS, len(people))):
            chosen = set(fold["val"])
            folds.append(
                {
                    "train": [case for case in cases if subjects[case] not in chosen],
                    "val": [case for case in cases if subjects[case] in chosen],
                }
            )
    if split.val and split.train:
        folds[:1] = [{"train": sorted(split.train), "val": sorted(split.val)}]
    return folds


def read_split(path: Path, cases: Mapping[str, str]) -> Split:
    """A user's split.

    Args:
        path: JSON (``{"train": [...], "val": [...], "test": [...]}``, or nnU-Net's list of folds), CSV or text with a
            case and its part in each line.
        cases: case -> subject; a subject's name stands for all its cases.

    Raises:
        ConversionError: if the file is of no such form, names an unknown case or one case twice.
    """
    try:
        content = read_json(path) if path.suffix.lower() == ".json" else _rows(read_text(path))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ConversionError(f"{path}: cannot be read as a split ({error})", code="split-unreadable") from None
    if isinstance(content, list):
        folds = [_parts(path, fold, cases) for fold in content]
        named = {case for fold in folds for part in ("train", "val") for case in fold[part]}
        return Split(tuple(sorted(named)), folds=tuple((tuple(fold["train"]), tuple(fold["val"])) for fold in folds))
    parts = _parts(path, content, cases)
    if not parts["train"] and not parts["val"]:
        raise ConversionError(f"{path}: names no training case", code="split-empty")
    return Split(tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]))


def _rows(text: str) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    dialect = csv.excel if "," in text else csv.excel_tab
    for number, row in enumerate(csv.reader(text.splitlines(), dialect)):
        words = [word.strip() for word in row] if len(row) > 1 else "".join(row).split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or words[1] not in parts:
            if number == 0:  # a headline
                continue
            raise ValueError(f"line {number + 1} is not a case and one of {', '.join(PARTS)}")
        parts[words[1]].append(words[0])
    return parts


def _parts(path: Path, content: Any, cases: Mapping[str, str]) -> dict[str, list[str]]:
    if (
        not isinstance(content, dict)
        or not content.keys() <= set(PARTS)
        or not all(isinstance(names, list) for names in content.values())
    ):
        raise ConversionError(
            f"{path}: is neither lists called train, val and test, nor a list of folds", code="split-form"
        )
    by_subject: dict[str, list[str]] = {}
    for case, subject in cases.items():
        by_subject.setdefault(subject, []).append(case)
    parts = {part: list(_resolve(path, content.get(part, []), cases, by_subject)) for part in PARTS}
    seen: set[str] = set()
    for case in (case for part in PARTS for case in parts[part]):
        if case in seen:
            raise ConversionError(f"{path}: names {case} twice", code="split-double")
        seen.add(case)
    return parts


def _resolve(
    path: Path, names: Iterable[Any], cases: Mapping[str, str], by_subject: Mapping[str, list[str]]
) -> Iterable[str]:
    for name in map(str, names):
        if name in cases:
            yield name
        elif name in by_subject:
            yield from by_subject[name]
        else:
            near = difflib.get_close_matches(name, [*cases, *by_subject], 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ConversionError(f"{path}: the source has no case '{name}'{hint}", code="split-cases")
