"""A raw dataset before planning: images and label maps belong together, and nothing is left out in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json, training_cases
from nnunet_fm.studies.cases import image_names, label_names
from tests.helpers.datasets import write_dataset
from tests.helpers.errors import fails

SHAPE = (4, 5, 6)


def checked(folder: Path) -> list[str]:
    return check_cases(folder, read_dataset_json(folder))


def change(folder: Path, **content: object) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def rename(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / to)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: (f / "labelsTr/case_01.nii.gz").unlink(), ("label-maps-missing", "labelsTr", "3", "case_01.nii.gz")),
        (
            lambda f: (f / "imagesTr/case_01_0000.nii.gz").unlink(),
            ("images-missing", "imagesTr", "3", "case_01_0000.nii.gz"),
        ),
        (
            rename("imagesTr/case_01_0000.nii.gz", "imagesTr/case_01.nii.gz"),
            ("images-missing", "01_0000", "case_01.nii.gz"),
        ),
        (
            rename("imagesTr/case_01_0000.nii.gz", "imagesTr/case_01_0000.NII.GZ"),
            ("images-missing", "case_01_0000.NII.GZ"),
        ),
        (rename("labelsTr/case_01.nii.gz", "labelsTr/case_01.nii"), ("label-maps-missing", "case_01.nii.gz")),
        (lambda f: change(f, numTraining=4), ("cases-number", "numTraining", "4", "3")),
        (lambda f: change(f, numTraining="2"), ("cases-number", "numTraining", "2", "3")),
        (
            lambda f: change(f, dataset={"a": {"images": ["imagesTr/no.nii.gz"], "label": "labelsTr/case_00.nii.gz"}}),
            ("files-missing", "dataset.json", "no.nii.gz"),
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], expected: tuple[str, ...]
) -> None:
    folder = write_dataset(tmp_path, 501, shape=SHAPE, cases=3)
    assert checked(folder) == []
    spoil(folder)
    with fails(*expected):
        checked(folder)


def test_hidden_files_do_not_count_and_other_images_are_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, 501, shape=SHAPE, cases=2)
    cases = training_cases(folder, read_dataset_json(folder))
    for file in ("imagesTr/._case_00_0000.nii.gz", "labelsTr/._case_00.nii.gz", "imagesTr/.DS_Store"):
        (folder / file).write_bytes(b"Mac OS X")
    (folder / "imagesTr" / "list.json").write_text("{}")
    assert checked(folder) == [] and training_cases(folder, read_dataset_json(folder)) == cases
    assert image_names(folder / "imagesTr", ".nii.gz") == label_names(folder / "labelsTr", ".nii.gz") == set(cases)
    shutil.copy(folder / "labelsTr" / "case_00.nii.gz", folder / "labelsTr" / "line\nbreak.nii.gz")
    (folder / "imagesTr" / "preview.png").write_bytes(b"")
    images, labels = checked(folder)
    assert "preview.png (does not end in .nii.gz" in images and r"'line\nbreak.nii.gz' (a line break" in labels
