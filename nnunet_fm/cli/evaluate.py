"""``nnunet-fm evaluate``: scores of a folder of predictions, per case and class."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.console import Quiet
from nnunet_fm.cli.table import print_table
from nnunet_fm.cpu.limits import usable_cores
from nnunet_fm.io.atomic_write import write_text

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_fm.metrics.labels import Labels

EPILOG = """
Examples:

  nnunet-fm evaluate predictions nnUNet_raw/Dataset501_AortaSeg24/labelsTs

  nnunet-fm evaluate predictions labelsTs -np 8 -o scores.csv

  nnunet-fm evaluate fold_0/validation labelsTr --chill --metrics Dice HD95

  nnunet-fm evaluate predictions labelsTs --per-slice --empty smoothed -o scores.json

Mind the order: predictions first. nnUNetv2_evaluate_folder takes the references first.

Empty structures: in neither map, all scores but the volumes are undefined and left out of means; in one of them, Dice,
Jaccard and NSD are 0 and HD95 is undefined. --empty smoothed adds 1 to numerator and denominator of Dice and Jaccard:
(2|P∩R|+1)/(|P|+|R|+1), which is 1 in the first case.
"""

AXES = {"z": -3, "y": -2, "x": -1}


class EmptyRule(str, Enum):
    """What classes without a voxel score."""

    nnunet = "nnunet"
    smoothed = "smoothed"


class GroupBy(str, Enum):
    """Whose share of the labelled volume decides the size group."""

    training = "training"
    case = "case"


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PRED", help="Folder of predicted label maps.", show_default=False)
    ],
    references: Annotated[
        Path, typer.Argument(metavar="GT", help="Folder of references of the same names.", show_default=False)
    ],
    dataset_json: Annotated[
        Path | None,
        typer.Option(
            "-djfile",
            help="dataset.json with the labels.  [default: in GT, above it, in PRED; else labels found in GT]",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write: .csv or .json.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="Of Dice, Jaccard, HD95, NSD, volume_reference, volume_prediction.  [default: all]",
            metavar="NAME …",
        ),
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Of the surface Dice (NSD), in mm.")] = 1.0,
    empty: Annotated[EmptyRule, typer.Option("--empty", help="What empty structures score, see below.")] = (
        EmptyRule.nnunet
    ),
    include_background: Annotated[
        bool, typer.Option("--include-background", help="Score label 0, too; it is not in the mean of classes.")
    ] = False,
    per_slice: Annotated[bool, typer.Option("--per-slice", help="Dice and Jaccard of each slice, too.")] = False,
    slice_axis: Annotated[
        str | None,
        typer.Option("--slice-axis", help="z, y or x.  [default: that of the largest spacing, else the array's first]"),
    ] = None,
    group_by: Annotated[
        GroupBy,
        typer.Option(
            "--group-by", help="Size group of a class: by its share in training cases, or in the case itself."
        ),
    ] = GroupBy.training,
    size_from: Annotated[
        Path | None,
        typer.Option("--size-from", help="Labels of the training cases.  [default: labelsTr beside GT, else GT]"),
    ] = None,
    chill: Annotated[bool, typer.Option("--chill", help="Score what is there: not all of GT is predicted.")] = False,
    processes: Annotated[int, typer.Option("-np", min=1, help="Cases scored at the same time.")] = min(
        2, usable_cores()
    ),
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Dice, Jaccard, HD95 (mm), normalised surface Dice (NSD) and volumes (ml), per case and class."""
    from nnunet_fm.metrics.scores_table import METRICS, write_scores

    chosen = _metrics(metrics, METRICS)
    if slice_axis is not None and slice_axis.lower() not in AXES:
        raise typer.BadParameter(f"'{slice_axis}' is not one of {', '.join(AXES)}", param_hint="--slice-axis")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise typer.BadParameter(f"{tolerance} mm is no distance", param_hint="--tolerance")
    if output is not None and output.suffix.lower() not in (".csv", ".json"):
        raise typer.BadParameter(f"'{output}' ends neither in .csv nor in .json", param_hint="-o")
    if group_by is GroupBy.case and size_from is not None:
        raise typer.BadParameter("with --group-by case no training cases are looked at", param_hint="--size-from")

    from nnunet_fm.metrics import find_labels as surroundings
    from nnunet_fm.metrics.folder import evaluate_folder, named
    from nnunet_fm.metrics.label_map import find_file_ending
    from nnunet_fm.metrics.labels import read_dataset_json
    from nnunet_fm.metrics.size_groups import size_shares

    for folder in (predictions, references):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
    if reason := surroundings.swapped(predictions, references):
        _say(f"PRED and GT may be swapped: {reason}. The order is PRED GT")
    described = dataset_json or surroundings.find_dataset_json(predictions, references)
    content = {} if described is None else read_dataset_json(described)
    ending = content.get("file_ending") or find_file_ending(references)
    cases = _cases(predictions, references, ending, chill)
    if seen := surroundings.trained_on(predictions, cases):
        _say(f"the model was trained on {len(seen)} of these {len(cases)} cases: {named(seen)}")
    labels: Labels
    with _progress(hidden=quiet) as progress, _said_warnings():
        if described is None:
            labels = surroundings.find_labels(references, ending, processes=processes, progress=progress("labels"))
        else:
            labels = content["labels"]
        training = size_from or surroundings.find_training_labels(references, ending)
        shares = None
        if training is not None and group_by is GroupBy.training:
            shares = size_shares(training, labels, ending, processes=processes, progress=progress("sizes"))
        scores = evaluate_folder(
            predictions,
            references,
            labels,
            file_ending=ending,
            cases=cases,
            metrics=chosen,
            tolerance=tolerance,
            empty=empty.value,
            include_background=include_background,
            per_slice=per_slice,
            slice_axis=None if slice_axis is None else AXES[slice_axis.lower()],
            shares=shares,
            group_by=group_by.value,
            processes=processes,
            progress=progress("scores"),
        )
    settings = {
        "predictions": str(predictions),
        "references": str(references),
        "dataset_json": None if described is None else str(described),
        "labels": labels,
        "tolerance": tolerance,
        "empty": empty.value,
        "group_by": group_by.value,
        "sizes_from": None if shares is None else str(training),
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix.lower() == ".csv":
            write_scores(scores, output)
        else:
            write_text(output, json.dumps(_content(scores, settings), indent=1) + "\n")
    if as_json:
        print(json.dumps(_content(scores, settings)))
        return
    if quiet:
        return
    _print(scores)
    if output is not None:
        print(f"\n{output}")


def _metrics(names: list[str] | None, known: tuple[str, ...]) -> list[str]:
    by_name = {metric.lower(): metric for metric in known}
    words = [word for name in names or known for word in name.split(",") if word]
    unknown = [word for word in words if word.lower() not in by_name]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' is not one of {', '.join(known)}", param_hint="--metrics")
    return [by_name[word.lower()] for word in words]


def _cases(predictions: Path, references: Path, ending: str, chill: bool) -> list[str]:
    """The cases to score; says what is left out.

    Raises:
        FileNotFoundError: if a reference has no prediction, and not chill.
    """
    from nnunet_fm.metrics.folder import named
    from nnunet_fm.metrics.label_map import label_map_files

    found, expected = (label_map_files(folder, ending) for folder in (predictions, references))
    extra = [f"{case}{ending}" for case in found if case not in expected]
    missing = [f"{case}{ending}" for case in expected if case not in found]
    if extra:
        _say(f"{len(extra)} of {len(found)} predictions have no reference and are left out: {named(extra)}")
    if missing and not chill:
        raise FileNotFoundError(
            f"{len(missing)} of {len(expected)} references have no prediction in {predictions}: {named(missing)}; "
            "--chill scores the others"
        )
    if missing:
        _say(f"{len(missing)} of {len(expected)} references have no prediction and are left out")
    return [case for case in expected if case in found]


def _content(scores: pd.DataFrame, settings: dict[str, Any]) -> dict[str, Any]:
    """What --json prints; numbers that are not defined are null."""
    from nnunet_fm.metrics.summary import class_groups, mean_foreground, summarise, volume_scores

    summary: dict[str, dict[str, Any]] = {}
    for row in summarise(scores).to_dict("records"):
        summary.setdefault(row["class"], {})[row["metric"]] = {key: _number(row[key]) for key in ("mean", "sd", "n")}
    metrics = volume_scores(scores)["metric"].unique()
    rows = [{key: _number(value) for key, value in row.items()} for row in scores.to_dict("records")]
    return {
        "cases": int(scores["case"].nunique()),
        "foreground_mean": {metric: _number(mean_foreground(scores, metric)) for metric in metrics},
        "classes": summary,
        "size_groups": class_groups(scores),
        "settings": settings,
        "scores": rows,
    }


def _number(value: Any) -> Any:
    import pandas as pd

    return None if pd.isna(value) else value


def _print(scores: pd.DataFrame) -> None:
    """Classes down, metrics across; the number of cases where some of them define no score."""
    from nnunet_fm.metrics.scores_table import DICE, JACCARD, NSD
    from nnunet_fm.metrics.summary import class_groups, mean_foreground, summarise
    from nnunet_fm.reporting.tables import plus_minus

    summary, groups, cases = summarise(scores), class_groups(scores), scores["case"].nunique()
    units = {"HD95": "HD95 (mm)", "volume_reference": "reference (ml)", "volume_prediction": "prediction (ml)"}
    metrics = list(summary["metric"].unique())
    rows = []
    for name, of_class in summary.groupby("class", sort=False):
        row = {"class": str(name), "size": groups.get(str(name), "")}
        for metric, mean, sd, count in of_class[["metric", "mean", "sd", "n"]].itertuples(index=False):
            spec = ".3f" if metric in (DICE, JACCARD, NSD) else ".2f"
            row[units.get(metric, metric)] = plus_minus(mean, sd, spec) + (f" (n={count})" if 0 < count < cases else "")
        rows.append(row)
    means = {metric: mean_foreground(scores, metric) for metric in metrics}
    last = {"class": "mean of classes", "size": ""}
    for metric, mean in means.items():
        spec = ".3f" if metric in (DICE, JACCARD, NSD) else ".2f"
        last[units.get(metric, metric)] = plus_minus(mean, math.nan, spec)
    print(f"{cases} case{'' if cases == 1 else 's'}, mean ± standard deviation over cases\n")
    print_table([*rows, last])


def _say(text: str) -> None:
    print(f"nnunet-fm: warning: {text}", file=sys.stderr)


@contextmanager
def _said_warnings() -> Iterator[None]:
    """Say warnings in one line each, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is UserWarning:
            _say(str(warning.message))


@contextmanager
def _progress(*, hidden: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars on standard error, if that is a terminal: name -> what is told the numbers done and of all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden or not sys.stderr.isatty()) as bar:

        def add(name: str) -> Callable[[int, int], None]:
            task = bar.add_task(name, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield add
