"""An environment without our variables, limits of a container, and a dataset to forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

import nnunet_fm.checks.hook as hook_checks
from nnunet_fm.checks import folders, machine
from tests.helpers.control_groups import make_control_groups
from tests.helpers.datasets import nnunet_folders, write_dataset

VARIABLES = (*folders.VARIABLES, hook_checks.EXTERNAL_TRAINERS, "NNUNET_FM_HOOK", "OMP_WAIT_POLICY")
VARIABLES += (machine.LOADERS, machine.WORKERS)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_control_groups(tmp_path, monkeypatch)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of two channels whose test image is its largest; returns its preprocessed folder."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    write_dataset(variables["nnUNet_raw"], 690, shape=(4, 6, 8), spacing=(3, 1, 0.5), cases=2, test_cases=0,
                  channels=("CT", "PET"))  # fmt: skip
    write_dataset(variables["nnUNet_raw"], 691, shape=(8, 6, 8), spacing=(3, 1, 0.5), cases=0, test_cases=1)
    raw = Path(variables["nnUNet_raw"])
    (image,) = (raw / "Dataset691_Blobs" / "imagesTs").glob("*_0000.nii.gz")
    image.rename(raw / "Dataset690_Blobs" / "imagesTs" / "large_0000.nii.gz")
    return Path(variables["nnUNet_preprocessed"], "Dataset690_Blobs")
