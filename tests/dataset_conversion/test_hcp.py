"""HCP: FreeSurfer's numbers above 255 and their surprising groups, zips, positions of the split, HDF5 files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion import get_converter
from nnunet_fm.dataset_conversion.tree import open_tree
from tests.helpers.brain_files import CLASSES, GROUPS, brain, write_flat
from tests.helpers.convert_tester import ConverterTester, Fault, edit, label_voxels, verify, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

IDS = ("100206", "100307", "100408")
SPACING, ORIGIN = (0.7, 0.7, 0.7), (90.0, -126.0, -72.0)
DIRECTION = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
FLAT = "brain/hcp/data_{}_2d_size_256_256_depth_256_res_0.7_0.7_from_{}_to_{}.hdf5"


class TestHCP(ConverterTester):
    name = "hcp"
    variants = ("unpacked", "zips")
    image = "100307/T1w/T1w_acpc_dc_restore_brain.nii.gz"
    label = "100307/T1w/aparc+aseg.nii.gz"
    case = "hcp_100307"
    slice_axis = 1
    illegal: ClassVar = (
        {"domain": "flair"},
        {"labels": "lumbar"},
        {"split": "no_such_file.json"},
        {"skull_strip": "no_such_folder"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        expected = {}
        for number in IDS:
            folder = root / number / "T1w"
            image, label, classes = brain(int(number))
            expected[f"hcp_{number}"] = voxels(classes)
            other = np.where(label >= 1000, label + 10100, label)  # a2009s
            for name, array in {
                "T1w_acpc_dc_restore_brain": image,
                "T2w_acpc_dc_restore_brain": 300 - image,
                "T1w_acpc_dc_restore": image + 1,
                "T1wDividedByT2w_brain": image / 2,
                "brainmask_fs": (label > 0).astype(np.uint8),
                "aparc+aseg": label,
                "aparc.a2009s+aseg": other,
            }.items():
                write_volume(folder / f"{name}.nii.gz", array, SPACING, ORIGIN, DIRECTION)
            if variant == "zips":
                shutil.make_archive(str(root / f"{number}_3T_Structural_preproc"), "zip", root, number)
                shutil.rmtree(root / number)
        return expected

    def second_file(self, root: Path) -> Fault:
        copy = root / "copy" / self.label
        copy.parent.mkdir(parents=True)
        shutil.copy(root / self.label, copy)
        return Fault(root, "aparc+aseg.nii.gz", "file-twice")

    def foreign_label(self, root: Path) -> Fault:
        """Unlisted numbers are background; but none of FreeSurfer's has seven digits."""

        def foreign(array: np.ndarray) -> np.ndarray:
            array = array.astype(np.int32)
            array[0, 0, 0] = 5_000_000
            return array

        edit(root / self.label, foreign)
        return Fault(root, Path(self.label).name, "labels-range", "0 to 5000000")

    def test_classes_and_geometry(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "zips")
        folder = self.convert(tmp_path / "source", tmp_path / "raw").folder
        assert folder is not None and folder.name == "Dataset501_HCP_T1"
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["labels"] == {name: number for number, name in enumerate(CLASSES)}
        assert content["channel_names"] == {"0": "T1w"}
        image, _, classes = brain(100307)
        written = sitk.ReadImage(folder / "labelsTr" / "hcp_100307.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(written), classes)
        np.testing.assert_allclose(written.GetOrigin(), ORIGIN, atol=1e-4)
        assert written.GetDirection() == DIRECTION
        values = sitk.GetArrayFromImage(sitk.ReadImage(folder / "imagesTr" / "hcp_100307_0000.nii.gz"))
        assert np.array_equal(values, image)

    def test_both_sequences_have_the_same_labels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = self.make_tree(tmp_path / "source", "zips")
        folder = self.convert(tmp_path / "source", tmp_path / "raw", options={"domain": "t2"}).folder
        assert folder is not None and folder.name == "Dataset501_HCP_T2" and label_voxels(folder) == expected
        verify(folder, monkeypatch)
        assert json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["channel_names"] == {"0": "T2w"}
        image, _, _ = brain(100307)
        values = sitk.GetArrayFromImage(sitk.ReadImage(folder / "imagesTr" / "hcp_100307_0000.nii.gz"))
        assert np.array_equal(values, 300 - image)
        abide = get_converter("abide")
        assert {k: t.names for k, t in abide.label_sets.items()} == {
            k: t.names for k, t in self.converter.label_sets.items()
        }

    @pytest.mark.parametrize("value", [3001, 11135, 1 << 16, 200])
    def test_unlisted_numbers_become_background_with_a_warning(self, value: int, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path / "source", "unpacked")

        def change(share: float) -> None:
            def some(array: np.ndarray) -> np.ndarray:
                array = array.astype(np.int32)
                places = np.flatnonzero(array == 0)[: int(share * np.count_nonzero(array))]
                array.reshape(-1)[places] = value
                return array

            edit(tmp_path / "source" / self.label, some)

        change(0.1)
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and label_voxels(report.folder) == expected
        (warning,) = [note for note in report.notes if "warning" in note]
        assert warning.startswith(self.case) and "% of the labelled voxels become background" in warning

    def test_few_unlisted_numbers_are_no_reason_to_warn(self, tmp_path: Path) -> None:
        """One of 400 labelled voxels."""
        label = np.full((4, 10, 10), 1035, np.int16)
        label[0, 0, 0] = 3001
        for name, array in (("T1w_acpc_dc_restore_brain", label), ("aparc+aseg", label)):
            write_volume(tmp_path / "source" / "100206" / "T1w" / f"{name}.nii.gz", array)
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert [note for note in report.notes if "0.25 % of voxels" in note and "[3001]" in note]
        assert not [note for note in report.notes if "warning" in note]

    @pytest.mark.parametrize("how", ["8 bit", "a2009s"])
    def test_a_label_file_without_the_cortex_is_refused(self, how: str, tmp_path: Path) -> None:
        """1035 in 8 bit is 11, the caudate nucleus."""
        self.make_tree(tmp_path / "source", "unpacked")
        file = tmp_path / "source" / self.label
        if how == "8 bit":
            edit(file, lambda array: array.astype(np.uint8))
        else:
            shutil.copy(file.with_name("aparc.a2009s+aseg.nii.gz"), file)
        with fails("atlas-other", "aseg.nii.gz"):
            self.convert(tmp_path / "source", tmp_path / "raw")

    @pytest.mark.parametrize("split", ["official", "thesis"])
    def test_the_split_goes_by_position(self, split: str, tmp_path: Path) -> None:
        """A subject that cannot be converted keeps its position; T2 has the same subjects."""
        numbers = [str(100000 + 7 * i) for i in range(72)]
        for number in numbers:
            for name in ("T1w_acpc_dc_restore_brain", "T2w_acpc_dc_restore_brain", "aparc+aseg"):
                file = tmp_path / "source" / number / "T1w" / f"{name}.nii.gz"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        (tmp_path / "source" / numbers[3] / "T1w" / "aparc+aseg.nii.gz").unlink()
        for domain in ("t1", "t2"):
            options = self.converter.options(domain=domain, split=split)
            listing = self.converter.cases(open_tree(tmp_path / "source", tmp_path), options)
            chosen = self.converter.split(split, listing.cases)
            train, val, test = (
                [f"hcp_{n}" for n in numbers[part]] for part in (slice(20), slice(20, 25), slice(50, 70))
            )
            del train[3]
            assert (chosen.train, chosen.val, chosen.test) == (tuple(train), tuple(val), tuple(test))
            assert "27 of 72 subjects are in no part of the published split" in listing.notes
        assert {
            c.part
            for c in self.converter.cases(open_tree(tmp_path / "source", tmp_path), self.converter.options()).cases
        } == {"train"}
        for number in numbers[69:]:
            shutil.rmtree(tmp_path / "source" / number)
        with fails("split-published", "70", "69"):
            self.convert(tmp_path / "source", tmp_path / "raw", options={"split": split})

    def test_hdf5_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Volumes of their own lengths, parts by the numbers in the files' names, no orientation claimed."""
        source = tmp_path / "source"
        counts = (3,) * 10 + (5,) * 10
        volumes = {}
        for start, slices in ((0, counts), (20, (6, 7, 8, 9, 10)), (50, counts[::-1])):
            parts = write_flat(source / FLAT.format("T1", start, start + len(slices)), start, slices)
            volumes |= {f"hcp_{i:03d}": part for i, part in enumerate(parts, start)}
        write_flat(source / FLAT.format("T2", 0, 20), 99, counts)
        write_flat(source / FLAT.format("T1", 0, 10).replace("hcp", "abide/caltech"), 98, counts[:10])
        report = self.convert(source, tmp_path / "raw", options={"split": "thesis"})
        folder = report.folder
        assert folder is not None and (report.layout, report.training, report.test) == ("hdf5", 25, 20)
        assert label_voxels(folder) == volumes
        record = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
        assert record["slice_axis"] == 0 and record["reader"] == "SimpleITKIO"
        assert record["split"]["val"] == [f"hcp_{i:03d}" for i in range(20, 25)]
        assert any("no orientation" in note for note in report.notes)
        assert (
            json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))[0]["val"] == record["split"]["val"]
        )
        verify(folder, monkeypatch)
        with h5py.File(source / FLAT.format("T1", 0, 20)) as file:
            image, label = file["images"][30:35], file["labels"][30:35]  # the eleventh volume, after ten of three
        written = sitk.ReadImage(folder / "imagesTr" / "hcp_010_0000.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(written), image)
        np.testing.assert_allclose(written.GetSpacing(), (0.7, 0.7, np.linspace(0.7, 1.5, 20)[10]), rtol=1e-6)
        assert np.array_equal(np.abs(np.reshape(written.GetDirection(), (3, 3))), np.eye(3))
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(folder / "labelsTr" / "hcp_010.nii.gz")), label)
        assert self.convert(source, None, dry_run=True).test == 20
        assert self.convert(source, None, dry_run=True, options={"domain": "t2"}).training == 20
        assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "T1w_0_to_1"}
        for options in ({"thesis": True}, {"n4": True}, {"skull_strip": "labels"}):
            with fails("images-preprocessed"):
                self.convert(source, None, dry_run=True, options=options)

    def test_hdf5_files_with_a_volume_in_each_row(self, tmp_path: Path) -> None:
        rows = np.random.default_rng(0).integers(0, 15, (20, 3, 8, 9), np.uint8)
        changes = {"images": rows.astype(np.float32), "labels": rows}
        write_flat(tmp_path / "source" / FLAT.format("T2", 0, 20), 0, (3,) * 20, **changes)
        with fails("domain-other", "t2", "t1", "--domain"):
            self.convert(tmp_path / "source", tmp_path / "raw")
        folder = self.convert(tmp_path / "source", tmp_path / "raw", options={"domain": "t2"}).folder
        assert folder is not None
        assert label_voxels(folder) == {f"hcp_{i:03d}": voxels(row) for i, row in enumerate(rows)}

    def test_hdf5_files_that_do_not_add_up(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        write_flat(source / FLAT.format("T1", 0, 20), 0, (3,) * 20, nz=np.full(20, 4, np.uint16))
        write_flat(source / FLAT.format("T1", 20, 25), 0, (3,) * 4)
        write_flat(source / FLAT.format("T1", 50, 70), 0, (3,) * 20)
        write_flat(source / "copy" / FLAT.format("T1", 50, 70), 0, (3,) * 20)
        report = self.convert(source, None, dry_run=True)
        assert {problem.file: problem.code for problem in report.problems} == {
            FLAT.format("T1", 0, 20): "hdf5-counts",
            FLAT.format("T1", 20, 25): "hdf5-counts",
            "copy/" + FLAT.format("T1", 50, 70): "case-twice",
        }

    def test_the_thesis_preprocessing(self, tmp_path: Path) -> None:
        """Coronal slices, 256 of 256 x 256 pixels; intensities 0 to 1; nothing is stripped, for HCP is."""
        image, label, _ = brain(0)
        converter = self.converter
        assert converter.options(thesis=True) == replace(
            converter.options(), thesis=True, n4=True, split=None, skull_strip="no"
        )
        for number in IDS[:1]:
            for name, array in (("T1w_acpc_dc_restore_brain", image), ("aparc+aseg", label)):
                write_volume(tmp_path / "source" / number / "T1w" / f"{name}.nii.gz", array, SPACING, ORIGIN, DIRECTION)
        report = self.convert(tmp_path / "source", tmp_path / "raw", options={"thesis": True, "n4": False})
        assert report.folder is not None
        written = sitk.ReadImage(report.folder / "imagesTr" / "hcp_100206_0000.nii.gz")
        array = sitk.GetArrayFromImage(written)
        assert array.shape == (256, 256, 256) and written.GetSpacing() == pytest.approx(SPACING)
        low, high = np.percentile(image, (1, 99))
        middle = array[123:133, 122:134, 121:135]  # of 10 x 12 x 14 voxels, which keep their places
        np.testing.assert_allclose(middle, np.clip((image - low) / (high - low), 0, 1), atol=1e-5)
        mapped = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "hcp_100206.nii.gz"))
        assert voxels(mapped) == voxels(brain(0)[2])
        assert json.loads((report.folder / "dataset.json").read_text())["channel_names"] == {"0": "T1w_0_to_1"}


def test_all_groups_are_tested() -> None:
    """The table in the tests covers what the package's has, apart from the cortex's other regions."""
    values = get_converter("hcp").label_sets["default"].values
    assert set(GROUPS) == {value for value in values if value in GROUPS or not 1000 <= value <= 2999} - {0}
