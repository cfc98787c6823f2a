"""Folds: a split that can be used, and few-shot splits, the first cases of an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_fm.foreign import ForeignFileError, read_json
from nnunet_fm.models.plan_key import PlanError


def check_split(file: Path, cases: Sequence[str], folder: Path, again: str) -> None:
    """Look whether ``splits_final.json`` can be used, where there is one.

    Args:
        file: its path.
        cases: that are preprocessed.
        folder: of theirs.
        again: the command that preprocesses.

    Raises:
        PlanError: for no cases at all, a file that is no list of folds, or cases in it that are not there.
    """
    if not cases:
        raise PlanError(f"{folder} holds no preprocessed cases: run `{again}`")
    if not file.is_file():
        return
    cure = "correct it, or delete it, and nnU-Net draws the folds anew"
    try:
        folds = read_json(file)
    except ForeignFileError as error:
        raise PlanError(f"{error}: {cure}") from None
    parts = [fold.get(part) for fold in folds for part in ("train", "val")] if _objects(folds) else [None]
    if not all(isinstance(part, list) and all(isinstance(case, str) for case in part) for part in parts):
        raise PlanError(
            f'{file} must be a list with an object {{"train": [cases], "val": [cases]}} for each fold: {cure}'
        )
    missing = sorted({case for part in parts for case in part} - set(cases))  # type: ignore[union-attr]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise PlanError(
            f"{file} names {', '.join(missing[:3])}{more}, not among the {len(cases)} cases of {folder}: run `{again}` "
            f"if they were lost, or {cure}"
        )


def _objects(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(fold, dict) for fold in content)


def first_cases(cases: Sequence[str], count: int, seed: int) -> list[str]:
    """The first cases of an order that depends on nothing but the names of the cases and the seed.

    With one seed the three first are among the five first, whatever the trainer.

    Raises:
        ValueError: if there are not so many.
    """
    if count > len(cases):
        raise ValueError(f"{count} cases are wanted, but there are {len(cases)}")
    ordered = sorted(cases)
    return [ordered[index] for index in np.random.RandomState(seed % 2**32).permutation(len(ordered))[:count]]
