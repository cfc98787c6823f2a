"""NCI-ISBI 2013: zones of the prostate in T2-weighted MRI, DICOM series with NRRD labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nnunet_fm.dataset_conversion.base import Case, ConversionOptions, Converter, ImageSource, Listing
from nnunet_fm.dataset_conversion.problems import Invalid, Problem
from nnunet_fm.dataset_conversion.prostate import PROSTATE, THESIS, Part, hdf5_listing
from nnunet_fm.dataset_conversion.readers import opened_hdf5
from nnunet_fm.dataset_conversion.splits import Split
from nnunet_fm.dataset_conversion.tree import Tree

PATIENT = r"Prostate(?:3T|Dx)-0[123]-\d{4}"
LABELLED = 30
"""Patients Prostate3T-01-0001 to -0030 have labels, those with higher numbers have none."""

THESIS_PARTS: dict[str, range] = {"train": range(1, 16), "val": range(16, 21), "test": range(21, 31)}
"""Numbers of Prostate3T-01."""

HDF5_PARTS: dict[str, Part] = {"train": "train", "validation": "val", "val": "val", "test": "test"}

HDF5 = re.compile(r"(?:^|[/_-])nci[/_-]|cv_fold_\d+\.hdf5$", re.IGNORECASE)


class Series(NamedTuple):
    """Header of the first file of a series."""

    axial: bool
    description: str


class NCI(Converter):
    """Labels on grids of their own are put in their place in space; of several series the axial T2 is taken."""

    name = "nci"
    dataset = "NCI"
    title = "NCI-ISBI 2013: zones of the prostate in T2-weighted MRI"
    size = "80 labelled MRI: 60 for training, 10 leaderboard, 10 test"
    licence = "CC BY 3.0"
    licence_source = "page of the collection PROSTATE-DIAGNOSIS; not verified for Prostate-3T"
    reference = "https://doi.org/10.7937/K9/TCIA.2015.zF0vlOPv"
    channels = ("T2",)
    label_sets: ClassVar = {"default": PROSTATE}
    slice_axis = 0
    label_grid = "resample"
    layouts: ClassVar = {
        "tcia": "Prostate-3T/Prostate3T-01-0001/STUDY/SERIES/1-01.dcm with Training/Prostate3T-01-0001.nrrd (or "
        "Leaderboard, Test, any other folder)",
        "hdf5": "nci/nci_train.hdf5, nci_val.hdf5, nci_test.hdf5; or one file with images_train, images_validation, "
        "images_test",
    }
    splits: ClassVar = {
        "official": "the challenge's training cases; leaderboard and test cases tested on; HDF5: as the files say",
        "thesis": "Prostate3T-01-0001 to 0015 for training, to 0020 for validation, to 0030 for the test",
    }
    default_split = "official"
    n4 = False
    thesis = THESIS
    notes = (
        "1 is the peripheral zone, 2 the central gland: other prostate datasets have it the other way round",
        "a label on another grid than its image is resampled by nearest neighbour in physical space",
    )
    checked = (
        "numbers of cases and labels, and three odd cases (ProstateDx-01-0006, -0055, -0082), against public readers",
    )
    unknown = (
        "names of DICOM files, and which of -02- and -03- is the leaderboard and which the test",
        "the thesis's table has 10, 5 and 15 cases, its files 15, 5 and 10",
        "where the slice spacing of a label differs from its series': that the label's header is right",
    )

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        """Patients by the names of folders and label files."""
        labels, problems = tree.collect(
            {
                "label": rf"(?P<case>{PATIENT})\.nrrd",
                "corrected label": rf"(?P<case>{PATIENT})_correctedLabels\.nrrd",
            },
            optional=("label", "corrected label"),
        )
        images = _images(tree)
        if not labels and not problems and not images:
            return _hdf5(tree)
        faulty, notes, cases, unlabelled = {problem.case for problem in problems}, [], [], []
        for patient in sorted(labels.keys() - images.keys()):
            file = next(iter(labels[patient].values()))
            problems.append(Problem(file, "there is no image for this case", patient, "images-missing"))
        for patient, folders in images.items():
            files = labels.get(patient, {})
            label = files.get("corrected label", files.get("label"))
            part: Part = "train" if "-01-" in patient else "test"
            if patient in faulty:
                continue
            if label is None and part == "train":
                if patient.startswith("Prostate3T") and int(patient[-4:]) <= LABELLED:
                    problems.append(
                        Problem(next(iter(folders)), "there is no label for this case", patient, "labels-missing")
                    )
                else:
                    unlabelled.append(patient)
                continue
            if len(files) == 2:
                notes.append(f"{patient}: the corrected labels are used, {files['label']} is not")
            try:
                folder = _axial_t2(tree, folders)
            except Invalid as fault:
                problems.append(fault.problem(patient))
                continue
            if len(folders) > 1:
                notes.append(f"{patient}: of {len(folders)} series the axial T2 is used, {folder}")
            sources = (ImageSource(label),) if label else ()
            cases.append(Case(patient, (ImageSource(folder, folders[folder]),), sources, part))
        if unlabelled:
            notes.append(f"{len(unlabelled)} patients without labels are not used: {', '.join(unlabelled)}")
        return Listing("tcia", cases, problems, notes)

    def split(self, name: str, cases: Sequence[Case]) -> Split:
        """The thesis's is that of its files, over patients of Prostate-3T."""
        if name == "official" or all(case.images[0].details for case in cases):
            return super().split("official", cases)
        numbers = {case.name: int(case.name[-4:]) for case in cases if case.name.startswith("Prostate3T-01-")}
        return Split.of(
            {case: part for case, number in numbers.items() for part, which in THESIS_PARTS.items() if number in which}
        )


