"""Cases of patients that a model was trained on, in one dataset or in two of the same source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunet_fm.data.subjects import converted_subjects


def seen_cases(
    cases: Iterable[str], raw: Path, trained: Iterable[str], trained_raw: Path, *, images: str = "imagesTr"
) -> list[str]:
    """The cases whose patient is among those of the cases that a model was trained on.

    Patients are known where ``nnunet-fm convert`` wrote the datasets, also across datasets of one source; else a case
    is a patient, of its dataset alone.

    Args:
        cases: to look through, of the folder ``images`` of the dataset whose raw folder is ``raw``.
        trained: cases of ``imagesTr`` of the dataset whose raw folder is ``trained_raw``.
    """
    patients = converted_subjects(raw)
    of_training = converted_subjects(trained_raw)
    known = {of_training.get(case, (trained_raw.name, "imagesTr", case)) for case in trained}
    return [case for case in cases if patients.get(case, (raw.name, images, case)) in known]
