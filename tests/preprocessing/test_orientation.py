"""Where images point to, read from their headers, and the warning where the weights have seen something else."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import aff2axcodes

from nnunet_fm.models.registry import cards
from nnunet_fm.preprocessing.orientation import axis_codes, dataset_orientations, orientation_warning
from nnunet_fm.preprocessing.raw import training_cases
from tests.helpers.datasets import write_dataset

DATA = Path(__file__).parents[1] / "images"


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_axis_codes_are_those_of_nibabel(order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path) -> None:
    direction = np.zeros((3, 3))
    for axis, (row, sign) in enumerate(zip(order, signs, strict=True)):
        direction[row, axis] = sign
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8))
    if np.linalg.det(direction) > 0:  # a file whose axes are left-handed cannot be written by SimpleITK
        image.SetDirection(direction.ravel().tolist())
        sitk.WriteImage(image, tmp_path / "image.nii.gz")
        assert axis_codes(image.GetDirection()) == "".join(aff2axcodes(nibabel.load(tmp_path / "image.nii.gz").affine))
    assert sorted(axis_codes(direction.ravel())) == sorted(
        "".join("LPS"[r] if s > 0 else "RAI"[r] for r, s in zip(order, signs, strict=True))
    )


@pytest.mark.parametrize("tilt", [0.0, 20.0, -30.0])
def test_tilted_images_point_to_the_nearest_axis(tilt: float) -> None:
    angle = np.deg2rad(tilt)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    assert axis_codes(turn.ravel()) == "LPS"


def test_real_images() -> None:
    assert axis_codes(sitk.ReadImage(DATA / "ct_spine.nii.gz").GetDirection()) == "RAS"
    assert axis_codes(sitk.ReadImage(DATA / "mr.nii.gz").GetDirection()) == "LPS"


def test_a_dataset_is_counted_as_nnunet_reads_it(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, 1, cases=3, shape=(4, 4, 4))
    flipped = folder / "imagesTr" / "case_00_0000.nii.gz"
    image = sitk.ReadImage(flipped)
    image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(image, flipped)
    cases = training_cases(folder, json.loads((folder / "dataset.json").read_text()))
    assert dataset_orientations(cases, "SimpleITKIO") == {"LPS": 2, "RAS": 1}
    assert dataset_orientations(cases, "NibabelIOWithReorient") == {"RAS": 3}
    assert not dataset_orientations(cases, "NaturalImage2DIO")


def test_the_warning_says_what_differs_and_what_to_do() -> None:
    assert orientation_warning("RAS", {"RAS": 5}, "suprem") is None
    assert orientation_warning(None, {"LPS": 5}, "stunet_b") is None
    assert orientation_warning("RAS", {}, "suprem") is None
    text = orientation_warning("RAS", {"LPS": 4, "RAS": 1}, "suprem")
    assert (
        text is not None and "4 LPS, 1 RAS" in text and "NibabelIOWithReorient" in text and "nothing is flipped" in text
    )


def test_cards_name_the_orientation_where_it_is_known() -> None:
    known = {name: card.pretraining.orientation for name, card in cards().items() if card.dim == 3}
    assert {known[name] for name in ("suprem", "dae", "swinmm", "spadnet")} == {"RAS"}
    assert known["misfm"] is None
