"""Patient of each case: some have several scans in one dataset, or one in each of several datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnunet_fm.io.untrusted import RECORD_ENTRIES, ForeignFileError, read_json, read_object

FILE = "subjects.json"
"""A user's table of a dataset, beside its ``dataset.json``: case -> patient."""
CONVERSION = "conversion.json"
"""Name of the file that `nnunet-fm convert` writes into a dataset's folder."""

Subjects = Mapping[str, Mapping[str, str]]
"""Dataset -> case -> patient."""


def read_subjects(*folders: Path) -> dict[str, str]:
    """Case -> patient, by the first file found: ``subjects.json`` of any folder, then ``conversion.json``.

    Patients of a converter have its name before theirs: two datasets of one cohort share them, two cohorts do not.

    Args:
        folders: of one dataset, in ``nnUNet_raw`` and elsewhere; those that are not there are passed over.

    Returns:
        Nothing where no file tells: each case is a patient of its own then.

    Raises:
        ForeignFileError: if ``subjects.json`` is no table of names.
    """
    for folder in folders:
        if (folder / FILE).is_file():
            return _given(folder / FILE)
    for folder in folders:
        if (folder / CONVERSION).is_file():
            return converted_subjects(folder)
    return {}


def converted_subjects(folder: Path) -> dict[str, str]:
    """Case -> patient as ``nnunet-fm convert`` wrote them into a dataset's folder; empty where it did not.

    Each patient's name begins with that of the source, and is the same in all datasets of one source.
    """
    try:
        content = read_json(folder / CONVERSION, RECORD_ENTRIES)
        cohort, cases = content["dataset"], content["cases"]
        return {case: f"{cohort} {record['subject']}" for case, record in cases.items() if record["subject"]}
    except (OSError, ForeignFileError, AttributeError, KeyError, TypeError):  # of another tool, or cut off
        return {}


def own_name(dataset: str, case: str) -> str:
    """Name of the patient of a case that no file lists."""
    return f"{dataset} {case}"


def _given(file: Path) -> dict[str, str]:
    content = read_object(file)
    if not all(isinstance(person, (str, int)) and not isinstance(person, bool) for person in content.values()):
        raise ForeignFileError(
            f'{file} must map names of cases to patients: {{"case_01": "patient_a", …}}', code="patients-form"
        )
    return {case: str(person) for case, person in content.items()}
