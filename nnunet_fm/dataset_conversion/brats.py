"""BraTS: gliomas in four MR sequences, in the releases from 2018 to 2024 and in the Medical Segmentation Decathlon."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nnunet_fm.dataset_conversion.base import AllowedValues, Case, ConversionOptions, Converter, ImageSource, Listing
from nnunet_fm.dataset_conversion.labels import LabelTable, LabelValue
from nnunet_fm.dataset_conversion.problems import ConversionError
from nnunet_fm.dataset_conversion.splits import SEED, Split
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree

CHANNELS = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""Our names of the sequences -> names in ``dataset.json``, in the order of the channels."""

CORE, OEDEMA, ENHANCING, CAVITY = "core without enhancing", "oedema", "enhancing", "resection cavity"

NUMBERS = {
    "thesis": {ENHANCING: 1, CORE: 2, OEDEMA: 0, CAVITY: 0},
    # Oedema first, so that nnU-Net paints whole tumour, then core, then enhancing.
    "regions": {OEDEMA: 1, CORE: 2, ENHANCING: 3, CAVITY: 0},
}
"""Structures of the sources -> numbers in our files."""

THESIS_SPLIT = {"train": 198, "val": 30, "test": 57}
"""Cases; the sum is that of the release of 2018 and of no other."""


@dataclass(frozen=True)
class Release:
    """Names of the files of one release, and meaning of its numbers.

    Attributes:
        image: pattern of a sequence's file, whose group ``case`` names the case; ``SEQUENCE`` is replaced.
        label: of the label map.
        sequences: our name of a sequence -> the release's, or its index in files with four dimensions.
        structures: number in the label map -> structure.
        test: pattern of images without labels.
        subject: pattern at the beginning of a case's name that is the person, where one has several cases.
    """

    image: str
    label: str
    sequences: Mapping[str, str | int]
    structures: Mapping[int, str]
    test: str | None = None
    subject: str | None = None

    def image_of(self, sequence: str) -> str:
        """Pattern of a sequence's file, by our name."""
        return self.image.replace("SEQUENCE", str(self.sequences[sequence]))

    def table(self, label_set: str) -> LabelTable:
        """Numbers of this release -> those of a label set."""
        numbers = NUMBERS[label_set]
        values = {0: 0} | {number: numbers[structure] for number, structure in self.structures.items()}
        if label_set == "thesis":
            names: dict[str, LabelValue] = {"background": 0, "enhancing_tumour": 1, "tumour_core_without_enhancing": 2}
            return LabelTable(names, values)
        regions: dict[str, LabelValue] = {
            "background": 0,
            "whole_tumour": (1, 2, 3),
            "tumour_core": (2, 3),
            "enhancing_tumour": (3,),
        }
        return LabelTable(regions, values, regions_class_order=(1, 2, 3))


def _challenge(case: str, label: str = "") -> Release:
    """Releases of 2018 to 2021; ``label`` is a further ending of the label map."""
    sequences = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair"}
    structures = {1: CORE, 2: OEDEMA, 4: ENHANCING}
    pattern = rf"(?P<case>{case})"
    return Release(
        rf"{pattern}_SEQUENCE\.nii(?:\.gz)?", rf"{pattern}(?:_seg{label})\.nii(?:\.gz)?", sequences, structures
    )


def _glioma(structures: Mapping[int, str]) -> Release:
    """Releases from 2023 on: other names of sequences, several visits of one person."""
    sequences = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
    pattern = r"(?P<case>BraTS-GLI-\d{5}-\d{3})"
    return Release(
        rf"{pattern}-SEQUENCE\.nii(?:\.gz)?",
        rf"{pattern}-seg\.nii(?:\.gz)?",
        sequences,
        structures,
        subject=r"BraTS-GLI-\d{5}",
    )