def _images(tree: Tree) -> dict[str, dict[str, tuple[str, ...]]]:
    """Map patients to folders of series and their files; unpacked folders go before archives."""
    found: dict[str, dict[str, list[str]]] = {}
    for file, match in tree.match(rf"(?P<case>{PATIENT})/(?:.*/)?[^/]+\.(?:dcm|DCM)"):
        found.setdefault(match["case"], {}).setdefault(file.rsplit("/", 1)[0], []).append(file)
    patients = {}
    for patient, series in sorted(found.items()):
        unpacked = {folder: files for folder, files in series.items() if tree.entries[files[0]].member is None}
        patients[patient] = {folder: tuple(files) for folder, files in (unpacked or series).items()}
    return patients


def _axial_t2(tree: Tree, folders: Mapping[str, tuple[str, ...]]) -> str:
    """The folder of the axial T2-weighted series.

    Raises:
        Invalid: if there is not exactly one among several.
    """
    if len(folders) == 1:
        return next(iter(folders))
    known = {folder: _header(tree, files[0]) for folder, files in folders.items()}
    fitting = [folder for folder, header in known.items() if header.axial and "t2" in header.description.lower()]
    if len(fitting) > 1:
        raise Invalid(
            fitting[0],
            f"a second axial T2 series of this case is {fitting[1]}: remove one of them",
            code="series-several",
        )
    if not fitting:
        names = ", ".join(sorted(f"'{header.description}'" for header in known.values()))
        raise Invalid(
            next(iter(known)),
            f"none of this case's {len(known)} series is called an axial T2: {names}",
            code="series-missing",
        )
    return fitting[0]


def _header(tree: Tree, file: str) -> Series:
    import SimpleITK as sitk

    reader: Any = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(tree.local(file)))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise Invalid(file, "is no DICOM file, or damaged", code="dicom-damaged") from None
    normal = np.reshape(reader.GetDirection(), (-1, reader.GetDimension()))[:, -1]
    description = reader.GetMetaData("0008|103e") if reader.HasMetaDataKey("0008|103e") else ""
    return Series(bool(abs(normal[-1]) > 0.8), description.strip())


def _hdf5(tree: Tree) -> Listing:
    """Three files with a split each, or one file with all of them; files of other datasets are often beside them."""
    three, problems = tree.collect({"file": r"nci_(?P<case>train|val|test)\.hdf5"})
    used = {files["file"]: split for split, files in three.items()}
    others = [
        file
        for file, _ in tree.match(r"[^/]+\.(?:hdf5|h5)")
        if file not in used and (len(tree.entries) == 1 or HDF5.search(f"{tree.source.resolve().name}/{file}"))
    ]
    if used or problems:
        notes = [f"not used beside nci_train.hdf5: {', '.join(others)}"] if others else []
        parts = [(file, "", HDF5_PARTS[split], f"nci_{split}_", 0) for file, split in used.items()]
        return hdf5_listing(tree, parts, problems, notes)
    if not others:
        return Listing("hdf5", [])
    file = others[0]
    problems = [
        Problem(other, f"a second file of all cases is {file}: take one as source", code="file-twice")
        for other in others[1:]
    ]
    try:
        with opened_hdf5(tree.local(file), file) as opened:
            splits = [split for split in HDF5_PARTS if f"images_{split}" in opened]
    except Invalid as fault:
        return Listing("hdf5", [], [*problems, fault.problem()])
    named = re.search(r"(train|val|test)[^/]*$", file)
    parts = [(file, f"_{split}", HDF5_PARTS[split], f"nci_{HDF5_PARTS[split]}_", 0) for split in splits]
    alone = named[1] if named else "train"
    return hdf5_listing(tree, parts or [(file, "", HDF5_PARTS[alone], f"nci_{alone}_", 0)], problems)
