"""``nnunet-fm report``: one page with tables and figures of a study, or of models that were trained by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nnunet_fm.cli.completion import (
    complete_configurations,
    complete_datasets,
    complete_plans,
    complete_trainers,
)
from nnunet_fm.cli.console import remark, working
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import Quiet

EPILOG = """
Examples:

  nnunet-fm report my_study

  nnunet-fm report -d 501 502 -c 3d_fullres

  nnunet-fm report -d 501 -tr fm_trainer nnUNetTrainer -p FMPlans_stunet_b nnUNetPlans -f 0 1 -o report_501

Writes OUT/index.html, which needs no other file, and OUT/tables with CSV, Markdown and LaTeX.
"""

POOLS = ("anatomies", "datasets")
Folder = Annotated[Path | None, typer.Argument(help="Folder of a study.", show_default=False)]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "-d",
        "--dataset",
        help="IDs or names: report all their trained models.",
        metavar="DATASET …",
        autocompletion=complete_datasets,
    ),
]
Trainers = Annotated[
    list[str] | None,
    typer.Option("-tr", "--trainer", help="Only these trainers.", metavar="NAME …", autocompletion=complete_trainers),
]
Plans = Annotated[
    list[str] | None,
    typer.Option("-p", "--plans", help="Only these plans.", metavar="NAME …", autocompletion=complete_plans),
]
Configurations = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        "--configuration",
        help="Only these configurations.",
        metavar="NAME …",
        autocompletion=complete_configurations,
    ),
]
Folds = Annotated[list[str] | None, typer.Option("-f", "--folds", help="Only these folds.", metavar="FOLD …")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder to write to.  [default: FOLDER/report, or report]")
]
Title = Annotated[str | None, typer.Option("--title", help="Heading of the page.")]
Metric = Annotated[str, typer.Option("--metric", help="Metric of the report: Dice, Jaccard, HD95 or NSD.")]
Pool = Annotated[
    str,
    typer.Option(
        "--pool",
        help="What has equal weight in means over several anatomies: anatomies or datasets.",
    ),
]
NoPictures = Annotated[bool, typer.Option("--no-pictures", help="Leave out pictures of cases, which is faster.")]
Processes = Annotated[int, typer.Option("-np", min=1, help="Processes that score cases without scores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print paths and the ranking as JSON.")]


def report(
    folder: Folder = None,
    datasets: Datasets = None,
    trainers: Trainers = None,
    plans: Plans = None,
    configurations: Configurations = None,
    folds: Folds = None,
    output: Output = None,
    title: Title = None,
    metric: Metric = "Dice",
    pool: Pool = "anatomies",
    no_pictures: NoPictures = False,
    processes: Processes = 2,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page with tables and figures."""
    if (folder is None) == (not datasets):
        raise OptionError("name either a study's folder or datasets with -d", code="option-incomplete")
    if folder is not None and (trainers or plans or configurations or folds):
        raise OptionError(
            "-tr, -p, -c and -f choose among trained models of -d; a study's folder has its own", code="option-conflict"
        )
    if pool not in POOLS:
        raise OptionError(f"'{pool}' is not one of {', '.join(POOLS)}", param_hint="--pool", code="option-value")
    _check_metric(metric)

    with working("gathering results", quiet=quiet) as progress:
        from nnunet_fm.reporting.report import write_report
        from nnunet_fm.studies.collect import collect, collect_results
        from nnunet_fm.studies.feature_pictures import feature_pictures

        if folder is not None:
            results = collect(folder)
        else:
            results = collect_results(
                datasets or [], title=title, trainers=trainers, plans=plans, configurations=configurations, folds=folds,
                processes=processes,
            )  # fmt: skip
        output = output or (Path("report") if folder is None else folder / "report")
        results.title = title or results.title
        features, problems = ({}, []) if no_pictures else feature_pictures(results)
        missing = write_report(
            results, output, metric=metric, pool="datasets" if pool == "datasets" else "anatomies",
            pictures=not no_pictures, features=features, notes=[*results.notes, *problems],
            progress=lambda step: progress(f"report: {step}"),
        )  # fmt: skip
    if as_json:
        _print_json(output, missing)
        return
    for sentence in missing:
        remark(f"Not in the report: {sentence}", quiet=quiet)
    if not quiet:
        print((output / "index.html").resolve())


def _check_metric(metric: str) -> None:
    from nnunet_fm.metrics.scores_table import DICE, HD95, JACCARD, NSD

    if metric not in (DICE, JACCARD, HD95, NSD):
        raise OptionError(
            f"'{metric}' is not one of {DICE}, {JACCARD}, {HD95}, {NSD}", param_hint="--metric", code="option-value"
        )


def _print_json(output: Path, missing: list[str]) -> None:
    page = (output / "index.html").resolve()
    content = {
        "page": str(page),
        "tables": str(page.parent / "tables"),
        "missing": missing,
        "ranking": _rows(output / "tables" / "ranking.csv"),
    }
    print(json.dumps(content))


def _rows(file: Path) -> list[dict[str, object]]:
    """Read the rows of a written table; undefined numbers become None."""
    import pandas as pd

    if not file.is_file():
        return []
    return json.loads(pd.read_csv(file).to_json(orient="records"))
