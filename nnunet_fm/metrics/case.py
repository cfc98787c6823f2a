"""All scores of one case: a predicted label map against its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.metrics.boundary import corners, voxels
from nnunet_fm.metrics.label_codes import Codes, Coding
from nnunet_fm.metrics.label_map import LabelMap, grid_fault, read_label_map, same_place
from nnunet_fm.metrics.overlap import Empty, class_counts, dice, jaccard, joint_counts
from nnunet_fm.metrics.scores_table import DICE, HD95, JACCARD, METRICS, NSD, VOLUME_PREDICTION, VOLUME_REFERENCE
from nnunet_fm.metrics.size_groups import case_shares
from nnunet_fm.metrics.surface import hd95, surface_dice

OVERLAP: dict[str, Callable[..., NDArray[np.float64]]] = {DICE: dice, JACCARD: jaccard}
"""Metrics that are also computed for slices."""


@dataclass(frozen=True)
class ScoringOptions:
    """Classes to score, and options of the metrics.

    Args:
        classes: name -> labels.
        ignore: voxels of the reference with this label do not count.
        metrics: metrics of `nnunet_fm.metrics.scores_table.METRICS`.
        tolerance: tolerance of the surface Dice in mm.
        empty: rule for the score of empty classes.
        per_slice: score slices, too.
        slice_axis: axis of the array across the slices; None for `default_slice_axis`.
    """

    classes: Mapping[str, tuple[int, ...]]
    ignore: int | None = None
    metrics: Sequence[str] = METRICS
    tolerance: float = 1.0
    empty: Empty = "nnunet"
    per_slice: bool = False
    slice_axis: int | None = None


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case.

    Args:
        values: (class, metric) -> value.
        slices: (class, metric) -> value of each slice, (S,).
        shares: class -> share of the reference's labelled volume; None if nothing is labelled.
        unknown: labels of either map that no class has.
        moved: whether the files differ in origin or direction.
    """

    values: dict[tuple[str, str], float]
    slices: dict[tuple[str, str], NDArray[np.float64]]
    shares: dict[str, float] | None
    unknown: set[int] = field(default_factory=set)
    moved: bool = False


def score_files(prediction: Path, reference: Path, settings: ScoringOptions) -> CaseScores:
    """Score a predicted file against a reference file.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or the two differ in size or spacing.
    """
    coding = Coding.of(settings.classes, settings.ignore)
    (expected, unknown), (found, more) = (_read_coded(path, coding) for path in (reference, prediction))
    fault = grid_fault(found, expected)
    if fault:
        raise InvalidValueError(
            f"{prediction} {fault}: a prediction must lie on the grid of its reference, {reference}",
            code="grid-differs",
        )
    scores = score_codes(expected.array, found.array, expected.spacing, coding, settings)
    return replace(scores, unknown=unknown | more, moved=not same_place(found, expected))


def default_slice_axis(spacing: Sequence[float]) -> int:
    """Axis of the largest spacing if it exceeds the others by more than 1 %, else the first axis."""
    largest, second = sorted(spacing, reverse=True)[:2]
    return int(np.argmax(spacing)) if largest > 1.01 * second else 0


def _read_coded(path: Path, coding: Coding) -> tuple[LabelMap, set[int]]:
    """Read a label map as codes, and the labels that no class has; the uncoded map, which is larger, is freed."""
    read = read_label_map(path)
    codes, unknown = coding.encode(read.array)
    return replace(read, array=codes), unknown


def score_codes(
    reference: Codes, prediction: Codes, spacing: Sequence[float], coding: Coding, settings: ScoringOptions
) -> CaseScores:
    """Score a label map against another.

    Args:
        reference: codes, (Z, Y, X) or (Y, X).
        prediction: codes of the same shape; the reference's ignored voxels are overwritten.
        spacing: spacing of the axes in mm.
        coding: coding of the labels.
        settings: classes and options.
    """
    millilitres = float(np.prod(spacing)) / 1000
    if reference.ndim == 3 and 1 in reference.shape:  # a 2D image stored in 3D, where every voxel would be surface
        flat = reference.shape.index(1)
        reference, prediction = reference.squeeze(flat), prediction.squeeze(flat)
        spacing = [step for axis, step in enumerate(spacing) if axis != flat]
    if coding.ignored is not None:
        prediction[reference == coding.ignored] = coding.ignored
    counts = joint_counts(reference, prediction, coding.size)
    values: dict[tuple[str, str], float] = {}
    for name, codes in coding.members.items():
        both, here, there = class_counts(counts, codes)
        values |= {(name, metric): float(of(both, here, there, settings.empty)) for metric, of in OVERLAP.items()}
        values[name, VOLUME_REFERENCE] = float(here * millilitres)
        values[name, VOLUME_PREDICTION] = float(there * millilitres)
    if not {HD95, NSD}.isdisjoint(settings.metrics):
        values |= _surface_scores(reference, prediction, spacing, coding, settings)
    return CaseScores(
        {(name, metric): values[name, metric] for name in coding.members for metric in settings.metrics},
        _slice_scores(reference, prediction, spacing, coding, settings) if settings.per_slice else {},
        case_shares(counts.sum(1), coding),
    )


def _slice_scores(
    reference: Codes, prediction: Codes, spacing: Sequence[float], coding: Coding, settings: ScoringOptions
) -> dict[tuple[str, str], NDArray[np.float64]]:
    axis = default_slice_axis(spacing) if settings.slice_axis is None else settings.slice_axis
    if reference.ndim == 2:
        reference, prediction, axis = reference[None], prediction[None], 0  # a 2D image is one slice
    counts = joint_counts(reference, prediction, coding.size, axis)
    return {
        (name, metric): OVERLAP[metric](*class_counts(counts, codes), settings.empty)
        for name, codes in coding.members.items()
        for metric in settings.metrics
        if metric in OVERLAP
    }


def _surface_scores(
    reference: Codes, prediction: Codes, spacing: Sequence[float], coding: Coding, settings: ScoringOptions
) -> dict[tuple[str, str], float]:
    # The outside of the image is background, or of no class if the background itself is scored.
    outside = coding.size - 1 if any(0 in codes for codes in coding.members.values()) else 0
    values: dict[tuple[str, str], float] = {}
    if HD95 in settings.metrics:
        here, there = voxels(reference, outside), voxels(prediction, outside)
        for name, codes in coding.members.items():
            values[name, HD95] = hd95(here, there, codes, coding.ignored, spacing)
    if NSD in settings.metrics:
        here, there = corners(reference, outside), corners(prediction, outside)
        for name, codes in coding.members.items():
            values[name, NSD] = surface_dice(here, there, codes, coding.ignored, spacing, settings.tolerance)
    return values
