"""HCP: healthy young adults, T1- and T2-weighted MRI with FreeSurfer's labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from nnunet_fm.dataset_conversion.base import AllowedValues, Case, ConversionOptions, ImageSource
from nnunet_fm.dataset_conversion.brain import FLAT, BrainConverter, Subjects
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree

OTHER_DATASET = ("abide", "caltech", "stanford")
"""Folders whose HDF5 files have the same names as HCP's."""


class HCP(BrainConverter):
    """One sequence of the preprocessed structural 3T packages; T1 and T2 are two domains of the same subjects."""

    same_people = True
    name = "hcp"
    dataset = "HCP"
    title = "Human Connectome Project, young adults: brain structures in MRI"
    size = "one T1w and one T2w a subject, 0.7 mm; 45 subjects are in the published split"
    licence = "WU-Minn HCP Open Access Data Use Terms: do not redistribute images"
    licence_source = "general knowledge; the terms are agreed to at registration and were not compared"
    reference = "https://doi.org/10.1016/j.neuroimage.2013.05.041"
    channels = ("T1w",)
    domain = AllowedValues(("t1", "t2"), "t1", "Which sequence.")
    positions: ClassVar = {"train": range(20), "val": range(20, 25), "test": range(50, 70)}
    thesis = Thesis("percentile", size=256, spacing=0.7, n4=True)
    layouts: ClassVar = {
        "structural": "100307_3T_Structural_preproc.zip, or unpacked: 100307/T1w/T1w_acpc_dc_restore_brain.nii.gz with "
        "100307/T1w/aparc+aseg.nii.gz",
        "hdf5": "data_T1_2d_size_256_256_depth_256_res_0.7_0.7_from_0_to_20.hdf5",
    }
    notes = (
        "labels are FreeSurfer's aparc+aseg in 15 classes, drawn by no expert",
        "images are those without skull and bias field (restore_brain)",
    )
    checked = (
        "groups of FreeSurfer's numbers and names in the packages against the public reader of the laboratory's files",
        "positions of the split against two independent sources",
    )
    unknown = (
        "names of the zip files; they do not matter",
        "whether the thesis ran N4: its text says so of all MRI, though these images are corrected (--no-n4)",
        "which subjects the published positions are of: they go by a sorted list of downloaded zip files",
    )

    def channel_names(self, options: ConversionOptions) -> tuple[str, ...]:
        """The domain's sequence."""
        return (f"{_sequence(options)}w",)

    def subjects(self, tree: Tree, options: ConversionOptions) -> Subjects:
        """Find subjects by six-digit number; ``aparc.a2009s+aseg`` numbers the cortex differently and is left out."""
        found, problems = tree.collect(
            {
                "image": rf"(?P<case>\d{{6}})/T1w/{_sequence(options)}w_acpc_dc_restore_brain\.nii\.gz",
                "label": r"(?P<case>\d{6})/T1w/aparc\+aseg\.nii\.gz",
            }
        )
        cases = {
            subject: Case(
                f"hcp_{subject}", (ImageSource(files["image"]),), (ImageSource(files["label"]),), subject=subject
            )
            for subject, files in found.items()
        }
        return Subjects("structural", cases, problems)

    def flat_files(self, tree: Tree, options: ConversionOptions) -> list[tuple[str, Mapping[str, str]]]:
        """Sort files by the sequence in their names."""
        return [
            (file, match.groupdict())
            for file, match in tree.match(FLAT.format(_sequence(options)))
            if not any(part.lower() in OTHER_DATASET for part in file.split("/"))
        ]


def _sequence(options: ConversionOptions) -> str:
    return (options.domain or "t1").upper()
