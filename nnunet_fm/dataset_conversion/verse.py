"""VerSe 2019 and 2020: vertebrae in CT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from nnunet_fm.dataset_conversion.base import Case, ConversionOptions, ImageSource, Listing
from nnunet_fm.dataset_conversion.labels import LabelTable
from nnunet_fm.dataset_conversion.lumbar import LumbarConverter, Part, lumbar_table, part_of
from nnunet_fm.dataset_conversion.tree import Tree

VERTEBRAE = {
    **{number: f"C{number}" for number in range(1, 8)},
    **{number: f"T{number - 7}" for number in range(8, 20)},
    **{number: f"L{number - 19}" for number in range(20, 26)},
    28: "T13",
}
"""Number in the masks -> name. 26 (sacrum) and 27 (coccyx) have numbers, but are not labelled."""

LAYOUTS = {
    # Whatever folders lie above: a case is known by the name of its file.
    "bids": (r"(?P<case>sub-[^/]+)_ct\.nii\.gz", r"(?P<case>sub-[^/]+)_seg-vert_msk\.nii\.gz"),
    "challenge": (r"(?P<case>verse\d+)\.nii\.gz", r"(?P<case>verse\d+)_seg\.nii\.gz"),
}

_PARTS: tuple[tuple[str, Part], ...] = (("training", "train"), ("validation", "val"), ("test", "test"))

FOLDERS = {rf"(?:dataset-)?(?:verse\d\d|\d\d)?[-_]?{folder}": part for folder, part in _PARTS}

RELEASE_2019 = re.compile(r"verse[-_]?(?:20)?19(?!\d)", re.IGNORECASE)


class VerSe(LumbarConverter):
    """VerSe; the names of files separate scans, as folders of the 400 series hold several of one person."""

    name = "verse"
    dataset = "VerSe"
    title = "VerSe 2019 and 2020 (MICCAI): vertebrae in CT"
    size = "374 labelled CT of 355 persons"
    licence = "CC BY-SA 4.0"
    licence_source = "README of the organisers' repository"
    reference = "https://arxiv.org/abs/2001.09193"
    channels = ("CT",)
    label_sets: ClassVar = {
        "lumbar": lumbar_table({20 + i: 1 + i for i in range(5)}, [*range(1, 20), 25, 26, 27, 28]),
        "full": LabelTable(
            {"background": 0, **{name: i for i, name in enumerate(VERTEBRAE.values(), 1)}},
            {0: 0, **{number: i for i, number in enumerate(VERTEBRAE, 1)}},
        ),
    }
    layouts: ClassVar = {
        "bids": "rawdata/sub-verse004/sub-verse004_ct.nii.gz with "
        "derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz, below folders such as dataset-verse19training, "
        "dataset-02validation and 03_test",
        "challenge": "verse004.nii.gz with verse004_seg.nii.gz",
        "png": "VerSe/images/train/sub-verse004_0000.png with VerSe/labels/train/sub-verse004_0000_labelTrainIds.png",
    }
    splits: ClassVar = {"official": "the training, validation and test folders of the download"}
    default_split = "official"
    png_case = r"sub-[^/]+"
    thesis_slices = 120
    notes = (
        "--labels lumbar: L6 and T13 are background, scans without a lumbar vertebra are left out",
        "validation and test folders go by the names above the files; without such a name a scan is for training",
    )
    checked = (
        "numbers of vertebrae, names of files and folders against the organisers' repository",
        "a mask of the organisers: stored as float64, oriented PIR",
    )
    unknown = (
        "names of the files of the older challenge release (layout challenge)",
        "whether scans that both releases have are the same byte for byte",
        "the scans that the thesis used: it states 116, 1 and 15, no list",
    )

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Scans of both releases, each once, all of a person in one part of the split."""
        for layout, (image, label) in LAYOUTS.items():
            releases, problems = [], []
            for files in _releases(tree):
                found, faults = files.collect({"image": image, "label": label})
                releases.append([self._case(tree, name, paths) for name, paths in found.items()])
                problems += faults
            if any(releases) or problems:
                cases, notes = _pooled(*releases)
                return Listing(layout, cases, problems, notes)
        listing = self.png_cases(tree, options)
        cases, notes = _together(listing.cases)
        return replace(listing, cases=cases, notes=(*listing.notes, *notes))

    def _case(self, tree: Tree, name: str, files: dict[str, str]) -> Case:
        part = part_of(tree, files["image"], FOLDERS)
        return Case(name, (ImageSource(files["image"]),), (ImageSource(files["label"]),), part, self.subject(name))

    def subject(self, case: str) -> str:
        """``sub-verse408`` of ``sub-verse408_split-verse223``."""
        return case.split("_", 1)[0]


def _scan(case: Case) -> str:
    """Number of a scan, by which the two releases can be matched."""
    number = re.search(r"split-(verse\d+)", case.name)
    return number[1] if number else case.person.removeprefix("sub-")


def _releases(tree: Tree) -> list[Tree]:
    """The files of 2019, and all others: some scans of the two have the same name."""
    old = {file for file in tree.entries if RELEASE_2019.search(f"{tree.source.resolve().name}/{file}")}
    return [
        replace(tree, entries={file: entry for file, entry in tree.entries.items() if (file in old) is wanted})
        for wanted in (True, False)
    ]


def _pooled(old: Sequence[Case], new: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """Scans of 2019 that 2020 has as well are dropped, so that none is trained on and tested on."""
    newer = {_scan(case) for case in new}
    twice = sorted(case.name for case in old if _scan(case) in newer)
    kept, notes = _together([*(case for case in old if _scan(case) not in newer), *new])
    if twice:
        notes.append(f"scans of 2019 that 2020 has as well are taken from there: {', '.join(twice)}")
    return kept, notes


def _together(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """All scans of a person in one part: in the test set if one is there, else in the validation set."""
    parts: dict[str, set[Part]] = {}
    for case in cases:
        parts.setdefault(case.person, set()).add(case.part)
    strictest = {person: max(found, key=("train", "val", "test").index) for person, found in parts.items()}
    notes = [
        f"{case.name} is moved from {case.part} to {strictest[case.person]}, where other scans of its person are"
        for case in cases
        if case.part != strictest[case.person]
    ]
    return [replace(case, part=strictest[case.person]) for case in cases], notes
