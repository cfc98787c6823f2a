"""AortaSeg24: 23 branches and zones of the aorta in CT angiography."""

from __future__ import annotations

from typing import ClassVar

from nnunet_fm.dataset_conversion.base import Case, ConversionOptions, Converter, ImageSource, Listing
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.tree import Tree

PUBLIC_IDS = frozenset(range(1, 54)) - {14, 37, 43}
"""Numbers of the 50 public cases: three are missing."""

MASKS = {
    # The newest first: the masks were released again on 2024-09-18, some labels changed markedly, and people keep both.
    "masks_20240918": r"masks_20240918/subject(?P<case>\d{3})_label\.mha",
    "masks": r"masks/subject(?P<case>\d{3})_label\.mha",
    "labels": r"labels/subject(?P<case>\d{3})_label\.mha",
}


class AortaSeg24(Converter):
    """The public training cases; a mask on a grid of its own (re-released subject040) is put in its place in space."""

    name = "aortaseg24"
    dataset = "AortaSeg24"
    title = "AortaSeg24 (MICCAI 2024): aortic branches and zones in CT angiography"
    size = "50 labelled CTA of 100, 1 mm"
    licence = "not stated; signed data agreement: do not redistribute"
    licence_source = "README of the organisers' repository asks for the agreement; its text was not seen"
    reference = "https://arxiv.org/abs/2502.05330"
    channels = ("CT",)
    label_sets: ClassVar = {
        "default": LabelTable.of(
            "Zone_0", "Innominate", "Zone_1", "Left_Common_Carotid", "Zone_2", "Left_Subclavian_Artery", "Zone_3",
            "Zone_4", "Zone_5", "Zone_6", "Celiac_Artery", "Zone_7", "SMA", "Zone_8", "Right_Renal_Artery",
            "Left_Renal_Artery", "Zone_9", "Zone_10_R_(Right_Common_Iliac_Artery)",
            "Zone_10_L_(Left_Common_Iliac_Artery)", "Right_Internal_Iliac_Artery", "Left_Internal_Iliac_Artery",
            "Zone_11_R_(Right_External_Iliac_Artery)", "Zone_11_L_(Left_External_Iliac_Artery)",
        )
    }  # fmt: skip
    slice_axis = 0
    label_grid = "resample"
    layouts: ClassVar = {
        "official": "training/images/subject001_CTA.mha with training/masks/subject001_label.mha "
        "(or masks_20240918, labels)",
        "cis_unet": "Volumes/Subject001_CTA.nii.gz with Labels/Subject001_CTA_Label.nii.gz",
    }
    notes = (
        "labels tell left from right: plans leave the left-right axis out of mirroring",
        "a mask on another grid than its image is resampled by nearest neighbour in physical space",
    )
    checked = (
        "labels against the organisers' picture and evaluation code",
        "numbers of the 50 cases against a participant's code",
        "subject040's re-released mask has a smaller grid and an origin of its own",
    )
    unknown = (
        "terms of the data agreement",
        "whether every case has all 23 labels",
        "cases that the thesis trained and validated on",
        "whether labels of the older CIS-UNet files have the same numbers",
    )

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Pairs of image and mask; numbers come from the names, never from counting."""
        used = next((folder for folder, pattern in MASKS.items() if tree.match(pattern)), "masks")
        found, problems = tree.collect({"image": r"images/subject(?P<case>\d{3})_CTA\.mha", "label": MASKS[used]})
        layout, notes = "official", []
        if found or problems:
            others = [folder for folder, pattern in MASKS.items() if folder != used and tree.match(pattern)]
            if others:
                notes.append(f"labels are those of {used}; {', '.join(others)} is not used")
        else:
            layout = "cis_unet"
            found, problems = tree.collect(
                {
                    "image": r"Volumes/[Ss]ubject(?P<case>\d{3})_CTA\.nii\.gz",
                    "label": r"Labels/[Ss]ubject(?P<case>\d{3})_CTA_Label\.nii\.gz",
                }
            )
            notes.append("the older CIS-UNet files: that their labels have the same numbers is not verified")
        absent = sorted(PUBLIC_IDS - {int(case) for case in found})
        if absent:
            which = f" ({', '.join(f'{i:03d}' for i in absent)})" if len(absent) <= 10 else ""
            notes.append(f"{len(absent)} of the 50 public cases are not used{which}")
        cases = [
            Case(f"subject{number}", (ImageSource(files["image"]),), (ImageSource(files["label"]),))
            for number, files in found.items()
        ]
        return Listing(layout, cases, problems, notes)
