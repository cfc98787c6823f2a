"""MRSpineSeg: numbers against VerSe's order, cases numbered over three folders, re-labelled copies, PNG slices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion import get_converter
from tests.helpers.convert_tester import ConverterTester, Fault, scene, truncate, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)
"""Direction of slices stored last: x to posterior, y to inferior, z to the left."""

LUMBAR = {6: 1, 5: 2, 4: 3, 3: 4, 2: 5}
RELABELLED = {1: 1, 3: 2, 5: 3, 7: 4, 9: 5}
GEOMETRY = ((0.8, 0.8, 4.4), (-20.0, -100.0, 150.0), SAGITTAL)


def mapped(label: np.ndarray, table: dict[int, int]) -> dict[int, int]:
    return {table[value]: count for value, count in voxels(label).items() if value in table}


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8), isVector=array.ndim == 3), path)


class TestMRSpineSeg(ConverterTester):
    name = "mrspineseg"
    variants = ("official", "paddle", "relabelled", "relabelled_img", "png")
    image = "MRSpineSeg_Challenge_SMU/train/MR/Case10.nii.gz"
    label = "MRSpineSeg_Challenge_SMU/train/Mask/mask_case10.nii.gz"
    case = "Case10"
    slice_axis = 2
    illegal: ClassVar = (
        {"domain": "t2"},
        {"labels": "thesis"},
        {"split": "thesis"},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        expected = {}
        if variant == "png":
            for number, part in (("1", "train"), ("2", "train"), ("17", "val"), ("96", "test")):
                image, label = scene(int(number), (1, 2, 3, 4, 5), (3, 8, 8))
                folder = root / "lumbarspine/MRSpineSegV"
                for z in range(len(image)):
                    write_png(folder / f"images/{part}/{number}_{z:04d}.png", image[z] + 100)
                    write_png(folder / f"labels/{part}/{number}_{z:04d}_labelTrainIds.png", label[z])
                    colours = np.repeat(label[z, ..., None], 3, axis=-1)
                    write_png(folder / f"labels/{part}/{number}_{z:04d}.png", colours)
                expected[number] = voxels(label)
            return expected
        paths = {
            "official": ("MRSpineSeg_Challenge_SMU/train/MR/Case{}", "MRSpineSeg_Challenge_SMU/train/Mask/mask_case{}"),
            "paddle": ("MRI_train/train/MR/Case{}", "MRI_train/train/Mask/mask_case{}"),
            "relabelled": ("MRSpineSeg_{}_0000", "MRSpineSeg_mask_{}"),
            "relabelled_img": ("img_{}_t2", "img_{}_seg"),
        }[variant]
        table = LUMBAR if variant in ("official", "paddle") else RELABELLED
        for number in (1, 2, 10, 172):
            image, label = scene(number, tuple(range(1, 20)), (6, 14, 10))
            for path, array in zip(paths, (image, label.astype(np.uint8)), strict=True):
                write_volume(root / f"{path.format(number)}.nii.gz", array, *GEOMETRY)
            expected[f"Case{number}"] = mapped(label, table)
        if variant == "official":
            image, label = scene(96, tuple(range(1, 20)), (6, 14, 10))
            write_volume(root / "MRSpineSeg_Challenge_SMU/test1/MR/Case96.nii.gz", image, *GEOMETRY)
            write_volume(root / "MRSpineSeg_Challenge_SMU/test1/Mask/mask_case96.nii.gz", label, *GEOMETRY)
            expected["Case96"] = mapped(label, table)
        return expected

    def test_every_layout_converts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        *volumes, slices = self.variants
        self.variants, self.slice_axis = tuple(volumes), 2  # type: ignore[misc]
        super().test_every_layout_converts(tmp_path / "volumes", monkeypatch)
        self.variants, self.slice_axis = (slices,), 0  # type: ignore[misc]
        super().test_every_layout_converts(tmp_path / "slices", monkeypatch)

    def missing_label(self, root: Path) -> Fault:
        (root / self.label).unlink()
        return Fault(root, Path(self.image).name, "labels-missing")

    def test_it_has_a_second_name(self) -> None:
        assert get_converter("MRSegV").name == "mrspineseg"

    def test_lumbar_labels_are_those_of_verse(self, tmp_path: Path) -> None:
        """ImageSource: upwards from L5 (2) to L1 (6)."""
        assert self.converter.label_sets["lumbar"].names == get_converter("verse").label_sets["lumbar"].names
        self.make_tree(tmp_path / "source", "official")
        folder = self.convert(tmp_path / "source", tmp_path / "raw").folder
        assert folder is not None
        _, label = scene(10, tuple(range(1, 20)), (6, 14, 10))
        written = sitk.GetArrayFromImage(sitk.ReadImage(folder / "labelsTr/Case10.nii.gz"))
        assert np.array_equal(written == 1, label == 6) and np.array_equal(written == 5, label == 2)
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["labels"] == {"background": 0, "L1": 1, "L2": 2, "L3": 3, "L4": 4, "L5": 5}
        assert content["channel_names"] == {"0": "T2"}

    def test_all_structures(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "official")
        folder = self.convert(tmp_path / "source", tmp_path / "raw", options={"labels": "full"}).folder
        assert folder is not None
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert len(content["labels"]) == 20
        assert [content["labels"][name] for name in ("sacrum", "L5", "T9", "L5/S1", "T9/T10")] == [1, 2, 10, 11, 19]
        _, label = scene(10, tuple(range(1, 20)), (6, 14, 10))
        written = sitk.GetArrayFromImage(sitk.ReadImage(folder / "labelsTr/Case10.nii.gz"))
        assert np.array_equal(written, label)

    def test_numbers_are_shared_by_the_folders(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "official")
        root = tmp_path / "MRSpineSeg_Challenge_SMU"
        (root / "test1/Mask/mask_case96.nii.gz").unlink()
        image, _ = scene(200, (1,), (6, 14, 10))
        write_volume(root / "test2/MR/Case200.nii.gz", image, *GEOMETRY)
        report = self.convert(tmp_path, tmp_path / "raw")
        assert report.folder is not None and (report.training, report.test) == (4, 2)
        names = sorted(path.name for path in (report.folder / "imagesTs").iterdir())
        assert names == ["Case200_0000.nii.gz", "Case96_0000.nii.gz"]
        assert list((report.folder / "labelsTs").iterdir()) == []
        shutil.copy(root / "test2/MR/Case200.nii.gz", root / "test2/MR/Case1.nii.gz")
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.case == "1" and problem.code == "file-twice"

    def test_a_case_without_a_lumbar_vertebra_is_left_out(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "official")
        image, label = scene(3, (7, 8, 17), (6, 14, 10))
        write_volume(tmp_path / "MRSpineSeg_Challenge_SMU/train/MR/Case3.nii.gz", image, *GEOMETRY)
        write_volume(tmp_path / "MRSpineSeg_Challenge_SMU/train/Mask/mask_case3.nii.gz", label, *GEOMETRY)
        report = self.convert(tmp_path, None, dry_run=True)
        assert report.left_out == {"Case3": "shows no lumbar vertebra, only labels 7, 8, 17"}

    def test_copies_with_other_numbers(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "relabelled_img")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None
        assert any("1, 3, 5, 7, 9 are taken to be L1 to L5" in note for note in report.notes)
        record = json.loads((report.folder / "conversion.json").read_text(encoding="utf-8"))
        assert record["labels"]["from_source"] == {str(value): number for value, number in {0: 0, **RELABELLED}.items()}
        with fails("labels-option", "--labels"):
            self.convert(tmp_path / "source", None, dry_run=True, options={"labels": "full"})

    def test_slices(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "png")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and (report.training, report.test) == (3, 1)
        content = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["channel_names"] == {"0": "T2_0_to_255"}
        folds = json.loads((report.folder / "splits_final.json").read_text(encoding="utf-8"))
        assert folds[0] == {"train": ["1", "2"], "val": ["17"]}
        labels = tmp_path / "source/lumbarspine/MRSpineSegV/labels/train"
        (labels / "1_0001.png").replace(labels / "1_0001_labelTrainIds.png")
        truncate(labels / "2_0001_labelTrainIds.png")
        problems = {problem.case: problem for problem in self.convert(tmp_path / "source", None, dry_run=True).problems}
        assert problems["1"].code == "image-colour" and problems["2"].code == "image-cut-off"

    def test_thesis_cuts_slices_about_the_spine(self, tmp_path: Path) -> None:
        label = np.zeros((4, 300, 20), np.uint8)  # left, inferior, posterior: slices of 240 x 16 mm
        label[1:3, 250:290, 5:15] = 6
        image = np.random.default_rng(0).normal(100, 30, label.shape).astype(np.float32) + 500 * (label == 6)
        folder = tmp_path / "source/train"
        write_volume(folder / "MR/Case1.nii.gz", image, *GEOMETRY)
        write_volume(folder / "Mask/mask_case1.nii.gz", label, *GEOMETRY)
        write_volume(tmp_path / "source/test1/MR/Case2.nii.gz", image, *GEOMETRY)
        options = {"thesis": True, "n4": False}
        report = self.convert(tmp_path / "source", tmp_path / "raw", options=options)
        assert report.folder is not None and (report.training, report.test) == (1, 1)
        written = sitk.ReadImage(report.folder / "imagesTr/Case1_0000.nii.gz")
        found = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr/Case1.nii.gz"))
        assert written.GetSize() == (256, 256, 4) and written.GetSpacing() == pytest.approx((0.7, 0.7, 4.4))
        assert found.any(axis=(1, 2)).tolist() == [False, True, True, False]
        rows = found.any(axis=(0, 2)).nonzero()[0]
        assert len(rows) == pytest.approx(40 * 0.8 / 0.7, abs=1) and abs((rows[0] + rows[-1]) / 2 - 127.5) <= 1
        # Without labels, about the middle of the image, whose 240 mm are cut to 179 mm.
        unlabelled = sitk.ReadImage(report.folder / "imagesTs/Case2_0000.nii.gz")
        assert unlabelled.GetSize() == (256, 256, 4)
        array = sitk.GetArrayFromImage(unlabelled)[1]
        assert array.any(axis=1).all() and array.any(axis=0).sum() == pytest.approx(16 / 0.7, abs=2)
        assert self.converter.options(thesis=True).n4
