"""Number and size of a dataset's images, from fingerprint or headers, with usual values as default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_fm.data.folds import read_folds
from nnunet_fm.studies.cases import image_names, label_names
from nnunet_fm.studies.datasets import Dataset
from nnunet_fm.studies.job_markers import read_json_or_none

LOOKED_AT = 5
"""Number of images whose headers are read; the others are assumed to be alike."""
USUAL_CASES, USUAL_TESTS = 50, 20
USUAL_SHAPE, USUAL_SPACING = (100, 256, 256), (2.0, 1.0, 1.0)
"""Size (voxels) and spacing (mm), both (z, y, x), if no image can be read."""


@dataclass(frozen=True)
class Images:
    """Numbers of a dataset.

    Attributes:
        cases, tests: number of training and of labelled test cases.
        folds: number of training cases of each fold.
        channels: number of channels of an image.
        shape, spacing: size (voxels) and spacing (mm) of a usual image, (z, y, x).
        known: whether images were read.
    """

    cases: int
    tests: int
    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    known: bool
    folds: tuple[int, ...] = ()

    @property
    def voxels(self) -> int:
        """Number of voxels of one image."""
        return int(np.prod(self.shape))

    def training_cases(self, fold: str) -> int:
        """Number of training cases of a fold; four fifths of all cases if the fold is unknown."""
        if fold == "all":
            return self.cases
        return self.folds[int(fold)] if int(fold) < len(self.folds) else max(1, self.cases * 4 // 5)

    @property
    def slices(self) -> int:
        """Slices of one image, across the axis with the largest spacing, usually the shortest one."""
        return self.shape[int(np.argmax(self.spacing))] if max(self.spacing) > min(self.spacing) else min(self.shape)


def image_numbers(dataset: Dataset, preprocessed: Path) -> Images:
    """Read the numbers of a dataset; usual ones if it is missing.

    Args:
        dataset: the dataset.
        preprocessed: the folder ``nnUNet_preprocessed``.
    """
    content = dataset.json
    if dataset.folder is None or not content:
        return Images(USUAL_CASES, USUAL_TESTS, 1, USUAL_SHAPE, USUAL_SPACING, known=False)
    ending = content.get("file_ending", ".nii.gz")
    train = image_names(dataset.folder / "imagesTr", ending)
    tests = len(image_names(dataset.folder / "imagesTs", ending) & label_names(dataset.folder / "labelsTs", ending))
    channels = len(content.get("modality") or content.get("channel_names") or [0])
    sizes = _fingerprint(preprocessed / dataset.name / "dataset_fingerprint.json") or _headers(
        [dataset.folder / "imagesTr" / f"{case}_0000{ending}" for case in sorted(train)[:LOOKED_AT]]
    )
    folds = tuple(len(f["train"]) for f in read_folds(sorted(train), preprocessed / dataset.name, dataset.folder))
    if not sizes:
        number = len(train) or USUAL_CASES
        return Images(number, tests, channels, USUAL_SHAPE, USUAL_SPACING, known=False, folds=folds)
    shape, spacing = (np.median(np.array(values), axis=0) for values in zip(*sizes, strict=True))
    shape, spacing = tuple(int(n) for n in shape), tuple(float(s) for s in spacing)
    return Images(len(train), tests, channels, shape, spacing, known=True, folds=folds)


def _fingerprint(file: Path) -> list[tuple[list[int], list[float]]]:
    content = read_json_or_none(file) or {}
    return list(zip(content.get("shapes_after_crop", []), content.get("spacings", []), strict=False))


def _headers(files: list[Path]) -> list[tuple[list[int], list[float]]]:
    """Size and spacing of all readable 3D images."""
    from nnunet_fm.preprocessing.orientation import read_header

    there = [str(file) for file in files if file.is_file() and file.stat().st_size > 0]
    headers = [header for file in there if (header := read_header(file)) is not None]
    return [([*h.GetSize()[::-1]], [*h.GetSpacing()[::-1]]) for h in headers if h.GetDimension() == 3]
