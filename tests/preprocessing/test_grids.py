"""Label maps beside their images in space: certain misfits are refused, slight ones named, roundings ignored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from nnunet_fm.checks.dataset import training_data
from nnunet_fm.io.volume import Grid
from nnunet_fm.plans.planner import planner_class
from nnunet_fm.preprocessing.grids import _grid, check_grids, misfit
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails

SIZE = (60, 50, 40)
TURN = tuple(Rotation.from_euler("xyz", (8, -5, 20), degrees=True).as_matrix().ravel())
IMAGE = Grid(SIZE, (0.7421875, 0.7421875, 3.0), (-1203.7, 388.1, -900.3), TURN)


def changed(**parts: Any) -> Grid:
    return Grid(**{**IMAGE.__dict__, **parts})


def turned(degrees: float) -> tuple[float, ...]:
    return tuple((Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ np.reshape(TURN, (3, 3))).ravel())


def flip(*axes: int) -> tuple[float, ...]:
    signs = [-1 if axis in axes else 1 for axis in range(3)]
    return tuple((np.reshape(TURN, (3, 3)) * signs).ravel())


@pytest.mark.parametrize(
    ("other", "reason", "certain"),
    [
        (changed(direction=flip(0)), "its axis x points the other way", True),
        (changed(direction=flip(0, 1)), "its axes x and y point the other way", True),
        (changed(direction=turned(90)), "turned by 90°", True),
        (changed(direction=turned(3)), "off the image's place", False),
        (changed(spacing=(1.0, 1.0, 1.0)), r"its spacing is \(1, 1, 1\) mm, the image's \(0.7422, 0.7422, 3\)", True),
        (changed(spacing=(0.75, 0.75, 3.0)), "its spacing is", False),
        (changed(origin=(1, 0, 0)), r"voxels beside the image: origin \(1, 0, 0\) mm", True),
        (changed(origin=(0, 0, 0)), r"voxels beside the image: origin \(0, 0, 0\) mm", False),
        (changed(origin=(-1202.7, 388.1, -900.3)), r"1.\d voxels off the image's place", False),
    ],
)
def test_another_grid(other: Grid, reason: str, certain: bool) -> None:
    found = misfit(other, IMAGE)
    assert found is not None and found.certain is certain
    assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize(
    "other",
    [
        IMAGE,
        changed(origin=tuple(np.float32(IMAGE.origin).tolist()), direction=tuple(np.float32(TURN).tolist())),
        changed(spacing=tuple(round(s, 3) for s in IMAGE.spacing), direction=tuple(round(c, 4) for c in TURN)),
        changed(size=(1, 2, 3), direction=flip(2)),  # the reader says this better
    ],
)
def test_roundings_of_headers_are_no_misfit(other: Grid) -> None:
    assert misfit(other, IMAGE) is None


def spoiled(folder: Path, change: Callable[[sitk.Image], object]) -> Path:
    """A dataset's label map of case_01 with another header."""
    file = folder / "labelsTr" / "case_01.nii.gz"
    image = sitk.ReadImage(str(file))
    change(image)
    sitk.WriteImage(image, str(file))
    return file


def cases_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        f"case_0{i}": {
            "images": [str(folder / f"imagesTr/case_0{i}_0000.nii.gz")],
            "label": str(folder / f"labelsTr/case_0{i}.nii.gz"),
        }
        for i in range(2)
    }


def test_plans_and_preprocessing_name_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = nnunet_folders(tmp_path, monkeypatch)
    folder = write_dataset(folders["nnUNet_raw"], 501, shape=(8, 10, 9), cases=2)
    write_fingerprint(folder, [(8, 10, 9)] * 2, [(1.0, 1.0, 1.0)] * 2)
    plans = planner_class("FMPlanner_stunet_s")(501, 40).plan_experiment()
    assert [check.state for check in training_data("Dataset501_Blobs")] == ["ok"]
    spoiled(folder, lambda image: image.SetOrigin((0.4, 0, 0)))
    planner_class("FMPlanner_stunet_s")(501)
    assert "WARNING: label map of case_01: it lies 0.4 voxels off" in capsys.readouterr().err
    assert [check.state for check in training_data("Dataset501_Blobs")] == ["note"]
    spoiled(folder, lambda image: image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1)))
    with fails("grid-differs", "case_01", "CopyInformation"):
        planner_class("FMPlanner_stunet_s")(501)
    (found,) = training_data("Dataset501_Blobs")
    assert found.state == "problem" and "case_01: its axis x" in found.detail
    with fails("grid-differs", "case_01"):
        FMPreprocessor().run(501, "3d_fullres", plans["plans_name"], 1)


def test_further_channels_and_readers(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, 501, shape=(8, 10, 9), cases=2)
    cases = cases_of(folder)
    spoiled(folder, lambda image: image.SetOrigin((50, 0, 0)))
    assert check_grids(cases, "Tiff3DIO") == []
    cases["case_00"]["images"].append(cases.pop("case_01")["label"])
    with fails("grid-differs", "0001", "case_00", "50"):
        check_grids(cases, "SimpleITKIO")


def test_a_reader_that_turns_images_compares_them_turned(tmp_path: Path) -> None:
    """The same voxels in another order, by a header that says so, are the same image to such a reader."""
    rng = np.random.default_rng(0)
    affine = np.array([[-0.8, 0, 0, 90], [0, 0, 2, -70], [0, 0.9, 0, 30], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(rng.normal(size=(6, 7, 8)).astype(np.float32), affine)
    nib.save(image, tmp_path / "i.nii.gz")
    nib.save(nib.as_closest_canonical(image), tmp_path / "l.nii.gz")
    cases = {"a": {"images": [str(tmp_path / "i.nii.gz")], "label": str(tmp_path / "l.nii.gz")}}
    assert _grid(cases["a"]["images"][0], "SimpleITKIO") != _grid(cases["a"]["label"], "SimpleITKIO")
    assert check_grids(cases, "NibabelIOWithReorient") == []
    moved = nib.Nifti1Image(np.zeros((6, 8, 7), np.uint8), nib.as_closest_canonical(image).affine + np.eye(4, k=3) * 99)
    nib.save(moved, tmp_path / "l.nii.gz")
    with fails("grid-differs"):
        check_grids(cases, "NibabelIOWithReorient")


@pytest.mark.parametrize(("reader", "certain"), [("SimpleITKIO", False), ("NibabelIOWithReorient", True)])
def test_a_header_that_tells_no_place_is_no_certain_misfit(reader: str, certain: bool, tmp_path: Path) -> None:
    """Many programs write label maps without orientation; readers that turn images turn these otherwise."""
    files = {"images": [str(tmp_path / "i.nii.gz")], "label": str(tmp_path / "l.nii.gz")}
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -90, -120, -60
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), affine), files["images"][0])
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), None), files["label"])
    if certain:
        with fails("grid-differs"):
            check_grids({"a": files}, reader)
        return
    (warning,) = check_grids({"a": files}, reader)
    assert "label map of a: only one of both headers tells" in warning
    stretched = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), None)
    stretched.header.set_zooms((1.0, 1.0, 3.0))
    nib.save(stretched, files["label"])
    with fails("grid-differs"):
        check_grids({"a": files}, reader)
