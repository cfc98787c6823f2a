"""USZ: flat HDF5 files with float labels, numbers above 2, folders of patients with several labellers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion import get_converter
from tests.helpers.convert_tester import ConverterTester, Fault, edit, scene, truncate, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

VOLUMES = {"40_to_68": (4, 5), "20_to_40": (3,), "0_to_20": (4,)}


def path_of(span: str, labeller: str = "ek") -> str:
    return f"pirad_erc/data_2d_from_{span}_size_256_256_res_0.625_0.625_{labeller}.hdf5"


def write_hdf5(path: Path, scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(scenes)
    with h5py.File(path, "w") as file:
        file["images"] = np.concatenate([image for image, _ in scenes]).astype(np.float32) / 400 + 0.5
        file["labels"] = np.concatenate([label for _, label in scenes]).astype(np.float32)
        file["nz"] = np.array([len(image) for image, _ in scenes], np.uint16)
        for name in ("nx", "ny"):
            file[name] = np.full(count, 320, np.uint16)
        for name in ("px", "py"):
            file[name] = np.full(count, 0.5, np.float32)
        file["pz"] = np.full(count, 3.6, np.float32)
        file["patnames"] = np.array([f"pat_{i}".encode() for i in range(count)])


class TestUSZ(ConverterTester):
    name = "usz"
    variants = ("patients", "hdf5")
    image = "usz/pat_17/t2_tse_tra.nii.gz"
    label = "usz/pat_17/segmentation_tra_ek.nii.gz"
    case = "pat_17"
    slice_axis = 0
    illegal: ClassVar = (
        {"domain": "t2"},
        {"labels": "lumbar"},
        {"split": "official"},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        expected = {}
        if variant == "hdf5":
            for span, counts in VOLUMES.items():
                first = int(span.split("_")[0])
                scenes = [scene(first + i, (1, 2, 3), (n, 8, 8)) for i, n in enumerate(counts)]
                write_hdf5(root / path_of(span), scenes)
                for i, (_, label) in enumerate(scenes):
                    expected[f"usz_{first + i:02d}"] = {v: n for v, n in voxels(label).items() if v < 3}
            return expected
        for number, stem in ((3, "segmentation_ek"), (17, "segmentation_tra_ek"), (20, "segmentation_ek")):
            image, label = scene(number, (1, 2, 3, 7), (6, 8, 10))
            folder = root / f"usz/pat_{number}"
            for name in ("t2_tse_tra", "t2_tse_tra_n4"):
                write_volume(folder / f"{name}.nii.gz", image, (0.5, 0.5, 3.6))
            write_volume(folder / f"{stem}.nii.gz", label.astype(np.float32), (0.5, 0.5, 3.6))
            write_volume(folder / "segmentation_kc.nii.gz", label[::-1], (0.5, 0.5, 3.6))
            expected[f"pat_{number}"] = {v: n for v, n in voxels(label).items() if v < 3}
        return expected

    def foreign_label(self, root: Path) -> Fault:
        """Numbers above 2 are background by the dataset's rule; others are not."""

        def foreign(array: np.ndarray) -> np.ndarray:
            array[0, 0, 0] = -1
            return array

        edit(root / self.label, foreign)
        return Fault(root, Path(self.label).name, "labels-range", "-1")

    def second_file(self, root: Path) -> Fault:
        fault = super().second_file(root)
        (root / "copy" / self.label).rename(root / "usz/pat_17/segmentation_ek.nii.gz")
        return fault._replace(file="segmentation_ek.nii.gz")

    def test_labels_are_those_of_nci(self) -> None:
        assert self.converter.table(self.converter.options()).names == get_converter("nci").label_sets["default"].names

    def test_numbers_above_two_are_background(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "patients")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and report.training == 3
        _, label = scene(17, (1, 2, 3, 7), (6, 8, 10))
        written = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr/pat_17.nii.gz"))
        assert np.array_equal(written, np.where(label > 2, 0, label)) and written.dtype == np.uint8
        assert any("pat_17" in note and note.endswith("are not listed: [3, 7]") for note in report.notes)
        assert any(note.startswith("t2_tse_tra_n4.nii.gz is not used") for note in report.notes)
        folds = json.loads((report.folder / "splits_final.json").read_text(encoding="utf-8"))
        assert len(folds) == 3

    def test_the_files_are_the_split(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "hdf5")
        # The other labeller's file of the same volumes is none of this dataset's.
        write_hdf5(tmp_path / "source" / path_of("0_to_20", "kc"), [scene(0, (1,), (4, 8, 8))])
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and (report.training, report.test) == (3, 1)
        folds = json.loads((report.folder / "splits_final.json").read_text(encoding="utf-8"))
        assert folds[0] == {"train": ["usz_40", "usz_41"], "val": ["usz_20"]}
        image = sitk.ReadImage(report.folder / "imagesTr/usz_41_0000.nii.gz")
        expected, _ = scene(41, (1, 2, 3), (5, 8, 8))
        assert np.array_equal(sitk.GetArrayFromImage(image), expected.astype(np.float32) / 400 + 0.5)
        assert image.GetSpacing() == pytest.approx((0.625, 0.625, 3.6))
        content = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["channel_names"] == {"0": "T2_0_to_1"}
        assert content["overwrite_image_reader_writer"] == "SimpleITKIO"
        with fails("images-preprocessed", "--thesis"):
            self.convert(tmp_path / "source", None, dry_run=True, options={"thesis": True})

    @pytest.mark.parametrize(
        ("damage", "rule"),
        [
            (lambda path: truncate(path), "cannot be read as HDF5"),
            (lambda path: change(path, lambda file: file["nz"].__setitem__(0, 6)), "add up to 11 slices"),
            (lambda path: change(path, lambda file: file["labels"].__setitem__((0, 0, 0), 0.5)), "has fractions"),
            (lambda path: change(path, lambda file: file["labels"].__setitem__((0, 0, 0), np.nan)), "NaN"),
            (
                lambda path: change(path, lambda file: file["images"].__setitem__((0, 0, 0), np.inf)),
                "1 voxels that are",
            ),
            (lambda path: change(path, lambda file: file["labels"].__setitem__(slice(0, 4), 3)), "the mask is empty"),
            (lambda path: change(path, lambda file: file.__delitem__("labels")), "has no 'labels'"),
            (lambda path: path.rename(str(path).replace("40_to_68", "30_to_68")), "begins with volume 30"),
        ],
    )
    def test_a_damaged_file_is_named(self, damage: Callable[[Path], None], rule: str, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "hdf5")
        damage(tmp_path / path_of("40_to_68"))
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.file.startswith("pirad_erc/data_2d_from_") and rule in problem.rule


def change(path: Path, how: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "a") as file:
        how(file)