RELEASES = {
    "2018": _challenge(r"Brats18_\w+"),
    "2019": _challenge(r"BraTS19_\w+"),
    # In a common copy, case 355's label map has kept the name that it had where it was drawn.
    "2020": _challenge(r"BraTS20_Training_\d{3}", r"|(?<=355)/W39_1998\.09\.19_Segm"),
    "2021": _challenge(r"BraTS2021_\d{5}"),
    "2023": _glioma({1: CORE, 2: OEDEMA, 3: ENHANCING}),
    "2024": _glioma({1: CORE, 2: OEDEMA, 3: ENHANCING, 4: CAVITY}),
    "decathlon": Release(
        r"imagesTr/(?P<case>BRATS_\d{3})\.nii(?:\.gz)?",
        r"labelsTr/(?P<case>BRATS_\d{3})\.nii(?:\.gz)?",
        {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3},
        {1: OEDEMA, 2: CORE, 3: ENHANCING},
        test=r"imagesTs/(?P<case>BRATS_\d{3})\.nii(?:\.gz)?",
    ),
    "thesis_flat": Release(
        r"(?P<case>\w[\w.-]*)_SEQUENCE\.nii(?:\.gz)?",
        r"(?P<case>\w[\w.-]*)_Label\.nii(?:\.gz)?",
        {"t1": "T1", "flair": "FLAIR"},
        {1: ENHANCING, 2: CORE},
    ),
}


@dataclass(frozen=True)
class ReleasedCase(Case):
    """A case that knows the key of its release in `RELEASES`."""

    release: str = field(kw_only=True)


