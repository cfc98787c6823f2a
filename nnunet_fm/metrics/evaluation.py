"""Evaluate a folder of predictions: find labels and cases, compute scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from nnunet_fm.errors import MissingFileError
from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.metrics.find_labels import find_dataset_json, find_labels, find_training_labels, swapped, trained_on
from nnunet_fm.metrics.folder import evaluate_folder, named
from nnunet_fm.metrics.label_map import find_file_ending, label_map_files
from nnunet_fm.metrics.labels import Labels, read_dataset_json
from nnunet_fm.metrics.overlap import Empty
from nnunet_fm.metrics.parallel import Progress
from nnunet_fm.metrics.scores_table import METRICS, write_scores
from nnunet_fm.metrics.size_groups import size_shares
from nnunet_fm.metrics.summary import class_groups, mean_foreground, summarise, volume_scores

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
        dataset_json: file with the labels; None to search it, or else the labels in the references.
        metrics: metrics to compute, of `METRICS`.
        tolerance: tolerance of the surface Dice in mm.
        empty: rule for the score of classes without a voxel: ``nnunet`` or ``smoothed``.
        include_background: whether to score label 0, too.
        per_slice: whether to score each slice, too.
        slice_axis: axis of the array (Z, Y, X) across the slices; None for that of the largest spacing.
        group_by: cases whose share of the labelled volume decides a size group.
        size_from: folder with labels of the training cases; None to search it.
        chill: whether to leave out references without a prediction.
        processes: number of cases scored at the same time.
    """

    dataset_json: Path | None = None
    metrics: Sequence[str] = METRICS
    tolerance: float = 1.0
    empty: Empty = "nnunet"
    include_background: bool = False
    per_slice: bool = False
    slice_axis: int | None = None
    group_by: Literal["training", "case"] = "training"
    size_from: Path | None = None
    chill: bool = False
    processes: int = 1


@dataclass(frozen=True)
class FolderEvaluation:
    """Scores of a folder, with the columns of `nnunet_fm.metrics.scores_table`, and the settings behind them."""

    scores: pd.DataFrame
    settings: dict[str, Any]

    def content(self) -> dict[str, Any]:
        """Return summary and scores for JSON; undefined numbers are None."""
        summary: dict[str, dict[str, Any]] = {}
        for row in summarise(self.scores).to_dict("records"):
            numbers = {key: _number(row[key]) for key in ("mean", "sd", "n")}
            summary.setdefault(row["class"], {})[row["metric"]] = numbers
        metrics = volume_scores(self.scores)["metric"].unique()
        rows = [{key: _number(value) for key, value in row.items()} for row in self.scores.to_dict("records")]
        return {
            "cases": int(self.scores["case"].nunique()),
            "foreground_mean": {metric: _number(mean_foreground(self.scores, metric)) for metric in metrics},
            "classes": summary,
            "size_groups": class_groups(self.scores),
            "settings": self.settings,
            "scores": rows,
        }

    def write(self, file: Path) -> None:
        """Write the scores to a .csv file, or all `content` to a .json file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() == ".csv":
            write_scores(self.scores, file)
        else:
            write_text(file, json.dumps(self.content(), indent=1) + "\n")


def evaluate(
    predictions: Path,
    references: Path,
    options: EvaluationOptions,
    *,
    say: Say,
    progress: Callable[[str], Progress],
) -> FolderEvaluation:
    """Score a folder of predictions against a folder of references of the same names.

    Args:
        predictions: folder of label maps.
        references: folder of label maps.
        options: options of the evaluation.
        say: called with each warning about the folders, before anything is scored.
        progress: called with the name of a step; returns a function of the number of files done and of all.

    Raises:
        FileNotFoundError: if a folder does not exist, or a reference has no prediction and `chill` is off.
        ValueError: for a damaged file, or maps that differ in size or spacing.
    """
    for folder in (predictions, references):
        if not folder.is_dir():
            raise MissingFileError(f"{folder} is not a folder", code="folder-missing")
    if reason := swapped(predictions, references):
        say(f"PRED and GT may be swapped: {reason}. The order is PRED GT")
    described = options.dataset_json or find_dataset_json(predictions, references)
    content = {} if described is None else read_dataset_json(described)
    ending = content.get("file_ending") or find_file_ending(references)
    cases = _cases(predictions, references, ending, chill=options.chill, say=say)
    if seen := trained_on(predictions, cases):
        say(f"the model was trained on {len(seen)} of these {len(cases)} cases: {named(seen)}")
    labels: Labels
    if described is None:
        labels = find_labels(references, ending, processes=options.processes, progress=progress("labels"))
    else:
        labels = content["labels"]
    training, shares = options.size_from or find_training_labels(references, ending), None
    if training is not None and options.group_by == "training":
        shares = size_shares(training, labels, ending, processes=options.processes, progress=progress("sizes"))
    scores = evaluate_folder(
        predictions, references, labels, file_ending=ending, cases=cases, metrics=options.metrics,
        tolerance=options.tolerance, empty=options.empty, include_background=options.include_background,
        per_slice=options.per_slice, slice_axis=options.slice_axis, shares=shares, group_by=options.group_by,
        processes=options.processes, progress=progress("scores"),
    )  # fmt: skip
    settings = {
        "predictions": str(predictions),
        "references": str(references),
        "dataset_json": None if described is None else str(described),
        "labels": labels,
        "tolerance": options.tolerance,
        "empty": options.empty,
        "group_by": options.group_by,
        "sizes_from": None if shares is None else str(training),
    }
    return FolderEvaluation(scores, settings)


def _cases(predictions: Path, references: Path, ending: str, *, chill: bool, say: Say) -> list[str]:
    """Find the cases to score, with a warning about those that are left out."""
    found, expected = (label_map_files(folder, ending) for folder in (predictions, references))
    extra = [f"{case}{ending}" for case in found if case not in expected]
    missing = [f"{case}{ending}" for case in expected if case not in found]
    if extra:
        say(f"{len(extra)} of {len(found)} predictions have no reference and are left out: {named(extra)}")
    if missing and not chill:
        raise MissingFileError(
            f"{len(missing)} of {len(expected)} references have no prediction in {predictions}: {named(missing)}; "
            "--chill scores the others",
            code="predictions-missing",
        )
    if missing:
        say(f"{len(missing)} of {len(expected)} references have no prediction and are left out")
    return [case for case in expected if case in found]


def _number(value: Any) -> Any:
    return None if pd.isna(value) else value
