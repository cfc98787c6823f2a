"""Datasets by number: one rule for all commands, in nnU-Net's three folders together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_fm.checks.dataset import UnknownDatasetError, read
from nnunet_fm.checks.folders import datasets
from nnunet_fm.cli.completion import complete_datasets
from nnunet_fm.hook.short_form import ShortFormError, expand
from nnunet_fm.inference.inputs import PredictionInputError, find_model_folder
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name, dataset_number
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.plans.adapt import _find
from nnunet_fm.plans.planner import planner_class
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor
from nnunet_fm.studies.datasets import find_dataset
from nnunet_fm.studies.schema import StudyError
from tests.helpers.datasets import nnunet_folders
from tests.helpers.errors import fails


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nnunet_folders(tmp_path, monkeypatch)
    for name in ("raw/Dataset501_A", "preprocessed/Dataset501_A", "results/Dataset501_B", "raw/Dataset5010_C", "raw/x"):
        (tmp_path / f"nnUNet_{name}").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "name"), [(5010, "Dataset5010_C"), ("05010", "Dataset5010_C"), ("Dataset501_B",) * 2]
)
def test_a_number_or_a_name(folders: Path, given: str | int, name: str) -> None:
    assert dataset_name(given) == name and dataset_number(name) == int(name[7:].split("_")[0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (777, ("dataset-missing", "777", "nnUNet_raw", "Dataset501_A", "Dataset501_B", "Dataset5010_C")),
        ("liver", ("dataset-name", "liver")),
        ("DatasetLiver", ("dataset-name", "DatasetLiver")),
    ],
)
def test_what_is_no_dataset(folders: Path, given: str | int, expected: tuple[str, ...]) -> None:
    with fails(*expected):
        dataset_name(given)


def test_a_variable_that_is_not_set_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    with fails("dataset-missing", "nnUNet_raw", "Dataset501_A"):
        dataset_name("5010")


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda: dataset_name("501"), DatasetNameError),
        (lambda: planner_class("FMPlanner_stunet_s")(501), DatasetNameError),
        (lambda: FMPreprocessor().run(501, "3d_fullres", "FMPlans", 1), DatasetNameError),
        (lambda: _find("501"), PlanError),
        (lambda: find_model_folder("501", "fm_trainer", "FMPlans", "2d"), PredictionInputError),
        (lambda: expand(["501", "fm_trainer", "0"]), ShortFormError),
        (lambda: read("501", None, None), UnknownDatasetError),
        (lambda: find_dataset("A", Path.cwd() / "nnUNet_raw"), StudyError),
    ],
)
def test_two_datasets_of_one_number_are_named_by_all(
    folders: Path, ask: Callable[[], object], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    both = r"501 is that of Dataset501_A \(in nnUNet_raw, nnUNet_preprocessed\) and Dataset501_B \(in nnUNet_results\)"
    with pytest.raises(error, match=both):
        ask()


def test_doctor_and_shell_know_them(folders: Path) -> None:
    (found,) = datasets()
    assert found.state == "note" and "Dataset501_A" in found.detail and "Dataset501_B" in found.detail
    assert complete_datasets("501") == ["501", "5010"] and complete_datasets("Dataset501_") == [
        "Dataset501_A", "Dataset501_B",
    ]  # fmt: skip
