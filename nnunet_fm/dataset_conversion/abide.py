"""ABIDE I: T1-weighted MRI of two sites, with labels that FreeSurfer made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from nnunet_fm.dataset_conversion.base import AllowedValues, Case, ConversionOptions, ImageSource, Work
from nnunet_fm.dataset_conversion.brain import FLAT, BrainConverter, Subjects
from nnunet_fm.dataset_conversion.problems import Invalid, Problem
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree
from nnunet_fm.io.volume import Grid, Volume

SITES = ("caltech", "stanford")

EXCLUDED = {"caltech": ("A00033264", "A00033493"), "stanford": ("A00033547",)}
"""Subjects that the public reader of the laboratory's tree leaves out, without a reason."""

NATIVE = r"(?:[A-Za-z]+_|sub-)(?P<case>\d{7})/(?:session_1/anat_1/mprage|anat/sub-\d{7}_T1w)\.nii(?:\.gz)?"
"""A T1 as scanned, in the release or in its BIDS copy."""

FREESURFER = r"(?:[A-Za-z]+_|sub-)(?P<case>\d{{7}})/mri/{}\.mgz"
LABORATORY = r"(?P<case>A\d+)/{}"


class ABIDE(BrainConverter):
    """One site, with FreeSurfer's outputs beside the release or instead of it, or as the laboratory's tree."""

    name = "abide"
    dataset = "ABIDE"
    title = "ABIDE I, sites Caltech and Stanford: brain structures in MRI"
    size = "one T1w a subject; 35 subjects a site are in the published split"
    licence = "CC BY-NC-SA"
    licence_source = "README of a public repository of FreeSurfer outputs (abide_preproc_smri_freesurfer6)"
    reference = "https://doi.org/10.1038/mp.2013.78"
    channels = ("T1w",)
    label_grid = "resample"
    domain = AllowedValues(SITES, "caltech", "Which site.")
    positions: ClassVar = {"train": range(10), "val": range(10, 15), "test": range(16, 36)}
    depths: ClassVar = {"stanford": 132}
    margin = 20
    thesis = Thesis("percentile", size=256, spacing=0.7, n4=True, skull_strip=True)
    layouts: ClassVar = {
        "freesurfer": "Outputs/freesurfer/5.1/Caltech_0051456/mri/T1.mgz with aparc+aseg.mgz (or aseg.mgz) beside it",
        "nitrc": "Caltech_0051456/session_1/anat_1/mprage.nii.gz with FreeSurfer's outputs in the same tree",
        "bids": "RawDataBIDS/Caltech/sub-0051456/anat/sub-0051456_T1w.nii.gz with FreeSurfer's outputs",
        "laboratory": "CALTECH/A00032872/MPRAGE.nii (or MPRAGE_n4.nii) with orig_labels_aligned_with_true_image.nii.gz",
        "hdf5": "caltech/data_T1_2d_size_256_256_depth_256_res_0.7_0.7_from_0_to_10.hdf5",
    }
    notes = (
        "labels are FreeSurfer's in 15 classes, drawn by no expert: the release has none",
        "FreeSurfer's labels are put onto an image as scanned by position in the scanner, nearest neighbour",
    )
    checked = (
        "groups of FreeSurfer's numbers, the laboratory's tree and its excluded subjects against its public reader",
        "positions of the split against two independent sources",
    )
    unknown = (
        "why three subjects are excluded, and what their numbers are in the release",
        "whether the release's numbers sort as the laboratory's subjects do: the published split goes by position",
        "settings of the laboratory's N4",
        "the laboratory's crop of Caltech (80 rows of its files): both sites are cropped to the labels, as Stanford is",
    )

    def subjects(self, tree: Tree, options: ConversionOptions) -> Subjects:
        """Subjects of one site."""
        site = replace(tree, entries={n: e for n, e in tree.entries.items() if _site(tree, n) == options.domain})
        found = self._laboratory(site, options)
        return found if found.cases or found.problems else self._public(site)

    def flat_files(self, tree: Tree, options: ConversionOptions) -> list[tuple[str, Mapping[str, str]]]:
        """Sort files by their folder: the files of all sites have similar names."""
        return [
            (file, match.groupdict())
            for file, match in tree.match(FLAT.format("T1"))
            if _site(tree, file) == options.domain
        ]

    def fit(self, label: Volume, grid: Grid, file: str, work: Work) -> Volume:
        """Only FreeSurfer's own files may lie on another grid: they are conformed to 1 mm, the image may not be."""
        if not file.endswith(".mgz") and (difference := label.grid.difference(grid)) is not None:
            raise Invalid(file, f"another grid than the image: {difference}", code="grid-differs")
        return super().fit(label, grid, file, work)

    def _laboratory(self, tree: Tree, options: ConversionOptions) -> Subjects:
        """With ``--n4``, the laboratory's own corrected image is taken where there is one."""
        found, problems = tree.collect(
            {
                "image": LABORATORY.format(r"MPRAGE\.nii(?:\.gz)?"),
                "corrected image": LABORATORY.format(r"MPRAGE_n4\.nii(?:\.gz)?"),
                "label": LABORATORY.format(r"orig_labels_aligned_with_true_image\.nii\.gz"),
            },
            optional=("image", "corrected image"),
        )
        excluded = EXCLUDED[options.domain or SITES[0]]
        cases = {}
        for subject, files in found.items():
            corrected = files.get("corrected image") if options.n4 else None
            image = corrected or files.get("image")
            if image is not None:
                cases[subject] = _case(subject, image, files["label"], corrected=corrected is not None)
                continue
            hint = ", only MPRAGE_n4, which --n4 takes" if "corrected image" in files else ""
            problems.append(
                Problem(files["label"], f"there is no image for this case{hint}", subject, "images-missing")
            )
        absent = [s for s in excluded if s in cases or any(problem.case == s for problem in problems)]
        notes = [f"{subject} is left out, as the public reader does (it gives no reason)" for subject in absent]
        if options.n4 and any(case.corrected for case in cases.values()):
            notes.append("N4: the laboratory's own result (MPRAGE_n4) is taken where there is one")
        return Subjects(
            "laboratory",
            {subject: case for subject, case in cases.items() if subject not in excluded},
            [problem for problem in problems if problem.case not in excluded],
            notes,
        )

    def _public(self, tree: Tree) -> Subjects:
        """The image as scanned where it is there, FreeSurfer's own T1 otherwise; labels are always FreeSurfer's."""
        roles = {
            "native image": NATIVE,
            "image": FREESURFER.format("T1"),
            "label": FREESURFER.format(r"aparc\+aseg"),
            "aseg": FREESURFER.format("aseg"),
        }
        found, problems = tree.collect(roles, optional=tuple(roles))
        cases, coarse, layout = {}, 0, "freesurfer"
        for subject, files in found.items():
            native = files.get("native image")
            image, label = native or files.get("image"), files.get("label") or files.get("aseg")
            if native is not None:
                layout = "bids" if "/anat/" in native else "nitrc"
            if label is None:
                rule = (
                    "there is no label for this case: ABIDE has no segmentations, so FreeSurfer's "
                    "mri/aparc+aseg.mgz of this subject has to be in the source as well"
                )
                problems.append(Problem(next(iter(files.values())), rule, subject, "labels-missing"))
            elif image is None:
                problems.append(Problem(label, "there is no image for this case", subject, "images-missing"))
            else:
                coarse += "label" not in files
                cases[subject] = _case(subject, image, label)
        notes = [f"{coarse} cases have labels of aseg.mgz, for there is no aparc+aseg.mgz"] if coarse else []
        return Subjects(layout, cases, problems, notes)


def _case(subject: str, image: str, label: str, *, corrected: bool = False) -> Case:
    return Case(f"abide_{subject}", (ImageSource(image),), (ImageSource(label),), subject=subject, corrected=corrected)


def _site(tree: Tree, file: str) -> str | None:
    """Site whose folder holds a file: the innermost folder that names one, the source itself last."""
    for part in reversed((tree.source.resolve().name, *file.split("/"))):
        word = re.split(r"[_.]", part)[0].lower()
        if word in SITES:
            return word
    return None
