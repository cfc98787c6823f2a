"""Folds of a dataset: its own split or nnU-Net's, the cases of a fold, few-shot subsets that a seed fixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.untrusted import ForeignFileError, read_json

Fold = Mapping[str, Sequence[str]]

FILE = "splits_final.json"
FOLDS = 5
"""Folds of the split that nnU-Net draws where a dataset has none."""
SEED = 12345
"""nnU-Net's own."""


def read_folds(cases: Sequence[str], *folders: Path) -> list[Fold]:
    """The folds that a training would have: those of the first folder with a split, else those that nnU-Net draws.

    Args:
        cases: all training cases.
        folders: the dataset's, the preprocessed one first, as nnU-Net reads that.

    Returns:
        For each fold its ``train`` and ``val``; nothing if there are fewer cases than folds.

    Raises:
        ForeignFileError: for a split that is no list of folds.
    """
    for folder in folders:
        if (folder / FILE).is_file():
            return read_split_file(folder / FILE)
    if len(cases) < FOLDS:
        return []
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    drawn: list[Fold] = generate_crossval_split(sorted(cases), seed=SEED, n_splits=FOLDS)
    return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in drawn]


def read_split_file(file: Path) -> list[Fold]:
    """The folds in a ``splits_final.json``.

    Raises:
        ForeignFileError: for anything but a list of folds.
    """
    cure = "correct it, or delete it, and nnU-Net draws the folds anew"
    try:
        folds = read_json(file)
    except ForeignFileError as error:
        raise ForeignFileError(f"{error}: {cure}", code="split-unreadable") from None
    objects = isinstance(folds, list) and all(isinstance(fold, dict) for fold in folds)
    parts = [fold.get(part) for fold in folds for part in ("train", "val")] if objects else [None]
    if not all(isinstance(part, list) and all(isinstance(case, str) for case in part) for part in parts):
        raise ForeignFileError(
            f'{file} must be a list with an object {{"train": [cases], "val": [cases]}} for each fold: {cure}',
            code="split-form",
        )
    return list(folds)


def training_cases_of(folds: Sequence[Fold], fold: str | int, cases: Sequence[str]) -> list[str]:
    """The training cases of a fold; ``all`` trains on all cases, and a fold that is not there on about 80 % of them."""
    if str(fold) == "all":
        return list(cases)
    number = int(fold)
    if number < len(folds):
        return list(folds[number]["train"])
    chosen = np.random.RandomState(SEED + number).choice(len(cases), int(len(cases) * 0.8), replace=False)
    return [sorted(cases)[index] for index in chosen]


def first_cases(cases: Sequence[str], count: int, seed: int) -> list[str]:
    """The first cases of an order that depends on nothing but the names of the cases and the seed.

    With one seed the three first are among the five first, whatever the trainer.

    Raises:
        ValueError: if there are not so many.
    """
    if count > len(cases):
        raise InvalidValueError(f"{count} cases are wanted, but there are {len(cases)}", code="cases-few")
    ordered = sorted(cases)
    return [ordered[index] for index in np.random.RandomState(seed % 2**32).permutation(len(ordered))[:count]]
