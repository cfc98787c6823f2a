"""Score a folder of predictions against a folder of references: one tidy table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from nnunet_fm.errors import InvalidValueError, MissingFileError
from nnunet_fm.io.messages import listed
from nnunet_fm.metrics.case import CaseScores, ScoringOptions, score_files
from nnunet_fm.metrics.label_map import label_map_files
from nnunet_fm.metrics.labels import Labels, scored_classes
from nnunet_fm.metrics.overlap import Empty
from nnunet_fm.metrics.parallel import Progress, over_files
from nnunet_fm.metrics.scores_table import CASE, CLASS, COLUMNS, METRIC, METRICS, SIZE_GROUP, SLICE, VALUE
from nnunet_fm.metrics.size_groups import mean_shares, size_group

NAMED = 5
"""Number of cases that a message names; it counts the others."""


def evaluate_folder(
    predictions: Path,
    references: Path,
    labels: Labels,
    *,
    file_ending: str = ".nii.gz",
    cases: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    tolerance: float = 1.0,
    empty: Empty = "nnunet",
    include_background: bool = False,
    per_slice: bool = False,
    slice_axis: int | None = None,
    shares: Mapping[str, float] | None = None,
    group_by: Literal["training", "case"] = "training",
    processes: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Score predictions: one row per case, class and metric, with the columns of `nnunet_fm.metrics.scores_table`.

    Args:
        predictions: folder of label maps.
        references: folder of label maps of the same names.
        labels: ``labels`` of ``dataset.json``: class -> label, or labels of a region, which is scored as their union.
            Voxels of the reference with the label ``ignore`` do not count.
        file_ending: file ending in both folders.
        cases: cases to score; None for all references, each of which needs a prediction.
        metrics: metrics to compute, of `METRICS`.
        tolerance: tolerance of the surface Dice in mm.
        empty: rule for the score of classes without a voxel: ``nnunet`` or ``smoothed``.
        include_background: score the label 0 as the class ``background``, too.
        per_slice: also score each slice, in rows with a number in the column ``slice``.
        slice_axis: axis of the array (Z, Y, X) across the slices; None for that of the largest spacing, else the first.
        shares: class -> share of the labelled volume in training cases, from `size_shares`; None for the references.
        group_by: cases whose share decides the size group: the training cases, or the reference itself.
        processes: number of cases scored at the same time.
        progress: called with the number of cases done and of all.

    Raises:
        FileNotFoundError: if there are no references, or a case lacks its reference or its prediction.
        ValueError: for an unknown metric, a damaged file, or maps that differ in size or spacing.

    Warns:
        UserWarning: for labels that ``labels`` does not list, and for files that differ in origin or direction.
    """
    classes, ignore = scored_classes(labels, include_background)
    if not classes:
        raise InvalidValueError("there is no class to score: 'labels' has the background alone", code="classes-none")
    settings = ScoringOptions(classes, ignore, _in_order(metrics), tolerance, empty, per_slice, slice_axis)
    pairs = paired_files(predictions, references, file_ending, cases)
    tasks = [(*files, settings) for files in pairs.values()]
    scores = dict(zip(pairs, over_files(score_files, tasks, processes, progress), strict=True))
    _warn(scores)
    training = mean_shares(case.shares for case in scores.values()) if shares is None else shares
    of_case = {name: case.shares or {} if group_by == "case" else training for name, case in scores.items()}
    frames = [_frame(name, case, _groups(of_case[name], classes), per_slice) for name, case in scores.items()]
    return pd.concat(frames, ignore_index=True)


def paired_files(
    predictions: Path, references: Path, file_ending: str, cases: Sequence[str] | None = None
) -> dict[str, tuple[Path, Path]]:
    """Find (prediction, reference) by case, for all references or the given cases.

    Raises:
        FileNotFoundError: if there are no references, or a case lacks its reference or its prediction.
    """
    for folder in (predictions, references):
        if not folder.is_dir():
            raise MissingFileError(f"{folder} is not a folder", code="folder-missing")
    expected, found = (label_map_files(folder, file_ending) for folder in (references, predictions))
    if not expected:
        raise MissingFileError(f"no references (*{file_ending}) in {references}", code="references-missing")
    wanted = list(expected) if cases is None else list(dict.fromkeys(cases))
    for kind, folder, files in (("reference", references, expected), ("prediction", predictions, found)):
        missing = [f"{case}{file_ending}" for case in wanted if case not in files]
        if missing:
            raise MissingFileError(
                f"{len(missing)} of {len(wanted)} cases have no {kind} in {folder}: {named(missing)}",
                code="predictions-missing",
            )
    if not wanted:
        raise MissingFileError(
            f"no case of {references} has a prediction (*{file_ending}) in {predictions}", code="predictions-missing"
        )
    return {case: (found[case], expected[case]) for case in wanted}


def _in_order(metrics: Sequence[str]) -> list[str]:
    """Metrics in the order of `METRICS`; raises an InvalidValueError for an unknown one, or without any."""
    unknown = set(metrics) - set(METRICS)
    if unknown or not metrics:
        raise InvalidValueError(
            f"unknown metrics {sorted(unknown)}: choose from {', '.join(METRICS)}", code="metric-unknown"
        )
    return [metric for metric in METRICS if metric in metrics]


def named(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return listed(names, most=NAMED)


def _groups(shares: Mapping[str, float], classes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Size group of each class; empty for the background."""
    return {name: "" if values == (0,) else size_group(shares.get(name, 0.0)) for name, values in classes.items()}


def _frame(name: str, case: CaseScores, groups: Mapping[str, str], per_slice: bool) -> pd.DataFrame:
    rows = [(name, cls, groups[cls], metric, value) for (cls, metric), value in case.values.items()]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({VALUE: float})
    if not per_slice:
        return frame
    slices = [
        pd.DataFrame(
            {CASE: name, CLASS: cls, SIZE_GROUP: groups[cls], METRIC: metric, VALUE: values, SLICE: range(len(values))}
        )
        for (cls, metric), values in case.slices.items()
    ]
    return pd.concat([frame, *slices], ignore_index=True).astype({SLICE: "Int64"} if slices else {})


def _warn(scores: Mapping[str, CaseScores]) -> None:
    strange = {name: case.unknown for name, case in scores.items() if case.unknown}
    if strange:
        labels = sorted(set().union(*strange.values()))
        warnings.warn(
            f"labels {labels[:20]} are no class, and count as background, in {named(list(strange))}", stacklevel=3
        )
    moved = [name for name, case in scores.items() if case.moved]
    if moved:
        warnings.warn(
            f"origin or direction of prediction and reference differ in {named(moved)}: voxels are compared by their "
            "index, as nnU-Net does",
            stacklevel=3,
        )
