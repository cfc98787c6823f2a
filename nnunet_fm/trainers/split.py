"""Checks of the split into training and validation cases, and the few training cases of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_fm.data.folds import FOLDS, first_cases, read_split_file
from nnunet_fm.io.messages import listed
from nnunet_fm.io.untrusted import ForeignFileError
from nnunet_fm.planfile.schema import PlanError


def check_split(file: Path, cases: Sequence[str], folder: Path, again: str, fold: int | str) -> None:
    """Check that the fold has training and validation cases, by ``splits_final.json`` if it exists.

    Args:
        file: path of ``splits_final.json``.
        cases: names of the preprocessed cases.
        folder: their folder.
        again: the command that preprocesses.
        fold: number of the fold, or ``all``, which needs no split.

    Raises:
        PlanError: for too few cases, a file that is no list of folds, cases in it that are missing, or a fold
            without training or validation cases.
    """
    own = (
        f"train fold all, which validates on what it trains on, or write {file} with cases in both lists, "
        '[{"train": ["a", "b"], "val": ["c"]}]'
    )
    if not cases:
        raise PlanError(f"{folder} holds no preprocessed cases: run `{again}`", code="preprocessed-missing")
    if not file.is_file():
        if fold != "all" and len(cases) < FOLDS:
            raise PlanError(
                f"{len(cases)} cases are too few for the {FOLDS} folds that nnU-Net draws: {own}", code="cases-few"
            )
        return
    try:
        folds = read_split_file(file)
    except ForeignFileError as error:
        raise PlanError(str(error), code=error.code) from None
    missing = sorted({case for fold in folds for part in ("train", "val") for case in fold[part]} - set(cases))
    if missing:
        raise PlanError(
            f"{file} names {listed(missing)}, not among the {len(cases)} cases of {folder}: run `{again}` "
            "if they were lost, or correct it, or delete it, and nnU-Net draws the folds anew",
            code="split-cases",
        )
    if fold != "all" and int(fold) < len(folds):
        empty = [name for part, name in (("train", "training"), ("val", "validation")) if not folds[int(fold)][part]]
        if empty:
            raise PlanError(f"fold {fold} of {file} has no {empty[0]} cases: {own}", code="fold-empty")
    elif fold != "all" and len(cases) == 1:  # nnU-Net trains on four fifths of the cases
        raise PlanError(f"one case is too few to train and to validate: {own}", code="cases-few")


def few_cases(
    training: Sequence[str], wanted: int, seed: int, plans_name: str, dataset: str, fold: int | str
) -> list[str]:
    """Choose the first ``wanted`` training cases of an order fixed by the seed and the names.

    Raises:
        PlanError: if the fold has fewer training cases.
    """
    try:
        return first_cases(training, wanted, seed)
    except ValueError:
        raise PlanError(
            f"plans '{plans_name}' have train_cases={wanted}, but fold {fold} of {dataset} has {len(training)} "
            f"training cases: plan with --train-cases {len(training)} or less",
            code="cases-few",
        ) from None


Split = tuple[Sequence[str], Sequence[str]]
"""Training and validation cases."""


def check_cases_kept(before: Split, now: Split, fold: int | str, file: Path) -> None:
    """Compare the cases of a fold with those that its checkpoint was trained and validated on.

    Raises:
        PlanError: naming the cases that have changed, and the split file.
    """
    changes = []
    for what, former, present in zip(("train", "val"), before, now, strict=True):
        for verb, names in (("no longer", set(former) - set(present)), ("newly", set(present) - set(former))):
            if names:
                changes.append(f"{listed(sorted(names))} {verb} in {what}")
    if changes:
        raise PlanError(
            f"the cases of fold {fold} have changed since this training began: {'; '.join(changes)}. Bring "
            f"the former {file} back to go on with --c, or train the fold anew without it",
            code="split-changed",
        )


def check_unseen(trained: Sequence[str], now: Split, fold: int | str, file: Path) -> None:
    """Refuse to validate on training cases of a former split.

    Raises:
        PlanError: naming these cases, and the split file.
    """
    training, validation = now
    former = set(trained) - set(training)  # a split may train and validate on a case on purpose
    if seen := former & set(validation):
        raise PlanError(
            f"fold {fold} was trained on {listed(sorted(seen))}, which {file} now names for "
            "validation: bring the former file back, or train the fold anew",
            code="cases-seen",
        )
