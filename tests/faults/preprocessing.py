"""Faults of raw data and of preprocessing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor, PreprocessingError
from nnunet_fm.preprocessing.shared_cache import FolderInUseError, lease
from tests.faults.planning import planned
from tests.faults.registry import SHAPE, Bench, Seen, change_json, cut_in_half, fault
from tests.helpers.convert_tester import edit, snapshot
from tests.helpers.datasets import skew, write_image

STAGE = "Preprocessing"


def preprocess(plans: dict[str, Any]) -> None:
    """Preprocess in this process."""
    FMPreprocessor(verbose=False).run(501, "3d_fullres", plans["plans_name"], 1)


def folder_of(at: Bench, plans: dict[str, Any]) -> Path:
    return at.preprocessed / plans["dataset_name"] / plans["configurations"]["3d_fullres"]["data_identifier"]


def spoiled(at: Bench, damage: Callable[[Path], object], kind: Any = (ValueError, RuntimeError)) -> Seen:
    """One of two cases is damaged: it is named, and no folder is left that a training would take for complete."""
    plans = planned(at)
    raw = at.raw / plans["dataset_name"]
    damage(raw)
    before = snapshot(raw)
    seen = at.raises(kind, lambda: preprocess(plans))
    assert "case_01" in seen.text, seen
    left = [path.name for path in folder_of(at, plans).parent.glob("fm_*") if path.is_dir()]
    assert left == [] and snapshot(raw) == before
    return seen


def change_labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda raw: edit(raw / "labelsTr" / "case_01.nii.gz", change)


def with_voxel(value: float, dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[1, 2, 3] = value
        return array

    return change


@fault(
    STAGE,
    "A label map has a label that dataset.json does not list.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="labels-unknown",
)
def a_label_that_is_not_listed(at: Bench) -> Seen:
    return spoiled(at, change_labels(with_voxel(9, np.uint8)))


@fault(
    STAGE,
    "A label map has a negative label.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="labels-unknown",
)
def a_negative_label(at: Bench) -> Seen:
    return spoiled(at, change_labels(with_voxel(-1, np.int16)))


@fault(
    STAGE,
    "A label map has a label beyond what 16 bits hold.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="labels-unknown",
)
def a_label_beyond_16_bits(at: Bench) -> Seen:
    return spoiled(at, change_labels(with_voxel(65537, np.int32)))


@fault(
    STAGE,
    "A label map was resampled by interpolation: it has fractions.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="labels-unknown",
)
def fractions_in_a_label_map(at: Bench) -> Seen:
    return spoiled(at, change_labels(with_voxel(0.5, np.float32)))


@fault(STAGE, "A label map is stored as float32, in whole numbers.", happens="preprocessed", keeps="all labels")
def labels_stored_as_floats(at: Bench) -> None:
    plans = planned(at)
    change_labels(lambda array: array.astype(np.float32))(at.raw / plans["dataset_name"])
    preprocess(plans)
    assert len(list(folder_of(at, plans).glob("*.pkl"))) == 2


@fault(
    STAGE,
    "Image and label map have different sizes.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="grid-differs",
)
def an_image_larger_than_its_labels(at: Bench) -> Seen:
    return spoiled(at, lambda raw: write_image(raw / "labelsTr/case_01.nii.gz", np.zeros((3, 4, 5), np.uint8), [1] * 3))


@fault(
    STAGE,
    "A label map is four-dimensional.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="label-map-shape",
)
def a_4d_label_map(at: Bench) -> Seen:
    return four_dimensional(at, "labelsTr/case_01.nii.gz", np.uint8)


@fault(
    STAGE,
    "A training image is four-dimensional.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="channels-count",
)
def a_4d_training_image(at: Bench) -> Seen:
    return four_dimensional(at, "imagesTr/case_01_0000.nii.gz", np.float32)


def four_dimensional(at: Bench, name: str, kind: type) -> Seen:
    image = sitk.GetImageFromArray(np.zeros((2, *SHAPE), kind))
    return spoiled(at, lambda raw: sitk.WriteImage(image, str(raw / name)))


@fault(
    STAGE,
    "A training image is cut off.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="image-cut-off",
)
def a_training_image_cut_off(at: Bench) -> Seen:
    return spoiled(at, lambda raw: cut_in_half(raw / "imagesTr" / "case_01_0000.nii.gz"))


@fault(
    STAGE,
    "No label map has a voxel of a class.",
    happens="stopped",
    keeps="the raw data; no half-written folder is left",
    code="classes-none",
)
def label_maps_without_foreground(at: Bench) -> Seen:
    plans = planned(at)
    for file in (at.raw / plans["dataset_name"] / "labelsTr").iterdir():
        edit(file, np.zeros_like)
    seen = at.raises(PreprocessingError, lambda: preprocess(plans))
    assert not [path for path in folder_of(at, plans).parent.glob("fm_*") if path.is_dir()]
    return seen


@fault(
    STAGE,
    "A label map has axes that are not at right angles.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="image-skewed",
)
def a_skewed_label_map(at: Bench) -> Seen:
    return spoiled(at, lambda raw: skew(raw / "labelsTr" / "case_01.nii.gz"))


@fault(
    STAGE,
    "A label map vanishes after planning.",
    happens="stopped, the case is named",
    keeps="the raw data; no half-written folder is left",
    code="label-maps-missing",
)
def a_label_map_that_vanished(at: Bench) -> Seen:
    return spoiled(at, lambda raw: (raw / "labelsTr" / "case_01.nii.gz").unlink(), PlanError)


@fault(
    STAGE,
    "A class of dataset.json is in no training case.",
    happens="preprocessed; the class has no voxels to draw patches from",
    keeps="all cases",
)
def a_class_that_no_case_has(at: Bench) -> None:
    plans = planned(at)
    change_json(at.raw / plans["dataset_name"] / "dataset.json", labels={"background": 0, "one": 1, "two": 2, "x": 3})
    change_json(
        at.preprocessed / plans["dataset_name"] / "dataset.json", labels={"background": 0, "one": 1, "two": 2, "x": 3}
    )
    preprocess(plans)
    assert len(list(folder_of(at, plans).glob("*.pkl"))) == 2


@fault(
    STAGE,
    "A setting of preprocessing was edited in the plan, not the name of its folder.",
    happens="refused before anything is written",
    keeps="all files",
    code="plan-identifier",
)
def a_setting_edited_by_hand(at: Bench) -> Seen:
    plans = planned(at)
    file = at.preprocessed / plans["dataset_name"] / f"{plans['plans_name']}.json"
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
    change_json(file, **plans)
    with at.unchanged():
        seen = at.raises(PlanError, lambda: preprocess(plans))
    return seen


@fault(
    STAGE,
    "Raw data change while a training reads the preprocessed folder.",
    happens="refused",
    keeps="the folder that the training reads",
    code="preprocessed-in-use",
)
def new_data_under_a_training(at: Bench) -> Seen:
    plans = planned(at)
    preprocess(plans)
    folder = folder_of(at, plans)
    before = snapshot(folder)
    os.utime(at.raw / plans["dataset_name"] / "imagesTr" / "case_00_0000.nii.gz", ns=(1, 1))
    held = lease(folder)
    assert held is not None
    with held:
        seen = at.raises(FolderInUseError, lambda: preprocess(plans))
    assert snapshot(folder) == before
    return seen


@fault(
    STAGE,
    "The disk is full in the middle of preprocessing.",
    happens="stopped",
    keeps="the folder preprocessed before; the same command works when there is room",
    code="case-not-written",
)
def a_full_disk_in_preprocessing(at: Bench) -> Seen:
    plans = planned(at)
    preprocess(plans)
    folder = folder_of(at, plans)
    before = snapshot(folder)
    os.utime(at.raw / plans["dataset_name"] / "imagesTr" / "case_00_0000.nii.gz", ns=(1, 1))
    with at.full_disk(1500):
        seen = at.raises((OSError, RuntimeError), lambda: preprocess(plans))
    assert snapshot(folder) == before and not list(folder.parent.glob("*.partial"))
    preprocess(plans)
    return seen


def killed_at_the_second_case(plans: dict[str, Any]) -> None:
    """Preprocess, and be killed when the first case is written."""

    class Killed(FMPreprocessor):
        def _save(self, case: tuple[Any, ...]) -> None:
            if case[0].endswith("case_01"):
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save(case)

    Killed(verbose=False).run(501, "3d_fullres", plans["plans_name"], 1)


@fault(
    STAGE,
    "Preprocessing is killed (SIGKILL) after the first of two cases.",
    happens="the same command, run again, takes the lock and starts anew",
    keeps="the folder preprocessed before",
    slow=True,
)
def killed_in_preprocessing(at: Bench) -> None:
    plans = planned(at)
    preprocess(plans)
    folder = folder_of(at, plans)
    before = snapshot(folder)
    os.utime(at.raw / plans["dataset_name"] / "imagesTr" / "case_00_0000.nii.gz", ns=(1, 1))
    code, _ = at.process(killed_at_the_second_case, plans)
    assert code == -signal.SIGKILL and snapshot(folder) == before
    preprocess(plans)
    assert not list(folder.parent.glob("*.partial")) and len(list(folder.glob("*.pkl"))) == 2
