"""AortaSeg24: numbers with gaps, two releases of the masks, a mask on a grid of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.aortaseg24 import PUBLIC_IDS
from nnunet_fm.dataset_conversion.tree import open_tree
from tests.helpers.convert_tester import ConverterTester, scene, voxels
from tests.helpers.images import write_volume

IDS = ("001", "013", "015", "040", "053")
"""Of the real tree: 014 does not exist, 040 has the mask with a grid of its own."""

PATHS = {
    "official": ("training/images/subject{}_CTA.mha", "training/masks/subject{}_label.mha"),
    "masks_rerelease_2024_09_18": (
        "training/images/subject{}_CTA.mha",
        "training/masks_20240918/subject{}_label.mha",
    ),
    "no_training_parent": ("images/subject{}_CTA.mha", "masks/subject{}_label.mha"),
    "labels_for_masks": (
        "AortaSeg24/training/images/subject{}_CTA.mha",
        "AortaSeg24/training/labels/subject{}_label.mha",
    ),
    "cis_unet_older": ("Volumes/Subject{}_CTA.nii.gz", "Labels/Subject{}_CTA_Label.nii.gz"),
}
SPACING, ORIGIN = (1.0, 1.0, 1.0), (-200.0, -150.5, 30.0)


class TestAortaSeg24(ConverterTester):
    name = "aortaseg24"
    variants = tuple(PATHS)
    image = "training/images/subject013_CTA.mha"
    label = "training/masks/subject013_label.mha"
    case = "subject013"
    slice_axis = 0
    sides = 4
    illegal: ClassVar = (
        {"domain": "ct"},
        {"labels": "lumbar"},
        {"split": "official"},
        {"split": "no_such_file.json"},
        {"thesis": True},
        {"n4": True},
        {"skull_strip": "labels"},
        {"outside": "ignore"},
    )

    def make_tree(self, root: Path, variant: str) -> dict[str, dict[int, int]]:
        image_path, label_path = PATHS[variant]
        expected = {}
        for number in IDS:
            # The last case lacks a class.
            image, label = scene(int(number), tuple(range(1, 23 if number == "053" else 24)))
            write_volume(root / image_path.format(number), image, SPACING, ORIGIN)
            expected[f"subject{number}"] = voxels(label)
            origin = ORIGIN
            if number == "040":  # without its empty border
                label = label[1:, 1:-1, 1:]
                origin = (ORIGIN[0] + 1, ORIGIN[1] + 1, ORIGIN[2] + 1)
            write_volume(root / label_path.format(number), label.astype(np.uint8), SPACING, origin)
        return expected

    def test_subject040_is_put_in_its_place(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "official")
        report = self.convert(tmp_path / "source", tmp_path / "raw")
        assert report.folder is not None
        _, label = scene(40, tuple(range(1, 24)))
        written = sitk.ReadImage(report.folder / "labelsTr" / "subject040.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(written), label)
        assert written.GetOrigin() == ORIGIN
        (note,) = [note for note in report.notes if note.startswith("subject040")]
        assert "nearest neighbour" in note and "size 13 x 10 x 9 against 14 x 12 x 10" in note

    def test_the_newer_masks_win_and_absent_cases_are_named(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path, "official")
        newer = {}
        for number in IDS:
            _, label = scene(100 + int(number), (1, 23))
            write_volume(
                tmp_path / f"training/masks_20240918/subject{number}_label.mha", label.astype(np.uint8), SPACING, ORIGIN
            )
            newer[f"subject{number}"] = voxels(label)
        report = self.convert(tmp_path, tmp_path / "raw")
        assert report.folder is not None
        record = json.loads((report.folder / "conversion.json").read_text(encoding="utf-8"))
        assert {case: {int(k): n for k, n in r["voxels"].items()} for case, r in record["cases"].items()} == newer
        assert "labels are those of masks_20240918; masks is not used" in record["decisions"]
        assert "45 of the 50 public cases are not used" in record["decisions"]

    def test_labels_and_reader(self, tmp_path: Path) -> None:
        self.make_tree(tmp_path / "source", "official")
        folder = self.convert(tmp_path / "source", tmp_path / "raw").folder
        assert folder is not None
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert content["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
        assert content["channel_names"] == {"0": "CT"} and content["numTraining"] == len(IDS)
        assert len(content["labels"]) == 24 and content["labels"]["SMA"] == 13
        assert content["labels"]["Right_Internal_Iliac_Artery"] == 20
        assert "do not redistribute" in content["licence"]
        folds = json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))
        assert len(folds) == 5 and sorted(case for fold in folds for case in fold["val"]) == sorted(
            f"subject{number}" for number in IDS
        )

    def test_few_absent_cases_are_named(self, tmp_path: Path) -> None:
        """014, 037 and 043 never existed."""
        for number in PUBLIC_IDS - {40, 53}:
            for path in PATHS["official"]:
                file = tmp_path / path.format(f"{number:03d}")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        tree = open_tree(tmp_path, tmp_path)
        listing = self.converter.cases(tree, self.converter.options())
        assert len(listing.cases) == 48 and "2 of the 50 public cases are not used (040, 053)" in listing.notes
