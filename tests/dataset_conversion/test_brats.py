"""BraTS: releases told apart by names, numbers that change their meaning, label maps under other names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.base import Case
from nnunet_fm.dataset_conversion.brats import RELEASES
from tests.helpers.convert_tester import ConverterTester, Fault, edit, label_voxels, scene, verify, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

ORIGIN, DIRECTION = (0.0, -239.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1)
OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")

CASES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "2018": ("{0}_{1}.nii.gz", OLD, ("HGG/Brats18_TCIA01_131_1", "HGG/Brats18_2013_2_1", "LGG/Brats18_TCIA09_141_1")),
    "2019": ("{0}_{1}.nii.gz", OLD, ("LGG/BraTS19_2013_0_1", "LGG/BraTS19_2013_1_1", "HGG/BraTS19_2013_2_1")),
    "2020": (
        "{0}_{1}.nii.gz",
        OLD,
        tuple(f"MICCAI_BraTS2020_TrainingData/BraTS20_Training_{i}" for i in ("001", "002", "355")),
    ),
    "2020_kaggle": (
        "{0}_{1}.nii",
        OLD,
        tuple(
            f"BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData/BraTS20_Training_{i}" for i in ("001", "002", "355")
        ),
    ),
    "2021": ("{0}_{1}.nii.gz", OLD, ("BraTS2021_00000", "BraTS2021_00002", "BraTS2021_00003")),
    "2023": (
        "{0}-{1}.nii.gz",
        NEW,
        tuple(
            f"ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-{i}"
            for i in ("00000-000", "00002-000", "00002-001")
        ),
    ),
    "2024": (
        "{0}-{1}.nii.gz",
        NEW,
        tuple(f"training_data1_v2/BraTS-GLI-{i}" for i in ("00005-100", "00005-101", "02063-100")),
    ),
}
"""Layout -> names of files in a case's folder, sequences in the order of our channels, folders."""

MEANING = {"core": 2, "oedema": 0, "enhancing": 1, "cavity": 0}
NUMBERS = {
    **{year: {1: "core", 2: "oedema", 4: "enhancing"} for year in ("2018", "2019", "2020", "2020_kaggle", "2021")},
    "2023": {1: "core", 2: "oedema", 3: "enhancing"},
    "2024": {1: "core", 2: "oedema", 3: "enhancing", 4: "cavity"},
    "decathlon": {1: "oedema", 2: "core", 3: "enhancing"},
    "thesis_flat": {1: "enhancing", 2: "core"},
}
"""Written down here once more, as the facts have it."""


def as_thesis(label: np.ndarray, variant: str) -> dict[int, int]:
    mapped = np.zeros_like(label)
    for number, structure in NUMBERS[variant].items():
        mapped[label == number] = MEANING[structure]
    return voxels(mapped)


