"""VerSe: two releases, several scans of a person, L6 and T13, masks of floats, the thesis's PNG slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.verse import VERTEBRAE
from tests.helpers.convert_tester import ConverterTester, edit, scene, voxels
from tests.helpers.errors import fails
from tests.helpers.images import write_volume

PIR = (0, 0, -1, 1, 0, 0, 0, -1, 0)
"""Direction of the organisers' sample: x to posterior, y to inferior, z to the right."""

LUMBAR = {20: 1, 21: 2, 22: 3, 23: 4, 24: 5}
ALL = (1, 7, 8, 19, 20, 21, 22, 23, 24, 25, 28)

SCANS = {
    "verse19": {
        "dataset-verse19training": ("sub-verse004", "sub-verse005", "sub-verse408_split-verse223"),
        "dataset-verse19validation": ("sub-verse020",),
        "dataset-verse19test": ("sub-verse012",),
    },
    "verse20": {
        "dataset-01training": ("sub-gl003_dir-ax", "sub-verse503_dir-ax", "sub-verse503_dir-sag"),
        "dataset-02validation": ("sub-verse505",),
        "dataset-03test": ("sub-gl016_dir-iso",),
    },
    "doubled_root": {
        "01_training/01_training": ("sub-verse004",),
        "dataset-verse20training": ("sub-verse503_dir-ax",),
        "dataset-verse20test": ("sub-verse507_dir-ax",),
    },
}


def write_scan(folder: Path, stem: str, seed: int, values: tuple[int, ...] = ALL) -> dict[int, int]:
    """A scan in the layout of both releases; returns voxels of its lumbar vertebrae."""
    image, label = scene(seed, values, (8, 12, 9))
    person = stem.split("_")[0]
    geometry = ((1.0, 1.0, 2.000296), (80.0, -31.5, 700.0), PIR)
    write_volume(folder / f"rawdata/{person}/{stem}_ct.nii.gz", image, *geometry)
    derived = folder / "derivatives" / person
    write_volume(derived / f"{stem}_seg-vert_msk.nii.gz", label.astype(np.float64), *geometry)
    (derived / f"{stem}_seg-subreg_ctd.json").write_text('[{"direction": ["P", "I", "R"]}]', encoding="utf-8")
    (derived / f"{stem}_seg-vert_snp.png").write_bytes(b"a picture")
    return {LUMBAR[value]: count for value, count in voxels(label).items() if value in LUMBAR}


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = array.ndim == 3
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8), isVector=colour), path)


def write_slices(root: Path, part: str, case: str, seed: int) -> dict[int, int]:
    """The thesis's slices of one scan."""
    image, label = scene(seed, (1, 2, 3, 4, 5), (5, 8, 8))
    for z in range(len(image)):
        write_png(root / f"images/{part}/{case}_{z:04d}.png", image[z] + 100)
        write_png(root / f"labels/{part}/{case}_{z:04d}_labelTrainIds.png", label[z])
        write_png(root / f"labels/{part}/{case}_{z:04d}.png", np.repeat(label[z, ..., None], 3, axis=-1) * 40)
    (root / f"scale_{part}.pickle").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    return voxels(label)


