"""Dice per case and class of a folder of predictions, with nnU-Net's conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import NDArray

Labels = Mapping[str, int | Sequence[int]]
"""Class name -> label, or the labels of a region, as in ``dataset.json``."""

COLUMNS = ["case", "class", "metric", "value"]


def foreground(labels: Labels) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Foreground classes as name -> labels, and the ignore label, of a ``dataset.json``'s ``labels``."""
    as_tuples = {name: (value,) if isinstance(value, int) else tuple(value) for name, value in labels.items()}
    ignore = as_tuples.pop("ignore", (None,))[0]
    return {name: values for name, values in as_tuples.items() if values != (0,)}, ignore


def dice(reference: NDArray[Any], prediction: NDArray[Any], counted: NDArray[np.bool_] | None = None) -> float:
    """Dice of two masks of equal shape; NaN where both are empty.

    Args:
        reference: boolean mask.
        prediction: boolean mask.
        counted: voxels that count; all of them by default.
    """
    if counted is not None:
        reference, prediction = reference & counted, prediction & counted
    size = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(reference & prediction)) / size if size else float("nan")


def dice_scores(predictions: Path, references: Path, labels: Labels, file_ending: str = ".nii.gz") -> pd.DataFrame:
    """Dice of every case and foreground class, one row each: columns ``case``, ``class``, ``metric``, ``value``.

    A class that is empty in both maps has no Dice (NaN), as in nnU-Net; voxels with the ignore label do not count.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names; every one of them needs a prediction.
        labels: the ``labels`` of ``dataset.json``; regions (lists of labels) are evaluated as unions.
        file_ending: of both, as in ``dataset.json``.

    Raises:
        FileNotFoundError: if a reference has no prediction, or there is no reference at all.
        ValueError: if two maps differ in size.
    """
    classes, ignore = foreground(labels)
    files = sorted(references.glob(f"*{file_ending}"))
    if not files:
        raise FileNotFoundError(f"no reference (*{file_ending}) in {references}")
    missing = [file.name for file in files if not (predictions / file.name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} cases lack a prediction in {predictions}: {missing[:5]}"
        )
    rows = []
    for file in files:
        reference, prediction = _read(file), _read(predictions / file.name)
        if reference.shape != prediction.shape:
            raise ValueError(f"{predictions / file.name} has size {prediction.shape}, its reference {reference.shape}")
        counted = None if ignore is None else reference != ignore
        case = file.name.removesuffix(file_ending)
        for name, values in classes.items():
            value = dice(np.isin(reference, values), np.isin(prediction, values), counted)
            rows.append((case, name, "Dice", value))
    return pd.DataFrame(rows, columns=COLUMNS)


def mean_per_class(scores: pd.DataFrame) -> pd.Series[float]:
    """Mean over cases, NaN left out, of each class in the order of the table."""
    return scores.groupby("class", sort=False)["value"].mean()


def mean_foreground(scores: pd.DataFrame) -> float:
    """Mean of the classes' means, as nnU-Net's ``foreground_mean``; a class without any Dice is left out."""
    return float(mean_per_class(scores).mean())


def _read(file: Path) -> NDArray[Any]:
    """A label map as an array (Z, Y, X)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
