"""Size groups of classes by their share of the labelled volume."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from nnunet_fm.errors import MissingFileError
from nnunet_fm.metrics.label_codes import Coding
from nnunet_fm.metrics.label_map import label_map_files, read_label_map
from nnunet_fm.metrics.labels import Labels, foreground
from nnunet_fm.metrics.overlap import Counts
from nnunet_fm.metrics.parallel import Progress, over_files
from nnunet_fm.metrics.scores_table import SIZE_GROUPS

_LIMITS = (0.01, 0.05, 0.15)


def size_group(share: float) -> str:
    """Group of `SIZE_GROUPS` for a share from 0 to 1; a limit belongs to the group above it."""
    return SIZE_GROUPS[bisect_right(_LIMITS, share)]


def case_shares(voxels: Counts, coding: Coding) -> dict[str, float] | None:
    """Share of each class in the labelled volume of one map; None if nothing is labelled.

    The labelled volume is the union of all classes without the background, which has no share.

    Args:
        voxels: number of voxels of each code, (codes,).
        coding: coding of the labels.
    """
    classes = {name: [code for code in codes if code != 0] for name, codes in coding.members.items()}
    labelled = voxels[sorted({code for codes in classes.values() for code in codes})].sum()
    if labelled == 0:
        return None
    return {name: float(voxels[codes].sum() / labelled) for name, codes in classes.items() if codes}


def mean_shares(cases: Iterable[Mapping[str, float] | None]) -> dict[str, float]:
    """Mean share of each class over cases; a case without any label is left out, one without the class counts as 0."""
    labelled = [shares for shares in cases if shares is not None]
    names = dict.fromkeys(name for shares in labelled for name in shares)
    return {name: float(np.mean([shares[name] for shares in labelled])) for name in names}


def size_shares(
    labels_folder: Path,
    labels: Labels,
    file_ending: str = ".nii.gz",
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Share of each class in the labelled volume (0 to 1), as mean over the label maps of a folder.

    Args:
        labels_folder: label maps of training cases, such as ``labelsTr``.
        labels: labels of ``dataset.json``; a region counts as the union of its labels.
        file_ending: file ending of the label maps.
        processes: number of processes that read.
        progress: called with the number of files done and of all.

    Raises:
        FileNotFoundError: if there are no label maps.
        ValueError: if one is damaged.
    """
    files = label_map_files(labels_folder, file_ending)
    if not files:
        raise MissingFileError(f"no label maps (*{file_ending}) in {labels_folder}", code="label-maps-missing")
    tasks = [(file, Coding.of(*foreground(labels))) for file in files.values()]
    return mean_shares(over_files(_shares_of_file, tasks, processes, progress))


def _shares_of_file(file: Path, coding: Coding) -> dict[str, float] | None:
    codes, _ = coding.encode(read_label_map(file).array)
    voxels = sum(np.bincount(plane.ravel(), minlength=coding.size) for plane in codes)
    return case_shares(np.asarray(voxels), coding)
