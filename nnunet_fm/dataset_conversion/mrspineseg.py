"""MRSpineSeg: vertebrae and discs in sagittal MRI."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from nnunet_fm.dataset_conversion.base import Case, ConversionOptions, ImageSource, Listing
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.lumbar import LUMBAR, PIXEL, LumbarConverter, Part, lumbar_table, part_of
from nnunet_fm.dataset_conversion.problems import ConversionError
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree

FOLDERS: dict[str, Part] = {"train": "train", "test[12]?": "test"}

PATTERNS = {
    "official": (r"MR/[Cc]ase(?P<case>\d+)\.nii\.gz", r"Mask/mask_case(?P<case>\d+)\.nii\.gz"),
    "relabelled": (r"MRSpineSeg_(?P<case>\d+)_0000\.nii\.gz", r"MRSpineSeg_mask_(?P<case>\d+)\.nii\.gz"),
    "relabelled_img": (r"img_(?P<case>\d+)_t2\.nii\.gz", r"img_(?P<case>\d+)_seg\.nii\.gz"),
}

RELABELLED = replace(LUMBAR, values={0: 0, 1: 1, 3: 2, 5: 3, 7: 4, 9: 5}, unlisted=0)
"""Of the copies that the thesis's slices come from; what their other numbers are is not known."""


class MRSpineSeg(LumbarConverter):
    """Numbers go upwards from the sacrum, against VerSe's: L5 is 2, L1 is 6."""

    name = "mrspineseg"
    dataset = "MRSpineSeg"
    title = "MRSpineSeg challenge (2021): vertebrae and discs in sagittal MRI"
    size = "172 labelled MRI, 43 for the test"
    licence = "not known; given on registration: do not redistribute"
    licence_source = "no text of the organisers was seen"
    reference = "https://github.com/PaddlePaddle/PaddleSeg"
    channels = ("T2",)
    label_sets: ClassVar = {
        "lumbar": lumbar_table({6: 1, 5: 2, 4: 3, 3: 4, 2: 5}, [1, *range(7, 20)]),
        "full": LabelTable.of(
            "sacrum", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9",
            "L5/S1", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10",
        ),
    }  # fmt: skip
    layouts: ClassVar = {
        "official": "train/MR/Case1.nii.gz with train/Mask/mask_case1.nii.gz; test1/MR/Case96.nii.gz, test2/MR/…",
        "relabelled": "MRSpineSeg_1_0000.nii.gz with MRSpineSeg_mask_1.nii.gz",
        "relabelled_img": "img_1_t2.nii.gz with img_1_seg.nii.gz",
        "png": "MRSpineSegV/images/train/1_0000.png with MRSpineSegV/labels/train/1_0000_labelTrainIds.png",
    }
    splits: ClassVar = {
        "official": "train for training, test1 and test2 for the test; PNG slices: as their folders say"
    }
    default_split = "official"
    n4 = False
    thesis: ClassVar[Thesis | None] = Thesis("percentile", size=256, spacing=PIXEL, n4=True)
    png_case = r"\d+"
    notes = (
        "--labels lumbar: L1 to L5 have the numbers of VerSe, all other structures are background",
        "images are taken to be T2-weighted, as all public readers do; the thesis's table says T1",
    )
    checked = ("numbers of structures, names of files and folders against public readers",)
    unknown = (
        "the licence",
        "in re-labelled copies, whether 1 is L1 or L5 (taken to be L1), and what numbers besides 1, 3, 5, 7, 9 are",
        "the cases that the thesis used: it states 162, 20 and 20, no list",
        "whether headers of every copy say which axis is the sagittal one",
    )

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Numbers of cases are unique over training and test folders; test cases may lack masks."""
        for layout, (image, label) in PATTERNS.items():
            found, problems = tree.collect({"image": image, "label": label}, optional=("label",))
            if not found and not problems:
                continue
            notes = []
            if layout != "official":
                if options.labels != "lumbar":
                    raise ConversionError(
                        f"{tree.source}: re-labelled copies have the labels of --labels lumbar alone",
                        code="labels-option",
                    )
                notes.append("re-labelled copy: 1, 3, 5, 7, 9 are taken to be L1 to L5, other numbers are background")
            cases = [
                Case(
                    f"Case{number}",
                    (ImageSource(files["image"]),),
                    (ImageSource(files["label"]),) if "label" in files else (),
                    part_of(tree, files["image"], FOLDERS),
                )
                for number, files in found.items()
            ]
            return Listing(layout, cases, problems, notes)
        return self.png_cases(tree, options)

    def case_table(self, case: Case, options: ConversionOptions) -> LabelTable:
        """Re-labelled copies have numbers of their own."""
        name = case.images[0].file.rsplit("/", 1)[-1]
        return RELABELLED if name.startswith(("MRSpineSeg_", "img_")) else super().case_table(case, options)
