"""Intensities that cannot be used, or that are of another modality: refused, or named in one line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_fm.inference.predict import predict_folder
from nnunet_fm.planfile.schema import KEY
from nnunet_fm.plans.geometry import upsampling_note
from nnunet_fm.plans.planner import planner_class
from nnunet_fm.preprocessing.intensities import doubt_of_foreground, fault_of_foreground, is_constant, unlike_training
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint, write_image
from tests.helpers.errors import fails
from tests.helpers.tiny_models import write_model

SHAPE = (8, 10, 9)
NUMBERS = {"mean": 50.0, "std": 8.0, "min": -200.0, "max": 900.0, "median": 40.0, "percentile_00_5": -150.0,
           "percentile_99_5": 400.0}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "trained", "low", "reason"),
    [
        ("MRI", 3.0, -1000.0, r"down to -1000 look like HU of CT, but the model was trained on 'MRI' from 3 on"),
        ("CT_0_to_1", 0.0, -1000.0, "look like HU"),
        ("MRI", -900.0, -1000.0, None),
        ("MRI", 3.0, -20.0, None),
        ("CT", -200.0, 0.0, "no intensity is below 0, but the model was trained on CT in HU"),
        ("ct", -200.0, -160.0, None),
        ("CT", 12.0, 0.0, None),
    ],
)
def test_images_of_another_modality(name: str, trained: float, low: float, reason: str | None) -> None:
    image = np.full((40, 80, 80), 100, np.float32)
    image[:9] = low
    found = unlike_training(name, {**NUMBERS, "min": trained}, image)
    assert (found is None) is (reason is None)
    if reason:
        assert found and re.search(reason, found)
    assert unlike_training(name, {}, image) is None


@pytest.mark.parametrize(
    ("name", "numbers", "reason"),
    [
        ("CT", {}, None),
        ("MRI", {}, None),
        ("CT", {"min": 3.0, "max": 255.0}, "no HU"),
        ("CT", {"min": 900.0, "max": 1500.0, "mean": 1080.0}, "no HU"),
        ("CT", {"min": 20.0, "max": 1500.0, "mean": 300.0}, None),  # bone, or contrast
        ("MRI", {"percentile_00_5": -980.0}, "as CT in HU"),
        ("PET", {"min": 7.0, "max": 7.0}, "has the value 7 in all labelled voxels"),
    ],
)
def test_channels_that_are_not_what_they_are_called(name: str, numbers: dict[str, float], reason: str | None) -> None:
    found = doubt_of_foreground(name, NUMBERS | numbers)
    assert found is None if reason is None else found is not None and reason in found
    assert fault_of_foreground(NUMBERS | numbers) is None


@pytest.mark.parametrize("numbers", [{"std": math.inf}, {"mean": math.nan}, {"max": 3e38}])
def test_intensities_that_overflow_are_a_fault(numbers: dict[str, float]) -> None:
    assert fault_of_foreground(NUMBERS | numbers)


def test_thick_slices_that_a_plan_multiplies() -> None:
    text = upsampling_note([[3.0, 3.0, 3.0]] * 3, [2.0, 1.5, 1.5])
    assert text and "2×1.5×1.5 mm makes 6.0 times as many voxels of an image of 3×3×3 mm" in text
    assert upsampling_note([[5.0, 0.8, 0.8]] * 3, [2.0, 1.5, 1.5]) is None


def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    folders = nnunet_folders(tmp_path, monkeypatch)
    folder = write_dataset(folders["nnUNet_raw"], 501, shape=SHAPE, cases=2)
    write_fingerprint(folder, [(80, 90, 95)] * 2, [(3.0, 3.0, 3.0)] * 2)
    return folder, planner_class("FMPlanner_stunet_s")(501, 40).plan_experiment()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_plan_and_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plans = planned(tmp_path, monkeypatch)
    assert plans[KEY]["reasons"]["voxels"] in capsys.readouterr().err and "6.0 times" in plans[KEY]["reasons"]["voxels"]
    file = folder / "imagesTr" / "case_01_0000.nii.gz"
    write_image(file, np.full(SHAPE, 7, np.float32), (1, 1, 1))
    FMPreprocessor(verbose=False).run(501, "3d_fullres", plans["plans_name"], 1)
    assert "WARNING: case_01_0000.nii.gz: channel 0 has the value 7 everywhere" in capsys.readouterr().err
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_image(file, image * np.float32(1e37), (1, 1, 1))
    with fails("intensities-too-large", "case_01_0000.nii.gz", "37"):
        FMPreprocessor(verbose=False).run(501, "3d_fullres", plans["plans_name"], 1)
    fingerprint = tmp_path / "nnUNet_preprocessed" / folder.name / "dataset_fingerprint.json"
    content = json.loads(fingerprint.read_text())
    content["foreground_intensity_properties_per_channel"]["0"]["std"] = math.inf
    fingerprint.write_text(json.dumps(content))
    with fails("intensities-invalid", "0", "MRI"):
        planner_class("FMPlanner_stunet_s")(501, 40).plan_experiment()


def test_a_model_of_mr_says_that_it_is_given_ct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    plans = json.loads((model / "plans.json").read_text())
    plans["foreground_intensity_properties_per_channel"] = {"0": {**NUMBERS, "min": 0.0}}
    (model / "plans.json").write_text(json.dumps(plans))
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_image(tmp_path / "in" / "ct_0000.nii.gz", image * 300 - 800, (1, 1, 1))
    write_image(tmp_path / "in" / "mr_0000.nii.gz", np.abs(image) * 100, (1, 1, 1))
    here = {"device": torch.device("cpu"), "processes_preprocessing": 0, "processes_export": 0}
    predict_folder(model, tmp_path / "in", tmp_path / "out", folds=[0], **here)
    told = capsys.readouterr().err
    assert "WARNING: ct: intensities down to" in told and "WARNING: mr" not in told


def test_constant() -> None:
    image = np.zeros((60, 60, 60), np.float32)
    assert is_constant(image)
    image[3, 4, 5] = 1
    assert not is_constant(image)