class TestBraTS(ConverterTester):
    name = "brats"
    variants = (*CASES, "decathlon", "thesis_flat")
    image = "HGG/Brats18_2013_2_1/Brats18_2013_2_1_flair.nii.gz"
    label = "HGG/Brats18_2013_2_1/Brats18_2013_2_1_seg.nii.gz"
    case = "Brats18_2013_2_1"
    slice_axis = 1
    illegal: ClassVar = (
        {"domain": "t1ce"},
        {"labels": "default"},
        {"split": "official"},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        """Channel i of a case is its scene plus 1000 i."""
        values, expected = tuple(NUMBERS[variant]), {}
        for seed in range(3):
            present = values if seed else values[:2]  # some low grade gliomas have nothing enhancing
            image, label = scene(seed, present)
            channels = [image + 1000 * i for i in range(4)]

            def write(name: str, array: np.ndarray) -> None:
                write_volume(root / name, array, origin=ORIGIN, direction=DIRECTION)

            if variant == "decathlon":
                case = f"BRATS_{seed + 1:03d}"
                write_4d(root / f"Task01_BrainTumour/imagesTr/{case}.nii.gz", [channels[i] for i in (3, 0, 1, 2)])
                write(f"Task01_BrainTumour/labelsTr/{case}.nii.gz", label.astype(np.uint8))
            elif variant == "thesis_flat":
                case = f"case{seed + 1:03d}"
                for i, sequence in ((0, "T1"), (3, "FLAIR")):
                    write(f"{case}_{sequence}.nii.gz", channels[i].astype(np.float32))
                write(f"{case}_Label.nii.gz", label.astype(np.float64))
            else:
                pattern, sequences, folders = CASES[variant]
                case = Path(folders[seed]).name
                for sequence, array in zip(sequences, channels, strict=True):
                    write(f"{folders[seed]}/{pattern.format(case, sequence)}", array)
                mask = pattern.format(case, "seg")
                if variant == "2020_kaggle" and case.endswith("355"):
                    mask = "W39_1998.09.19_Segm.nii"
                write(f"{folders[seed]}/{mask}", label)
            expected[case] = as_thesis(label, variant)
        if variant == "2020_kaggle":
            (root / "BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData/survival_info.csv").write_text("Grade,Age\n")
        if variant == "decathlon":
            write_4d(root / "Task01_BrainTumour/imagesTs/BRATS_485.nii.gz", [scene(9, ())[0]] * 4)
        return expected

    def missing_label(self, root: Path) -> Fault:
        return super().missing_label(root)._replace(file="Brats18_2013_2_1_t1.nii.gz")

    def missing_image(self, root: Path) -> Fault:
        (root / self.image).unlink()
        return Fault(root, "Brats18_2013_2_1_t1.nii.gz", "file-missing", "flair")

    def converted(self, tmp_path: Path, variant: str, **options: Any) -> tuple[Path, dict[str, Any]]:
        """Folder and ``conversion.json``."""
        self.make_tree(tmp_path / "source", variant)
        folder = self.convert(tmp_path / "source", tmp_path / "raw", options=options).folder
        assert folder is not None
        return folder, json.loads((folder / "conversion.json").read_text(encoding="utf-8"))

    @pytest.mark.parametrize("variant", [*CASES, "decathlon"])
    def test_sequences_have_one_order_in_every_release(self, variant: str, tmp_path: Path) -> None:
        folder, record = self.converted(tmp_path, variant)
        names = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["channel_names"]
        assert names == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"} and folder.name == "Dataset501_BraTS"
        assert record["layout"] == variant.removesuffix("_kaggle")
        case = sorted(record["cases"])[2]
        for i in range(4):
            array = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"imagesTr/{case}_{i:04d}.nii.gz"))
            assert np.array_equal(array, scene(2, tuple(NUMBERS[variant]))[0] + 1000 * i)
        values = {int(k): v for k, v in record["labels"]["from_source"].items()}
        assert values == {0: 0} | {number: MEANING[structure] for number, structure in NUMBERS[variant].items()}

    def test_domains_are_datasets_with_the_same_labels_and_folds(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "2018")
        (tmp_path / "source" / self.image.replace("flair", "t1ce")).unlink()  # not needed
        folders = {}
        for i, domain in ((0, "t1"), (3, "flair")):
            folder = self.convert(tmp_path / "source", tmp_path / domain, options={"domain": domain}).folder
            assert folder is not None and folder.name == f"Dataset501_BraTS_{domain.upper()}"
            array = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"imagesTr/{self.case}_0000.nii.gz"))
            assert np.array_equal(array, scene(1, (1, 2, 4))[0] + 1000 * i)
            assert len(list((folder / "imagesTr").iterdir())) == 3
            folders[domain] = folder
        for name in ("splits_final.json", f"labelsTr/{self.case}.nii.gz"):
            assert (folders["t1"] / name).read_bytes() == (folders["flair"] / name).read_bytes()

    @pytest.mark.parametrize("variant", [v for v in (*CASES, "decathlon") if v != "2020_kaggle"])
    def test_regions(self, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, _ = self.converted(tmp_path, variant, labels="regions")
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        regions = {"whole_tumour": [1, 2, 3], "tumour_core": [2, 3], "enhancing_tumour": [3]}
        assert content["labels"] == {"background": 0, **regions} and content["regions_class_order"] == [1, 2, 3]
        numbers = {structure: number for number, structure in NUMBERS[variant].items()}
        _, label = scene(2, tuple(NUMBERS[variant]))
        written = sorted((folder / "labelsTr").iterdir())[2]
        array = sitk.GetArrayFromImage(sitk.ReadImage(written))
        for number, structure in ((1, "oedema"), (2, "core"), (3, "enhancing")):
            assert np.array_equal(array == number, label == numbers[structure])
        if variant == "2018":
            verify(folder, monkeypatch)

    @pytest.mark.parametrize(
        ("variant", "foreign"), [("2018", 3), ("2021", 3), ("2023", 4), ("decathlon", 4), ("thesis_flat", 4)]
    )
    def test_numbers_of_other_releases_are_refused(self, variant: str, foreign: int, tmp_path: Path) -> None:
        self.make_tree(tmp_path, variant)
        mask = next(
            f
            for f in sorted(tmp_path.rglob("*.nii.gz"))
            if f.name.endswith(("seg.nii.gz", "Label.nii.gz")) or "labelsTr" in f.parts
        )

        def change(array: np.ndarray) -> np.ndarray:
            array[0, 0, :2] = foreign
            return array

        edit(mask, change)
        with fails("labels-unknown", mask.name, foreign, "2"):
            self.convert(tmp_path, tmp_path / "raw")

    @pytest.mark.parametrize(
        ("folder", "visit", "release"),
        [
            ("x", "000", "2023"),
            ("x", "101", "2024"),
            ("BraTS2024-BraTS-GLI-TrainingData", "000", "2024"),
            ("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", "000", "2023"),
        ],
    )
    def test_two_releases_with_the_same_names(self, folder: str, visit: str, release: str, tmp_path: Path) -> None:
        for seed in (1, 2):
            case = f"BraTS-GLI-0000{seed}-{visit}"
            image, label = scene(seed, (1, 2, 3))
            for sequence in NEW:
                write_volume(tmp_path / folder / case / f"{case}-{sequence}.nii.gz", image)
            write_volume(tmp_path / folder / case / f"{case}-seg.nii.gz", label)
        for source in (tmp_path, tmp_path / folder):
            assert self.convert(source, None, dry_run=True).layout == release

    def test_mixed_releases_are_refused(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "2018")
        self.make_tree(tmp_path / "source", "2023")
        with fails("releases-several", "2018", "2023"):
            self.convert(tmp_path / "source", tmp_path / "raw")

    def test_visits_of_one_person_stay_together(self, tmp_path: Path) -> None:
        folder, record = self.converted(tmp_path, "2024")
        assert [r["subject"] for r in record["cases"].values()] == ["BraTS-GLI-00005"] * 2 + ["BraTS-GLI-02063"]
        for fold in json.loads((folder / "splits_final.json").read_text(encoding="utf-8")):
            assert ("BraTS-GLI-00005-100" in fold["val"]) == ("BraTS-GLI-00005-101" in fold["val"])

    def test_the_misnamed_mask_is_used_once(self, tmp_path: Path) -> None:
        _, record = self.converted(tmp_path, "2020_kaggle")
        assert any("BraTS20_Training_355: its label map is" in note for note in record["decisions"])
        folder = tmp_path / "source" / CASES["2020_kaggle"][2][2]
        odd = folder / "W39_1998.09.19_Segm.nii"
        shutil.copy(odd, folder / "BraTS20_Training_355_seg.nii")
        with fails("file-twice"):
            self.convert(tmp_path / "source", tmp_path / "other")
        odd.rename(folder.with_name("BraTS20_Training_001") / odd.name)
        report = self.convert(tmp_path / "source", tmp_path / "another")
        assert report.training == 3 and not any("label map is" in note for note in report.notes)

    def test_oedema_alone_is_background_in_the_thesis(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "2018")
        edit(tmp_path / "source" / self.label, lambda array: np.where(array != 0, 2, 0).astype(np.int16))
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and label_voxels(report.folder)[self.case] == {}
        assert any("all that it labels is background here" in note for note in report.notes)

    def test_images_of_the_decathlon_without_labels(self, tmp_path: Path) -> None:
        folder, record = self.converted(tmp_path, "decathlon", domain="flair")
        assert record["split"]["test"] == ["BRATS_485"]
        assert [path.name for path in (folder / "imagesTs").iterdir()] == ["BRATS_485_0000.nii.gz"]
        with fails("file-missing", "BRATS_002.nii.gz"):
            (tmp_path / "source/Task01_BrainTumour/imagesTr/BRATS_002.nii.gz").unlink()
            self.convert(tmp_path / "source", tmp_path / "other")

    def test_the_thesis_folder_has_two_sequences_and_no_oedema(self, tmp_path: Path) -> None:
        folder, _ = self.converted(tmp_path, "thesis_flat")
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["channel_names"] == {"0": "T1", "1": "FLAIR"}
        assert content["labels"] == {"background": 0, "enhancing_tumour": 1, "tumour_core_without_enhancing": 2}
        with fails("labels-option"):
            self.convert(tmp_path / "source", tmp_path / "other", options={"labels": "regions"})

    def test_thesis(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.converter.options(thesis=True).n4
        folder, record = self.converted(tmp_path, "2018", thesis=True, n4=False, domain="t1")
        image = sitk.ReadImage(folder / f"imagesTr/{self.case}_0000.nii.gz")
        array = sitk.GetArrayFromImage(image)
        assert array.shape == (224, 12, 224) and record["slice_axis"] == 1  # coronal slices stay as many
        assert array.dtype == np.float32 and 0 <= array.min() < 0.05 and 0.95 < array.max() <= 1
        assert np.allclose(image.GetSpacing(), (14 / 224, 1, 10 / 224))
        assert json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["channel_names"] == {"0": "T1_0_to_1"}
        assert set(label_voxels(folder)[self.case]) == {1, 2}
        verify(folder, monkeypatch)

    def test_split_of_the_thesis(self) -> None:
        cases = [Case(f"Brats18_{i:03d}", ()) for i in range(285)]
        split = self.converter.split("thesis", cases)
        assert [len(part) for part in (split.train, split.val, split.test)] == [198, 30, 57]
        assert len(split.parts) == 285 and split == self.converter.split("thesis", cases[::-1])
        with fails("split-published", "285", "2018", "284"):
            self.converter.split("thesis", cases[1:])

    def test_every_release_is_a_layout(self) -> None:
        assert set(RELEASES) == set(self.converter.layouts)


def write_4d(path: Path, channels: list[np.ndarray]) -> None:
    """One file with the sequences along its last axis, on the grid of the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = -ORIGIN[0], -ORIGIN[1], ORIGIN[2]
    nibabel.save(nibabel.Nifti1Image(np.stack([c.T for c in channels], axis=-1), affine), path)
