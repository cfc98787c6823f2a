"""A fingerprint that cannot be taken: the file that is to blame is named."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_fm.preprocessing.fingerprint import fingerprint
from nnunet_fm.preprocessing.raw import read_dataset_json
from tests.helpers.datasets import nnunet_folders, skew, write_dataset, write_image
from tests.helpers.errors import fails

SHAPE = (4, 5, 6)


def change_checksum(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])


def empty_labels(raw: Path) -> None:
    for file in (raw / "labelsTr").iterdir():
        write_image(file, np.zeros(SHAPE, np.uint8), (1, 1, 1))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of three cases, whose fingerprint is taken in this process."""
    monkeypatch.setattr("multiprocessing.get_context", lambda _: SimpleNamespace(Pool=ThreadPool, Event=Event))
    variables = nnunet_folders(tmp_path, monkeypatch)
    return write_dataset(variables["nnUNet_raw"], 501, shape=SHAPE, cases=3, test_cases=0)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (empty_labels, ("classes-none", "3", "labelsTr")),
        (lambda raw: skew(raw / "imagesTr/case_01_0000.nii.gz"), ("image-skewed", "case_01_0000.nii.gz")),
        (lambda raw: skew(raw / "labelsTr/case_02.nii.gz"), ("image-skewed", "case_02.nii.gz")),
        (
            lambda raw: write_image(raw / "labelsTr/case_01.nii.gz", np.ones((3, 3, 3), np.uint8), (1, 1, 1)),
            ("grid-differs", "case_01", "4", "5", "6", "3"),
        ),
        (
            lambda raw: (raw / "imagesTr/case_00_0000.nii.gz").write_bytes(b"no image"),
            ("image-damaged", "case_00_0000.nii.gz"),
        ),
        (lambda raw: change_checksum(raw / "imagesTr/case_00_0000.nii.gz"), ("image-damaged", "case_00_0000.nii.gz")),
        (lambda raw: change_checksum(raw / "labelsTr/case_02.nii.gz"), ("image-damaged", "case_02.nii.gz")),
    ],
)  # fmt: skip
def test_the_cause_is_named_in_one_line(
    raw: Path, damage: Callable[[Path], object], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(raw)
    with fails(*expected) as caught:
        fingerprint(raw.name, read_dataset_json(raw), 1)
    assert "\n" not in str(caught.value) and "Traceback" not in capsys.readouterr().err


def test_one_skewed_image_that_comes_first_changes_the_reader_and_is_named(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """nnU-Net chooses the reader of all images by the first."""
    skew(raw / "imagesTr/case_00_0000.nii.gz")
    assert len(fingerprint(raw.name, read_dataset_json(raw), 1)["spacings"]) == 3
    assert "read by NibabelIO: by SimpleITKIO" in (printed := capsys.readouterr().err) and "case_00_0000" in printed