class BraTS(Converter):
    """All cases of one release, whose files' names say which it is: 3 and 4 mean different things.

    Slices of the thesis are coronal: it cut the second axis of (z, y, x).
    """

    name = "brats"
    dataset = "BraTS"
    title = "BraTS: gliomas in T1, T1 with contrast, T2 and FLAIR"
    size = "285 (2018), 335 (2019), 369 (2020) or 1251 (2021) labelled cases, or those of 2023, 2024 or the Decathlon"
    licence = "registration with terms against redistribution; Decathlon: CC BY-SA 4.0"
    licence_source = "pages of the challenges; terms of single releases were not compared"
    reference = "https://doi.org/10.1109/TMI.2014.2377694"
    channels = tuple(CHANNELS.values())
    label_sets: ClassVar = {name: RELEASES["2018"].table(name) for name in NUMBERS}
    slice_axis = 1
    domain = AllowedValues(("t1", "flair"), None, "One sequence; without it, all are channels.")
    splits: ClassVar = {
        "thesis": "198, 30 and 57 of the 285 cases of 2018 as in the thesis, drawn by a seed: its names are not known"
    }
    n4 = False
    thesis = Thesis("zscore", size=224, n4=True)
    background_only = True
    layouts: ClassVar = {
        "2018": "HGG/Brats18_TCIA01_131_1/Brats18_TCIA01_131_1_flair.nii.gz, also LGG",
        "2019": "HGG/BraTS19_2013_10_1/BraTS19_2013_10_1_flair.nii.gz, also LGG",
        "2020": "BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz (or .nii)",
        "2021": "BraTS2021_00000/BraTS2021_00000_flair.nii.gz",
        "2023": "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz",
        "2024": "BraTS-GLI-00005-100/BraTS-GLI-00005-100-t2f.nii.gz",
        "decathlon": "imagesTr/BRATS_001.nii.gz with labelsTr/BRATS_001.nii.gz",
        "thesis_flat": "case001_T1.nii.gz with case001_FLAIR.nii.gz and case001_Label.nii.gz",
    }
    notes = (
        "thesis labels are disjoint: BraTS's own tumour core has the enhancing tumour in it, oedema is background",
        "images are skull-stripped and share a grid in the release",
    )
    checked = (
        "names of files and sequences of each release against public code",
        "numbers and their meaning in each release",
        "a resection cavity (4 of 2024) is in none of the regions",
    )
    unknown = (
        "which of the thesis's two foreground labels is 1",
        "names of the thesis's 198, 30 and 57 cases",
        "numbers in the thesis's own folder, taken as 1 enhancing and 2 core",
        "counts of 2019 and 2021",
    )

    def case_table(self, case: Case, options: ConversionOptions) -> LabelTable:
        """The table of the case's release."""
        assert isinstance(case, ReleasedCase)
        return RELEASES[case.release].table(options.labels)

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Cases of the one release that the tree has.

        Raises:
            ConversionError: if it has files of several, or its label maps lack what the label set needs.
        """
        keys = _releases(tree)
        if not keys:
            return Listing("", ())
        if len(keys) > 1:
            raise ConversionError(
                f"{tree.source}: has files of several releases ({', '.join(keys)}): give one's folder",
                code="releases-several",
            )
        release = RELEASES[keys[0]]
        if options.labels == "regions" and OEDEMA not in release.structures.values():
            raise ConversionError(
                f"{tree.source}: its label maps lack oedema, so there are no --labels regions", code="labels-option"
            )
        sequences = [name for name in CHANNELS if name in release.sequences and options.domain in (None, name)]
        found, problems = tree.collect(
            {_role(release, name): release.image_of(name) for name in sequences} | {"label": release.label}
        )
        cases = []
        for name, files in found.items():
            images = tuple(_source(release, sequence, files[_role(release, sequence)]) for sequence in sequences)
            person = re.match(release.subject, name) if release.subject else None
            cases.append(
                ReleasedCase(
                    name, images, (ImageSource(files["label"]),), subject=person[0] if person else "", release=keys[0]
                )
            )
        if release.test is not None:
            tests, more = tree.collect({"image": release.test})
            problems += more
            for name, files in tests.items():
                images = tuple(_source(release, sequence, files["image"]) for sequence in sequences)
                cases.append(ReleasedCase(name, images, part="test", release=keys[0]))
        numbers = ", ".join(f"{number} {structure}" for number, structure in release.structures.items())
        notes = [f"numbers of {keys[0]}: {numbers}"]
        notes += [f"{case.name}: its label map is {f}" for case in cases for f in case.files if "W39_1998" in f]
        return Listing(keys[0], cases, problems, notes, channels=tuple(CHANNELS[name] for name in sequences))

    def split(self, name: str, cases: Sequence[Case]) -> Split:
        """Return the published split, or one with as many cases in each part as the thesis had.

        Raises:
            ConversionError: if the cases are not as many as those of 2018.
        """
        total = sum(THESIS_SPLIT.values())
        if len(cases) != total:
            raise ConversionError(
                f"--split thesis is for the {total} cases of 2018, here are {len(cases)}", code="split-published"
            )
        names = sorted(case.name for case in cases)
        random.Random(SEED).shuffle(names)
        train, val = THESIS_SPLIT["train"], THESIS_SPLIT["train"] + THESIS_SPLIT["val"]
        return Split(tuple(sorted(names[:train])), tuple(sorted(names[train:val])), tuple(sorted(names[val:])))


def _releases(tree: Tree) -> list[str]:
    """Releases whose files are in the tree, by their names."""
    found = set()
    for key, release in RELEASES.items():
        images = {release.image_of(sequence) for sequence in release.sequences}
        for pattern in (*images, release.label, *([release.test] if release.test else [])):
            for name, match in tree.match(pattern):
                found.add(_year(tree, name, match["case"]) if key in ("2023", "2024") else key)
    return sorted(found)


def _year(tree: Tree, file: str, case: str) -> str:
    """Year of a release by a folder's name, or by the number of the visit: two releases name their files alike.

    Visits are numbered from 0 in 2023, before treatment, and from 100 in 2024, after it.
    """
    said = re.findall(r"BraTS-?(2023|2024)", f"{tree.source.name}/{file}", re.IGNORECASE)
    return str(said[-1]) if said else "2023" if int(case[-3:]) < 100 else "2024"


def _role(release: Release, sequence: str) -> str:
    """Name of a sequence's file in messages."""
    return "image" if isinstance(release.sequences[sequence], int) else f"{sequence} image"


def _source(release: Release, sequence: str, file: str) -> ImageSource:
    place = release.sequences[sequence]
    return ImageSource(file, details={"channel": place} if isinstance(place, int) else {})
