"""Measure the volume of each structure in a folder of label maps, without references."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_fm.errors import MissingFileError
from nnunet_fm.metrics.find_labels import DATASET_JSON, find_labels
from nnunet_fm.metrics.label_map import find_file_ending, label_map_files, read_label_map
from nnunet_fm.metrics.labels import foreground, read_dataset_json
from nnunet_fm.metrics.parallel import Progress, over_files

COLUMNS = ("case", "class", "voxels", "ml")


def measure_volumes(
    folder: Path, dataset_json: Path | None = None, *, processes: int = 1, progress: Progress | None = None
) -> pd.DataFrame:
    """Measure all label maps of a folder.

    Args:
        folder: folder of label maps, such as predictions.
        dataset_json: file with the labels; None takes the one in the folder, or else the labels of the maps.
        processes: number of label maps that are read at the same time.
        progress: called with the number of files done and of all.

    Returns:
        Table with the columns `COLUMNS`, a row for each case and class or region; ``ml`` is NaN for 2D label maps.

    Raises:
        FileNotFoundError: for a folder that does not exist or has no label maps.
        ValueError: for a damaged file.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder", code="folder-missing")
    described = dataset_json or (folder / DATASET_JSON if (folder / DATASET_JSON).is_file() else None)
    content = {} if described is None else read_dataset_json(described)
    ending = content.get("file_ending") or find_file_ending(folder)
    files = label_map_files(folder, ending)
    if not files:
        raise MissingFileError(f"no label maps (*{ending}) in {folder}", code="label-maps-missing")
    labels = content.get("labels") or find_labels(folder, ending, processes=processes)
    classes, _ = foreground(labels)
    measured = over_files(_measure, [(file, classes) for file in files.values()], processes, progress)
    rows = [(case, *row) for case, found in zip(files, measured, strict=True) for row in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measure(file: Path, classes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int, float]]:
    """Name, number of voxels and ml of each class in a file."""
    label_map = read_label_map(file)
    found, counts = np.unique(label_map.array, return_counts=True)
    voxels = dict(zip(found.tolist(), counts.tolist(), strict=True))
    size = math.prod(label_map.spacing) / 1000 if label_map.array.ndim == 3 else math.nan
    totals = {name: sum(voxels.get(label, 0) for label in labels) for name, labels in classes.items()}
    return [(name, total, total * size) for name, total in totals.items()]
