"""Whether a split can be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_fm.data.folds import FOLDS, read_split_file
from nnunet_fm.io.messages import listed
from nnunet_fm.io.untrusted import ForeignFileError
from nnunet_fm.planfile.schema import PlanError


def check_split(file: Path, cases: Sequence[str], folder: Path, again: str, fold: int | str) -> None:
    """Look whether the fold has cases to train and to validate on, by ``splits_final.json`` where there is one.

    Args:
        file: its path.
        cases: that are preprocessed.
        folder: of theirs.
        again: the command that preprocesses.
        fold: its number, or ``all``, which needs no split.

    Raises:
        PlanError: for too few cases, a file that is no list of folds, cases in it that are not there, or a fold
            without training or validation cases.
    """
    own = (
        f"train fold all, which validates on what it trains on, or write {file} with cases in both lists, "
        '[{"train": ["a", "b"], "val": ["c"]}]'
    )
    if not cases:
        raise PlanError(f"{folder} holds no preprocessed cases: run `{again}`")
    if not file.is_file():
        if fold != "all" and len(cases) < FOLDS:
            raise PlanError(f"{len(cases)} cases are too few for the {FOLDS} folds that nnU-Net draws: {own}")
        return
    try:
        folds = read_split_file(file)
    except ForeignFileError as error:
        raise PlanError(str(error)) from None
    missing = sorted({case for fold in folds for part in ("train", "val") for case in fold[part]} - set(cases))
    if missing:
        raise PlanError(
            f"{file} names {listed(missing)}, not among the {len(cases)} cases of {folder}: run `{again}` "
            "if they were lost, or correct it, or delete it, and nnU-Net draws the folds anew"
        )
    if fold != "all" and int(fold) < len(folds):
        empty = [name for part, name in (("train", "training"), ("val", "validation")) if not folds[int(fold)][part]]
        if empty:
            raise PlanError(f"fold {fold} of {file} has no {empty[0]} cases: {own}")
    elif fold != "all" and len(cases) == 1:  # nnU-Net draws four fifths of them
        raise PlanError(f"one case is too few to train and to validate: {own}")
