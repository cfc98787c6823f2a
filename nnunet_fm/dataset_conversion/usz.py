"""USZ: zones of the prostate in T2-weighted MRI of the University Hospital Zurich."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from nnunet_fm.dataset_conversion.base import Case, ConversionOptions, Converter, ImageSource, Listing, Work
from nnunet_fm.dataset_conversion.problems import Invalid, Problem
from nnunet_fm.dataset_conversion.prostate import PROSTATE, THESIS, Part, hdf5_listing
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Grid, Volume

LABELLER = "ek"
"""Whose labels the thesis used; those of another (kc) exist as well."""

PARTS: dict[int, Part] = {0: "test", 20: "val", 40: "train"}
"""First number of a file's volumes -> part of the split."""


class USZ(Converter):
    """Three flat HDF5 files, or the folders of patients that they were made from."""

    name = "usz"
    dataset = "USZ"
    title = "USZ: zones of the prostate in T2-weighted MRI (University Hospital Zurich, private)"
    size = "68 labelled MRI"
    licence = "private data: do not redistribute"
    licence_source = "never published"
    reference = "https://github.com/neerakara/test-time-adaptable-neural-networks-for-domain-generalization"
    channels = ("T2",)
    label_sets: ClassVar = {"default": replace(PROSTATE, unlisted=0)}
    slice_axis = 0
    layouts: ClassVar = {
        "hdf5": "pirad_erc/data_2d_from_40_to_68_size_256_256_res_0.625_0.625_ek.hdf5, 20_to_40 and 0_to_20",
        "patients": "<patient>/t2_tse_tra.nii.gz with <patient>/segmentation_ek.nii.gz or segmentation_tra_ek.nii.gz",
    }
    splits: ClassVar = {"thesis": "volumes 40 to 67 for training, 20 to 39 for validation, 0 to 19 for the test (HDF5)"}
    default_split = "thesis"
    n4 = False
    thesis = THESIS
    notes = (f"labels are those of the labeller {LABELLER}; numbers above 2 become background",)
    checked = ("names of files and keys, the float labels and the rule for numbers above 2, against public readers",)
    unknown = (
        "whether 1 is the peripheral zone and 2 the central gland, as in NCI: assumed",
        "which patients the numbers of the split are: the order was that of a directory listing",
    )

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Volumes by their number in the names of the files, or patients by their folder."""
        files, problems = tree.collect(
            {"file": rf"data_2d_from_(?P<case>\d+_to_\d+)_size_\d+_\d+_res_0\.625_0\.625_{LABELLER}\.hdf5"}
        )
        if files or problems:
            return self._hdf5(tree, {span: entry["file"] for span, entry in files.items()}, problems)
        found, problems = tree.collect(
            {
                "image": r"(?P<case>[^/]+)/t2_tse_tra\.nii\.gz",
                "label": rf"(?P<case>[^/]+)/segmentation_(?:tra_)?{LABELLER}\.nii\.gz",
            }
        )
        cases = [Case(name, (ImageSource(f["image"]),), (ImageSource(f["label"]),)) for name, f in found.items()]
        notes = ["folders of patients have no split of their own"]
        if tree.match(r"[^/]+/t2_tse_tra_n4\.nii\.gz"):
            notes.append("t2_tse_tra_n4.nii.gz is not used: --n4 corrects the bias field by a method that is known")
        return Listing("patients", cases, problems, notes)

    def _hdf5(self, tree: Tree, files: dict[str, str], problems: list[Problem]) -> Listing:
        parts = []
        for span, file in files.items():
            first = int(span.split("_")[0])
            if first in PARTS:
                parts.append((file, "", PARTS[first], "usz_", first))
            else:
                problems.append(Problem(file, f"begins with volume {first}, not with 0, 20 or 40", code="hdf5-slices"))
        return hdf5_listing(tree, parts, problems)

    def read_label(self, case: Case, grid: Grid, work: Work) -> Volume:
        """Read a label map like `Converter.read_label`; numbers below 0 belong to no structure."""
        label = super().read_label(case, grid, work)
        if min(work.counts) < 0:
            raise Invalid(case.labels[0].file, f"label values below 0: {min(work.counts)}", code="labels-range")
        return label
