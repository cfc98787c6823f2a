"""Whether a split can be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_fm.data.folds import read_split_file
from nnunet_fm.foreign import ForeignFileError
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
    try:
        folds = read_split_file(file)
    except ForeignFileError as error:
        raise PlanError(str(error)) from None
    missing = sorted({case for fold in folds for part in ("train", "val") for case in fold[part]} - set(cases))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise PlanError(
            f"{file} names {', '.join(missing[:3])}{more}, not among the {len(cases)} cases of {folder}: run `{again}` "
            "if they were lost, or correct it, or delete it, and nnU-Net draws the folds anew"
        )
