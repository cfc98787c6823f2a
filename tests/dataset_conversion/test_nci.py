"""NCI-ISBI 2013: DICOM series, labels on grids of their own, three odd cases, HDF5 files with all splits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.tree import open_tree
from tests.helpers.convert_tester import ConverterTester, Fault, edit, scene, truncate, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

SPACING, ORIGIN = (0.5, 0.5, 3.0), (-40.0, 12.5, -70.0)
SHAPE = (6, 8, 10)
PATIENTS = (
    "Prostate3T-01-0001",
    "Prostate3T-01-0002",
    "Prostate3T-02-0001",
    "ProstateDx-01-0006",
    "ProstateDx-01-0055",
)

FOLDERS = {
    "tcia": ("manifest-1/Prostate-3T/{}/STUDY/SERIES", "manifest-1/PROSTATE-DIAGNOSIS/{}/STUDY/SERIES"),
    "eth_tree": ("Prostate-3T/Images/{}/STUDY/SERIES", "PROSTATE-DIAGNOSIS/Images/{}/STUDY/SERIES"),
}
LABELS = {
    "tcia": ("{}/Prostate", "{}/Prostate"),
    "eth_tree": ("NCI_ISBI_Challenge-Prostate3T_{}_Segmentations/Prostate", "PROSTATE-DIAGNOSIS/Labels/Prostate"),
}


def write_series(
    folder: Path, array: np.ndarray, description: str = "t2_tse_tra", orientation: str = "1\\0\\0\\0\\1\\0"
) -> None:
    """A DICOM series whose files are named and numbered from the head downwards, against the slices' direction."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    cosines = np.array([float(number) for number in orientation.split("\\")]).reshape(2, 3)
    normal = np.cross(*cosines)
    for z, section in enumerate(array):
        image = sitk.GetImageFromArray(section[None])
        image.SetSpacing(SPACING)
        position = np.array(ORIGIN) + z * SPACING[2] * normal
        for tag, value in {
            "0008|0060": "MR",
            "0008|103e": description,
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": orientation,
            "0020|0013": str(len(array) - z),
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{len(array) - z:02d}.dcm"))
        writer.Execute(image)


def write_hdf5(path: Path, splits: dict[str, tuple[int, ...]], suffix: bool = True) -> dict[str, dict[int, int]]:
    """A flat file of 8 x 8 pixels: split -> slices of each volume; ``nx`` and ``px`` are those before rescaling."""
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = {}
    with h5py.File(path, "w") as file:
        for number, (split, counts) in enumerate(splits.items()):
            end = f"_{split}" if suffix else ""
            scenes = [scene(10 * number + i, (1, 2), (count, 8, 8)) for i, count in enumerate(counts)]
            file[f"images{end}"] = np.concatenate([image for image, _ in scenes]).astype(np.float32) / 200 + 0.5
            file[f"masks{end}" if suffix else "labels"] = np.concatenate([label for _, label in scenes]).astype(
                np.uint8
            )
            for name, values in {
                "nx": [320] * len(counts),
                "ny": [256] * len(counts),
                "nz": counts,
                "px": [0.5] * len(counts),
                "py": [0.5] * len(counts),
                "pz": [3.0 + 0.5 * i for i in range(len(counts))],
            }.items():
                file[name + end] = np.array(values, np.float32 if name[0] == "p" else np.uint16)
            file[f"patnames{end}"] = np.array([f"{number}{i:03d}".encode() for i in range(len(counts))])
            part = {"validation": "val"}.get(split, split)
            expected.update({f"nci_{part}_{i:02d}": voxels(label) for i, (_, label) in enumerate(scenes)})
    return expected


class TestNCI(ConverterTester):
    name = "nci"
    variants = ("tcia", "eth_tree", "three_files", "one_file")
    image = "manifest-1/Prostate-3T/Prostate3T-01-0001/STUDY/SERIES/1-03.dcm"
    label = "Training/Prostate3T-01-0001.nrrd"
    case = "Prostate3T-01-0001"
    slice_axis = 0
    illegal: ClassVar = (
        {"domain": "t2"},
        {"labels": "lumbar"},
        {"split": "random"},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
    )
    _written: ClassVar[dict[str, tuple[Path, dict[str, dict[int, int]]]]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _shared(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        """DICOM files take long to write: each layout is written once and copied."""
        for variant in FOLDERS:
            root = tmp_path_factory.mktemp(variant)
            cls._written[variant] = (root, cls.write_tree(root, variant))
        yield
        cls._written.clear()

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        if variant == "three_files":
            splits: dict[str, tuple[int, ...]] = {"train": (4, 5, 4), "val": (3,), "test": (4,)}
            expected = {}
            for split, counts in splits.items():
                expected.update(write_hdf5(root / f"nci/nci_{split}.hdf5", {split: counts}, suffix=False))
            return expected
        if variant == "one_file":
            path = root / "nci/data_2d_size_256_256_res_0.625_0.625_cv_fold_1.hdf5"
            return write_hdf5(path, {"train": (4, 5, 4), "validation": (3,), "test": (4,)})
        written, expected = self._written[variant]
        shutil.copytree(written, root, dirs_exist_ok=True)
        return expected

    @staticmethod
    def write_tree(root: Path, variant: str) -> dict[str, dict[int, int]]:
        expected = {}
        for number, patient in enumerate(PATIENTS):
            image, label = scene(number, (1, 2), SHAPE)
            diagnosis = patient.startswith("ProstateDx")
            write_series(root / FOLDERS[variant][diagnosis].format(patient), image)
            expected[patient] = voxels(label)
            folder = LABELS[variant][diagnosis].format("Leaderboard" if "-02-" in patient else "Training")
            path = Path(root, folder).parent / f"{patient}.nrrd"
            spacing, origin = SPACING, ORIGIN
            if patient.endswith("0006"):  # as the challenge corrected it
                path = path.with_name(f"{patient}_correctedLabels.nrrd")
            if patient.endswith("0055"):  # fewer slices than the image
                label, origin = label[1:-1], (*ORIGIN[:2], ORIGIN[2] + SPACING[2])
            if patient.endswith("0002"):  # pixels of half the size
                label = label.repeat(2, axis=1).repeat(2, axis=2)
                spacing, origin = (0.25, 0.25, 3.0), (ORIGIN[0] - 0.125, ORIGIN[1] - 0.125, ORIGIN[2])
            write_volume(path, label.astype(np.uint8), spacing, origin)
        return expected

    # Faults that a DICOM series shows otherwise

    def missing_image(self, root: Path) -> Fault:
        shutil.rmtree((root / self.image).parent)
        return Fault(root, Path(self.label).name, "images-missing")

    def missing_label(self, root: Path) -> Fault:
        return super().missing_label(root)._replace(file="Prostate3T-01-0001/STUDY/SERIES", code="labels-missing")

    def nan_in_the_image(self, root: Path) -> Fault:
        """DICOM pixels are whole numbers; a label may be NaN."""

        def spoiled(array: np.ndarray) -> np.ndarray:
            array = array.astype(np.float32)
            array[0, 0, 0] = np.nan
            return array

        edit(root / self.label, spoiled)
        return Fault(root, Path(self.label).name, "labels-not-finite")

    def truncated_image(self, root: Path) -> Fault:
        truncate(root / self.image)
        return Fault(root, "Prostate3T-01-0001/STUDY/SERIES", "dicom-damaged|dicom-series|image-damaged")

    # What is particular to this dataset

    def test_every_label_is_put_in_its_place(self, tmp_path: Path) -> None:
        """Files in the wrong order, fewer slices, finer pixels: the same voxels as on the image's own grid."""
        self.make_tree(tmp_path / "source", "tcia")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and (report.training, report.test) == (4, 1)
        for number, patient in enumerate(PATIENTS):
            image, label = scene(number, (1, 2), SHAPE)
            end = "Ts" if "-02-" in patient else "Tr"
            written = sitk.ReadImage(report.folder / f"images{end}/{patient}_0000.nii.gz")
            assert np.array_equal(sitk.GetArrayFromImage(written), image)
            assert written.GetSpacing() == pytest.approx(SPACING) and written.GetOrigin() == pytest.approx(ORIGIN)
            found = sitk.ReadImage(report.folder / f"labels{end}/{patient}.nii.gz")
            assert np.array_equal(sitk.GetArrayFromImage(found), label)
        notes = {
            note.split(":")[0]: note for note in report.notes if "by nearest neighbour in physical space (" in note
        }
        assert set(notes) == {"Prostate3T-01-0002", "ProstateDx-01-0055"}
        assert "size 10 x 8 x 4 against 10 x 8 x 6" in notes["ProstateDx-01-0055"]
        content = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["labels"] == {"background": 0, "peripheral_zone": 1, "central_gland": 2}
        assert content["channel_names"] == {"0": "T2"}

    def test_a_label_in_ras_space_is_read_as_such(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "tcia")
        _, label = scene(0, (1, 2), SHAPE)
        size = " ".join(map(str, SHAPE[::-1]))
        header = (
            f"NRRD0004\ntype: uchar\ndimension: 3\nspace: right-anterior-superior\nsizes: {size}\n"
            "space directions: (-0.5,0,0) (0,-0.5,0) (0,0,3)\nkinds: domain domain domain\nencoding: raw\n"
            f"space origin: ({-ORIGIN[0]},{-ORIGIN[1]},{ORIGIN[2]})\n\n"
        )
        (tmp_path / self.label).write_bytes(header.encode() + label.astype(np.uint8).tobytes())
        report = self.convert(tmp_path, tmp_path / "raw")
        assert report.folder is not None
        found = sitk.ReadImage(report.folder / "labelsTr" / f"{self.case}.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(found), label)
        assert not any(note.startswith(self.case) for note in report.notes)

    def test_corrected_labels_win(self, tmp_path: Path) -> None:
        expected = self.make_tree(tmp_path, "tcia")
        _, other = scene(99, (1, 2), SHAPE)
        write_volume(tmp_path / "Training/ProstateDx-01-0006.nrrd", other.astype(np.uint8), SPACING, ORIGIN)
        report = self.convert(tmp_path, tmp_path / "raw")
        assert report.folder is not None
        found = sitk.ReadImage(report.folder / "labelsTr" / "ProstateDx-01-0006.nii.gz")
        assert voxels(sitk.GetArrayFromImage(found)) == expected["ProstateDx-01-0006"]
        assert (
            "ProstateDx-01-0006: the corrected labels are used, Training/ProstateDx-01-0006.nrrd is not" in report.notes
        )

    def test_the_axial_t2_is_chosen_by_the_headers(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "tcia")
        study = tmp_path / "manifest-1/PROSTATE-DIAGNOSIS/ProstateDx-01-0006/STUDY"
        image, _ = scene(50, (1,), SHAPE)
        write_series(study / "A", image, "T1 AX")
        write_series(study / "B", image, "T2 SAG", "0\\1\\0\\0\\0\\-1")
        report = self.convert(tmp_path, tmp_path / "raw")
        assert report.folder is not None and report.training == 4
        written = sitk.ReadImage(report.folder / "imagesTr/ProstateDx-01-0006_0000.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(written), scene(3, (1, 2), SHAPE)[0])
        assert any(
            "of 3 series the axial T2 is used" in note and note.endswith("STUDY/SERIES") for note in report.notes
        )
        write_series(study / "C", image, "t2 tra")
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.code == "series-several" and "STUDY/" in problem.rule
        shutil.rmtree(study / "C")
        shutil.rmtree(study / "SERIES")
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.code == "series-missing" and "'T1 AX', 'T2 SAG'" in problem.rule

    def test_patients_without_labels(self, tmp_path: Path) -> None:
        """The collection has more patients than the challenge; test cases may lack labels."""
        self.make_tree(tmp_path, "tcia")
        write_series(tmp_path / FOLDERS["tcia"][0].format("Prostate3T-01-0031"), scene(0, (1,), SHAPE)[0])
        (tmp_path / "Leaderboard/Prostate3T-02-0001.nrrd").unlink()
        report = self.convert(tmp_path, tmp_path / "raw")
        assert report.folder is not None and (report.training, report.test) == (4, 1)
        assert "1 patients without labels are not used: Prostate3T-01-0031" in report.notes
        assert list((report.folder / "labelsTs").iterdir()) == []

    def test_a_slice_that_is_missing_is_noticed(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "tcia")
        (tmp_path / self.image).unlink()
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.code == "dicom-distances"

    def test_splits(self, tmp_path: Path) -> None:
        for number in (1, 15, 16, 20, 21, 30):
            folder = tmp_path / f"Prostate-3T/Prostate3T-01-{number:04d}/A"
            folder.mkdir(parents=True)
            (folder / "1.dcm").touch()
            (tmp_path / f"Prostate3T-01-{number:04d}.nrrd").touch()
        for patient in ("ProstateDx-01-0010", "Prostate3T-03-0001"):
            (tmp_path / patient).mkdir()
            (tmp_path / patient / "1.dcm").touch()
            (tmp_path / f"{patient}.nrrd").touch()
        listed = self.converter.cases(open_tree(tmp_path, tmp_path), self.converter.options()).cases
        thesis = self.converter.split("thesis", listed)
        assert [name[-4:] for name in thesis.train] == ["0001", "0015"]
        assert [name[-4:] for name in thesis.val] == ["0016", "0020"]
        assert [name[-4:] for name in thesis.test] == ["0021", "0030"]
        official = self.converter.split("official", listed)
        assert official.test == ("Prostate3T-03-0001",) and len(official.train) == 7 and official.val == ()

    def test_volumes_of_a_flat_file(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "one_file")
        for split in ("official", "thesis"):
            report = self.convert(tmp_path / "source", tmp_path / split, options={"split": split})
            assert report.folder is not None and (report.training, report.test, report.layout) == (4, 1, "hdf5")
            folds = json.loads((report.folder / "splits_final.json").read_text(encoding="utf-8"))
            assert folds[0]["val"] == ["nci_val_00"]
        content = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["channel_names"] == {"0": "T2_0_to_1"}
        assert content["overwrite_image_reader_writer"] == "SimpleITKIO"
        second = sitk.ReadImage(report.folder / "imagesTr/nci_train_01_0000.nii.gz")
        assert second.GetSize() == (8, 8, 5) and second.GetSpacing() == pytest.approx((0.625, 0.625, 3.5))
        assert any("are the patients 0000, 0001, 0002" in note for note in report.notes)
        with fails("images-preprocessed", "--thesis"):
            self.convert(tmp_path / "source", None, dry_run=True, options={"thesis": True})

    def test_a_file_with_slices_last(self, tmp_path: Path) -> None:
        path = tmp_path / "later.h5"
        (image, label), (image_2, label_2) = scene(0, (1, 2), (3, 8, 8)), scene(1, (1, 2), (4, 8, 8))
        image, label = np.concatenate([image, image_2]), np.concatenate([label, label_2])
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = np.moveaxis(image, 0, 2).astype(np.float32), np.moveaxis(label, 0, 2)
            file["depths"], file["pz"] = np.array([3, 4]), np.array([3.0, 3.0])
            file["subject_names"] = np.array([b"Prostate3T", b"Prostate3T"])
        report = self.convert(path, tmp_path / "raw")
        assert report.folder is not None and report.training == 2
        found = sitk.ReadImage(report.folder / "labelsTr/nci_train_01.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(found), label[3:])
        assert not any("are the patients" in note for note in report.notes)

    def test_files_that_do_not_add_up_or_are_too_many(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "one_file")
        self.make_tree(tmp_path, "three_files")
        write_hdf5(tmp_path / "pirad_erc/data_2d_from_0_to_20.hdf5", {"x": (4,)}, suffix=False)
        report = self.convert(tmp_path, None, dry_run=True)
        assert report.problems == () and report.training == 4
        assert any(note.startswith("not used beside") and "cv_fold_1" in note for note in report.notes)
        with h5py.File(tmp_path / "nci/nci_train.hdf5", "a") as file:
            file["nz"][1] = 6
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.file == "nci/nci_train.hdf5" and problem.code == "hdf5-counts" and "14" in problem.rule
        truncate(tmp_path / "nci/nci_val.hdf5")
        assert len(self.convert(tmp_path, None, dry_run=True).problems) == 2
        for split in ("train", "val", "test"):
            (tmp_path / f"nci/nci_{split}.hdf5").unlink()
        shutil.copy(
            tmp_path / "nci/data_2d_size_256_256_res_0.625_0.625_cv_fold_1.hdf5",
            tmp_path / "nci/data_2d_size_256_256_res_0.625_0.625_cv_fold_2.hdf5",
        )
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert problem.code == "file-twice"

    def test_thesis_writes_square_slices(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "tcia")
        report = self.convert(tmp_path / "source", tmp_path / "raw", options={"thesis": True, "n4": False})
        assert report.folder is not None
        written = sitk.ReadImage(report.folder / f"imagesTr/{self.case}_0000.nii.gz")
        assert written.GetSize() == (256, 256, 6) and written.GetSpacing() == pytest.approx((0.625, 0.625, 3.0))
        array = sitk.GetArrayFromImage(written)
        assert array.min() == 0 and 0.8 < array.max() <= 1
        assert self.converter.options(thesis=True).n4 and not self.converter.options().n4
