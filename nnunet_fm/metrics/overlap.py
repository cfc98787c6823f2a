"""Overlap of two label maps: all counts in one pass over the voxels, and Dice and Jaccard of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.metrics.label_codes import Codes

Empty = Literal["nnunet", "smoothed"]
"""Rule for the score of an empty class: ``nnunet``: NaN if empty in both maps, 0 if in one; ``smoothed``: 1 is added to
numerator and denominator, so that empty in both scores 1."""

Counts = NDArray[np.int64]


def joint_counts(reference: Codes, prediction: Codes, size: int, axis: int | None = None) -> Counts:
    """Count the voxels of each pair of codes.

    Args:
        reference: codes below ``size``, of any shape.
        prediction: codes of the same shape.
        size: number of codes.
        axis: count each slice across this axis by itself.

    Returns:
        (size, size), reference by prediction; with an axis (slices, size, size).
    """
    planes = zip(*(np.moveaxis(codes, axis or 0, 0) for codes in (reference, prediction)), strict=True)
    counts = (
        np.bincount((here.astype(np.intp) * size + there).ravel(), minlength=size * size).reshape(size, size)
        for here, there in planes
    )
    if axis is not None:
        return np.stack(list(counts))
    total = np.zeros((size, size), np.int64)
    for plane in counts:
        total += plane
    return total


def class_counts(counts: Counts, members: Sequence[int]) -> tuple[Counts, Counts, Counts]:
    """Count the voxels of a class in both maps at once, in the reference, and in the prediction.

    Args:
        counts: (..., size, size) of `joint_counts`.
        members: codes of the class.
    """
    rows = counts[..., list(members), :]
    return rows[..., list(members)].sum((-2, -1)), rows.sum((-2, -1)), counts[..., list(members)].sum((-2, -1))


def dice(both: Counts, reference: Counts, prediction: Counts, empty: Empty = "nnunet") -> NDArray[np.float64]:
    """Dice of counts of any shape: ``2 |P ∩ R| / (|P| + |R|)``, or ``(2 |P ∩ R| + 1) / (|P| + |R| + 1)``."""
    return _ratio(2 * both, reference + prediction, empty)


def jaccard(both: Counts, reference: Counts, prediction: Counts, empty: Empty = "nnunet") -> NDArray[np.float64]:
    """Jaccard index, intersection over union, of counts of any shape."""
    return _ratio(both, reference + prediction - both, empty)


def _ratio(part: Counts, whole: Counts, empty: Empty) -> NDArray[np.float64]:
    smoothing = 1.0 if empty == "smoothed" else 0.0
    with np.errstate(invalid="ignore"):
        return np.divide(part + smoothing, whole + smoothing)
