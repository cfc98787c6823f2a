"""``nnunet-fm evaluate``: scores of a folder of predictions, per case and class."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.console import bars, print_table
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import JsonObject, Quiet
from nnunet_fm.cpu.limits import usable_cores

if TYPE_CHECKING:
    import pandas as pd

EPILOG = """
Examples:

  nnunet-fm evaluate predictions nnUNet_raw/Dataset501_AortaSeg24/labelsTs

  nnunet-fm evaluate predictions labelsTs -np 8 -o scores.csv

  nnunet-fm evaluate fold_0/validation labelsTr --chill --metrics Dice HD95

  nnunet-fm evaluate predictions labelsTs --per-slice --empty smoothed -o scores.json

  nnunet-fm evaluate predictions --volumes -o volumes.csv

Mind the order: predictions first. nnUNetv2_evaluate_folder takes the references first.

Empty structures: in neither map, all scores but the volumes are undefined and left out of means; in one of them, Dice,
Jaccard and NSD are 0 and HD95 is undefined. --empty smoothed adds 1 to numerator and denominator of Dice and Jaccard:
(2|P∩R|+1)/(|P|+|R|+1), which is 1 in the first case.
"""

AXES = {"z": -3, "y": -2, "x": -1}
PROCESSES = min(2, usable_cores())


class EmptyRule(str, Enum):
    """Rule for the score of a class without a voxel."""

    nnunet = "nnunet"
    smoothed = "smoothed"


class GroupBy(str, Enum):
    """Cases whose share of the labelled volume decides the size group."""

    training = "training"
    case = "case"


Predictions = Annotated[
    Path, typer.Argument(metavar="PRED", help="Folder of predicted label maps.", show_default=False)
]
References = Annotated[
    Path | None,
    typer.Argument(
        metavar="GT", help="Folder of references of the same names; none with --volumes.", show_default=False
    ),
]
DatasetJson = Annotated[
    Path | None,
    typer.Option(
        "-djfile",
        help="dataset.json with the labels.  [default: in GT, above it, in PRED; else labels found in GT]",
    ),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="File to write: .csv or .json.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        help="Metrics among Dice, Jaccard, HD95, NSD, volume_reference, volume_prediction.  [default: all]",
        metavar="NAME …",
    ),
]
Tolerance = Annotated[float, typer.Option("--tolerance", help="Tolerance of the surface Dice (NSD), in mm.")]
EmptyStructures = Annotated[
    EmptyRule, typer.Option("--empty", help="Rule for the score of empty structures, see below.")
]
IncludeBackground = Annotated[
    bool, typer.Option("--include-background", help="Score label 0, too; it is not in the mean of classes.")
]
PerSlice = Annotated[bool, typer.Option("--per-slice", help="Also compute Dice and Jaccard of each slice.")]
SliceAxis = Annotated[
    str | None,
    typer.Option(
        "--slice-axis",
        help="Axis across the slices: z, y or x.  [default: axis of the largest spacing, else the array's first]",
    ),
]
SizeGroups = Annotated[
    GroupBy,
    typer.Option("--group-by", help="Size group of a class: by its share in training cases, or in the case itself."),
]
SizeFrom = Annotated[
    Path | None,
    typer.Option("--size-from", help="Labels of the training cases.  [default: labelsTr beside GT, else GT]"),
]
Chill = Annotated[bool, typer.Option("--chill", help="Leave out references without a prediction.")]
Volumes = Annotated[
    bool, typer.Option("--volumes", help="Without GT: measure the volume of each structure in PRED, in ml.")
]
Processes = Annotated[int, typer.Option("-np", min=1, help="Cases scored at the same time.")]


def evaluate(
    predictions: Predictions,
    references: References = None,
    dataset_json: DatasetJson = None,
    output: Output = None,
    metrics: Metrics = None,
    tolerance: Tolerance = 1.0,
    empty: EmptyStructures = EmptyRule.nnunet,
    include_background: IncludeBackground = False,
    per_slice: PerSlice = False,
    slice_axis: SliceAxis = None,
    group_by: SizeGroups = GroupBy.training,
    size_from: SizeFrom = None,
    chill: Chill = False,
    volumes: Volumes = False,
    processes: Processes = PROCESSES,
    quiet: Quiet = False,
    as_json: JsonObject = False,
) -> None:
    """Dice, Jaccard, HD95 (mm), normalised surface Dice (NSD) and volumes (ml), per case and class."""
    from nnunet_fm.metrics.scores_table import METRICS

    if volumes and references is not None:
        raise OptionError("scores against GT have the volumes already: drop --volumes", code="option-conflict")
    if references is None and not volumes:
        raise OptionError("give GT, the folder of references, or --volumes", code="option-incomplete")
    chosen = _metrics(metrics, METRICS)
    _check_values(slice_axis, tolerance, output, group_by, size_from)
    if references is None:
        _volumes(predictions, dataset_json, output, processes, quiet=quiet, as_json=as_json)
        return

    from nnunet_fm.metrics.evaluation import EvaluationOptions
    from nnunet_fm.metrics.evaluation import evaluate as run

    options = EvaluationOptions(
        dataset_json=dataset_json, metrics=chosen, tolerance=tolerance, empty=empty.value,
        include_background=include_background, per_slice=per_slice,
        slice_axis=None if slice_axis is None else AXES[slice_axis.lower()], group_by=group_by.value,
        size_from=size_from, chill=chill, processes=processes,
    )  # fmt: skip
    with bars(hidden=quiet) as progress, _said_warnings():
        done = run(predictions, references, options, say=_say, progress=progress)
    if output is not None:
        done.write(output)
    if as_json:
        print(json.dumps(done.content()))
    elif not quiet:
        _print(done.scores)
        if output is not None:
            print(f"\n{output}")


def _check_values(
    slice_axis: str | None, tolerance: float, output: Path | None, group_by: GroupBy, size_from: Path | None
) -> None:
    """Raise an OptionError for the first option with an illegal value."""
    if slice_axis is not None and slice_axis.lower() not in AXES:
        raise OptionError(
            f"'{slice_axis}' is not one of {', '.join(AXES)}", param_hint="--slice-axis", code="option-value"
        )
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(f"{tolerance} mm is no distance", param_hint="--tolerance", code="option-value")
    if output is not None and output.suffix.lower() not in (".csv", ".json"):
        raise OptionError(f"'{output}' ends neither in .csv nor in .json", param_hint="-o", code="option-value")
    if group_by is GroupBy.case and size_from is not None:
        raise OptionError(
            "with --group-by case no training cases are looked at", param_hint="--size-from", code="option-conflict"
        )


def _volumes(
    folder: Path, dataset_json: Path | None, output: Path | None, processes: int, *, quiet: bool, as_json: bool
) -> None:
    """Measure the volumes of a folder's structures; write and print them."""
    from nnunet_fm.io.atomic_write import write_text
    from nnunet_fm.metrics.volumes import measure_volumes

    with bars(hidden=quiet) as progress:
        table = measure_volumes(folder, dataset_json, processes=processes, progress=progress("cases"))
    rows = json.loads(table.to_json(orient="records"))
    records: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        is_csv = output.suffix.lower() == ".csv"
        write_text(output, table.to_csv(index=False) if is_csv else json.dumps(rows, indent=1) + "\n")
    if as_json:
        print(json.dumps(rows))
    elif not quiet:
        print_table([{name: f"{v:.2f}" if name == "ml" else str(v) for name, v in row.items()} for row in records])


def _metrics(names: list[str] | None, known: tuple[str, ...]) -> list[str]:
    by_name = {metric.lower(): metric for metric in known}
    words = [word for name in names or known for word in name.split(",") if word]
    unknown = [word for word in words if word.lower() not in by_name]
    if unknown:
        raise OptionError(
            f"'{unknown[0]}' is not one of {', '.join(known)}", param_hint="--metrics", code="option-value"
        )
    return [by_name[word.lower()] for word in words]


def _print(scores: pd.DataFrame) -> None:
    """Print a table of classes by metrics, with the number of cases where some have no score."""
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
    """Print each warning in one line, without its place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is UserWarning:
            _say(str(warning.message))