class TestVerSe(ConverterTester):
    name = "verse"
    variants = (*SCANS, "challenge", "png")
    image = "dataset-verse19training/rawdata/sub-verse005/sub-verse005_ct.nii.gz"
    label = "dataset-verse19training/derivatives/sub-verse005/sub-verse005_seg-vert_msk.nii.gz"
    case = "sub-verse005"
    slice_axis = 2
    illegal: ClassVar = (
        {"domain": "ct"},
        {"labels": "thesis"},
        {"split": "thesis"},
        {"n4": True},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        if variant == "png":
            parts = {"sub-verse004": "train", "sub-gl003_dir-ax": "train", "sub-verse408_split-verse223": "val"}
            return {
                case: write_slices(root / "lumbarspine" / "VerSe", part, case, i)
                for i, (case, part) in enumerate(parts.items())
            }
        expected = {}
        if variant == "challenge":
            for number in (4, 5, 408):
                image, label = scene(number, ALL)
                write_volume(root / f"verse{number:03d}.nii.gz", image)
                write_volume(root / f"verse{number:03d}_seg.nii.gz", label)
                expected[f"verse{number:03d}"] = {LUMBAR[v]: n for v, n in voxels(label).items() if v in LUMBAR}
            return expected
        for folder, stems in SCANS[variant].items():
            for stem in stems:
                expected[stem] = write_scan(root / folder, stem, len(expected))
        return expected

    def test_every_layout_converts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.variants, self.slice_axis = (*SCANS, "challenge"), 2  # type: ignore[misc]
        super().test_every_layout_converts(tmp_path / "volumes", monkeypatch)
        self.variants, self.slice_axis = ("png",), 0  # type: ignore[misc]
        super().test_every_layout_converts(tmp_path / "slices", monkeypatch)

    @pytest.mark.parametrize("skip_invalid", [False, True])
    def test_masks_without_a_scan(self, tmp_path: Path, skip_invalid: bool) -> None:
        """As of who downloads the derivatives alone: what is missing is said, whatever the number of processes."""
        self.make_tree(tmp_path / "source", next(iter(SCANS)))
        for scan in (tmp_path / "source").rglob("*_ct.nii.gz"):
            scan.unlink()
        with fails("cases-none" if skip_invalid else "problems-found", "_seg-vert_msk.nii.gz"):
            self.convert(tmp_path / "source", tmp_path / "raw", skip_invalid=skip_invalid, processes=2)

    def test_parts_are_those_of_the_folders_and_persons_stay_together(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "verse20")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and report.folder.name == "Dataset501_VerSe"
        folds = json.loads((report.folder / "splits_final.json").read_text(encoding="utf-8"))
        training = {"sub-gl003_dir-ax", "sub-verse503_dir-ax", "sub-verse503_dir-sag"}
        assert set(folds[0]["train"]) == training and folds[0]["val"] == ["sub-verse505"]
        for fold in folds:
            assert {"sub-verse503_dir-ax", "sub-verse503_dir-sag"} <= set(fold["train"]) or {
                "sub-verse503_dir-ax",
                "sub-verse503_dir-sag",
            } <= set(fold["val"])
        assert [path.name for path in (report.folder / "labelsTs").iterdir()] == ["sub-gl016_dir-iso.nii.gz"]

    def test_the_source_itself_may_be_the_folder_of_a_part(self, tmp_path: Path) -> None:
        source = tmp_path / "dataset-verse19validation"
        write_scan(source, "sub-verse004", 0)
        with fails("cases-none"):
            self.convert(source, tmp_path / "raw")

    def test_a_person_in_two_parts_is_tested_on(self, tmp_path: Path) -> None:
        write_scan(tmp_path / "source/dataset-01training", "sub-verse503_dir-ax", 0)
        write_scan(tmp_path / "source/dataset-01training", "sub-verse504_dir-ax", 1)
        write_scan(tmp_path / "source/dataset-03test", "sub-verse503_dir-sag", 2)
        report = self.convert(tmp_path / "source", None, dry_run=True)
        assert (report.training, report.test) == (1, 2)
        (note,) = [note for note in report.notes if "is moved" in note]
        assert "sub-verse503_dir-ax is moved from train to test" in note

    def test_scans_of_both_releases_are_used_once(self, tmp_path: Path) -> None:
        """By the same name, by another one, and by the number of a split."""
        for i, stem in enumerate(("sub-verse004", "sub-verse005", "sub-verse006", "sub-verse223")):
            write_scan(tmp_path / "source/dataset-verse19training", stem, i)
        new = {}
        for i, stem in enumerate(("sub-verse004", "sub-verse005_dir-ax", "sub-verse408_split-verse223", "sub-gl003")):
            new[stem] = write_scan(tmp_path / "source/dataset-03test", stem, 10 + i)
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and (report.training, report.test) == (1, 4)
        assert [path.name for path in (report.folder / "labelsTr").iterdir()] == ["sub-verse006.nii.gz"]
        record = json.loads((report.folder / "conversion.json").read_text(encoding="utf-8"))
        assert {int(k): n for k, n in record["cases"]["sub-verse004"]["voxels"].items()} == new["sub-verse004"]
        (note,) = [note for note in report.notes if note.startswith("scans of 2019 that")]
        assert note.endswith("sub-verse004, sub-verse005, sub-verse223")

    def test_scans_without_lumbar_vertebrae_are_left_out(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", next(iter(SCANS)))
        write_scan(tmp_path / "source/dataset-verse19training", "sub-verse006", 6, (1, 19))
        write_scan(tmp_path / "source/dataset-verse19training", "sub-verse007", 7, (25, 28))
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.left_out == {
            "sub-verse006": "shows no lumbar vertebra, only labels 1, 19",
            "sub-verse007": "shows no lumbar vertebra, only labels 25, 28",
        }
        assert report.training == 4 and report.problems == ()

    def test_full_labels_are_consecutive(self, tmp_path: Path) -> None:
        folder = tmp_path / "source" / "dataset-verse19training"
        write_scan(folder, "sub-verse004", 4)
        report = self.convert(tmp_path / "source", tmp_path / "raw", options={"labels": "full"})
        assert report.folder is not None
        content = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
        assert list(content["labels"].values()) == list(range(27))
        assert [content["labels"][name] for name in ("C1", "T1", "L1", "L6", "T13")] == [1, 8, 20, 25, 26]
        _, label = scene(4, ALL, (8, 12, 9))
        written = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "sub-verse004.nii.gz"))
        assert voxels(written) == {26 if v == 28 else v: n for v, n in voxels(label).items()}
        assert written.dtype == np.uint8 and len(VERTEBRAE) == 26

    def test_sacrum_is_background_of_lumbar_and_unknown_to_full(self, tmp_path: Path) -> None:
        write_scan(tmp_path / "source", "sub-verse004", 4, (24, 26))
        assert self.convert(tmp_path / "source", None, dry_run=True).problems == ()
        (problem,) = self.convert(tmp_path / "source", None, dry_run=True, options={"labels": "full"}).problems
        assert "does not have: 26" in problem.rule

    def test_colour_pictures_are_no_labels(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "png")
        folder = tmp_path / "source/lumbarspine/VerSe/labels/train"
        (folder / "sub-verse004_0002_labelTrainIds.png").unlink()
        (folder / "sub-gl003_dir-ax_0001.png").replace(folder / "sub-gl003_dir-ax_0001_labelTrainIds.png")
        problems = {problem.case: problem for problem in self.convert(tmp_path / "source", None, dry_run=True).problems}
        assert "there is no label of slice 2" in problems["sub-verse004"].rule
        assert "is a colour picture" in problems["sub-gl003_dir-ax"].rule

    def test_slices_are_stacked_as_they_are(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "png")
        # Another dataset's slices beside them are none of this one's.
        write_slices(tmp_path / "source/lumbarspine/MRSpineSegV", "train", "1", 9)
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None and (report.training, report.layout) == (3, "png")
        content = json.loads((report.folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["channel_names"] == {"0": "CT_0_to_255"}
        assert content["overwrite_image_reader_writer"] == "SimpleITKIO"
        image = sitk.ReadImage(report.folder / "imagesTr" / "sub-verse004_0000.nii.gz")
        expected, _ = scene(0, (1, 2, 3, 4, 5), (5, 8, 8))
        assert np.array_equal(sitk.GetArrayFromImage(image), (expected + 100).astype(np.uint8))
        assert image.GetSpacing() == pytest.approx((0.7, 0.7, 1.0))
        folds = json.loads((report.folder / "splits_final.json").read_text(encoding="utf-8"))
        assert folds[0]["val"] == ["sub-verse408_split-verse223"]

    def test_slices_have_neither_other_labels_nor_a_second_preprocessing(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "png")
        with fails("labels-option", "--labels"):
            self.convert(tmp_path / "source", None, dry_run=True, options={"labels": "full"})
        with fails("images-preprocessed", "--thesis"):
            self.convert(tmp_path / "source", None, dry_run=True, options={"thesis": True})

    def test_thesis_cuts_slices_about_the_spine(self, tmp_path: Path) -> None:
        """Stored as PIR: slices along z, 400 mm from top to bottom, the vertebrae at one end."""
        label = np.zeros((130, 400, 24), np.float64)  # right, inferior, posterior
        label[100:120, 300:390, 5:19] = 22
        label[60, 310, 5] = 25
        image = np.random.default_rng(0).normal(100, 30, label.shape).astype(np.float32)
        image[label == 22] = 1000
        folder = tmp_path / "source/dataset-verse19training"
        for stem, size in (("sub-verse004", 130), ("sub-verse005", 119)):
            geometry = ((1.0, 1.0, 2.0), (0.0, 0.0, 0.0), PIR)
            write_volume(folder / f"rawdata/{stem}/{stem}_ct.nii.gz", image[-size:], *geometry)
            write_volume(folder / f"derivatives/{stem}/{stem}_seg-vert_msk.nii.gz", label[-size:], *geometry)
        report = self.convert(tmp_path / "source", tmp_path / "raw", options={"thesis": True})
        assert report.folder is not None
        assert report.left_out == {"sub-verse005": "has 119 sagittal slices, fewer than the 120 of the thesis"}
        written = sitk.ReadImage(report.folder / "imagesTr" / "sub-verse004_0000.nii.gz")
        found = sitk.ReadImage(report.folder / "labelsTr" / "sub-verse004.nii.gz")
        assert written.GetSize() == found.GetSize() == (256, 256, 120)
        assert written.GetSpacing() == pytest.approx((0.7, 0.7, 2.0))
        array, vertebra = sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(found) == 3
        assert array.min() == 0 and array.max() == pytest.approx(1)
        assert vertebra.sum() == pytest.approx(20 * 90 * 14 / 0.49, rel=0.05)
        assert array[vertebra].mean() > 0.95
        rows = vertebra.any(axis=(0, 2)).nonzero()[0]
        assert abs((rows[0] + rows[-1]) / 2 - 127.5) <= 1
        # Ten slices of 130 are cut off at the end that is further from the vertebrae.
        assert vertebra.any(axis=(1, 2)).nonzero()[0].tolist() == list(range(90, 110))
        assert json.loads((report.folder / "dataset.json").read_text())["channel_names"] == {"0": "CT_0_to_1"}

    def test_a_flipped_scan_is_refused(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "verse19")
        edit(tmp_path / self.label, lambda array: array[:, ::-1])
        image = sitk.ReadImage(tmp_path / self.label)
        image.SetDirection((0, 0, -1, 1, 0, 0, 0, 1, 0))
        sitk.WriteImage(image, tmp_path / self.label)
        (problem,) = self.convert(tmp_path, None, dry_run=True).problems
        assert "another grid than the image: direction" in problem.rule
