"""``nnunet-fm report``: one page with tables and figures of a study, or of models that were trained by hand."""

from __future__ import annotations

import json
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_fm.cli.completion import (
    complete_configurations,
    complete_datasets,
    complete_plans,
    complete_trainers,
)
from nnunet_fm.cli.console import Quiet

if TYPE_CHECKING:
    from nnunet_fm.reporting.results import Results
    from nnunet_fm.reporting.sections.elements import Picture

EPILOG = """
Examples:

  nnunet-fm report my_study

  nnunet-fm report -d 501 502 -c 3d_fullres

  nnunet-fm report -d 501 -tr fm_trainer nnUNetTrainer -p FMPlans_stunet_b nnUNetPlans -f 0 1 -o report_501

Writes OUT/index.html, which needs no other file, and OUT/tables with CSV, Markdown and LaTeX.
"""

POOLS = ("anatomies", "datasets")
MOST_FEATURES = 4
"""Models whose features are shown; each network has to be loaded."""


def report(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a study.", show_default=False)] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "-d",
            "--dataset",
            help="IDs or names: report all their trained models.",
            metavar="DATASET …",
            autocompletion=complete_datasets,
        ),
    ] = None,
    trainers: Annotated[
        list[str] | None,
        typer.Option(
            "-tr", "--trainer", help="Only these trainers.", metavar="NAME …", autocompletion=complete_trainers
        ),
    ] = None,
    plans: Annotated[
        list[str] | None,
        typer.Option("-p", "--plans", help="Only these plans.", metavar="NAME …", autocompletion=complete_plans),
    ] = None,
    configurations: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            "--configuration",
            help="Only these configurations.",
            metavar="NAME …",
            autocompletion=complete_configurations,
        ),
    ] = None,
    folds: Annotated[
        list[str] | None, typer.Option("-f", "--folds", help="Only these folds.", metavar="FOLD …")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write to.  [default: FOLDER/report, or report]")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Heading of the page.")] = None,
    metric: Annotated[str, typer.Option("--metric", help="Dice, Jaccard, HD95 or NSD.")] = "Dice",
    pool: Annotated[
        str, typer.Option("--pool", help="How several anatomies are averaged: anatomies (each alike) or datasets.")
    ] = "anatomies",
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="No pictures of cases: faster.")] = False,
    processes: Annotated[int, typer.Option("-np", min=1, help="Processes that score cases without scores.")] = 2,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print paths and the ranking as JSON.")] = False,
) -> None:
    """Write one self-contained HTML page with tables and figures."""
    if (folder is None) == (not datasets):
        raise typer.BadParameter("name either a study's folder or datasets with -d")
    if folder is not None and (trainers or plans or configurations or folds):
        raise typer.BadParameter("-tr, -p, -c and -f choose among trained models of -d; a study's folder has its own")
    if pool not in POOLS:
        raise typer.BadParameter(f"'{pool}' is not one of {', '.join(POOLS)}", param_hint="--pool")

    from rich.console import Console

    from nnunet_fm.metrics.scores_table import DICE, HD95, JACCARD, NSD

    if metric not in (DICE, JACCARD, HD95, NSD):
        raise typer.BadParameter(f"'{metric}' is not one of {DICE}, {JACCARD}, {HD95}, {NSD}", param_hint="--metric")
    console = Console(stderr=True, highlight=False, quiet=quiet)
    with console.status("gathering results") as status:
        from nnunet_fm.reporting.report import write_report
        from nnunet_fm.studies.collect import collect, collect_results

        if folder is not None:
            results = collect(folder)
            output = output or folder / "report"
        else:
            assert datasets is not None
            results = collect_results(
                datasets,
                title=title,
                trainers=trainers,
                plans=plans,
                configurations=configurations,
                folds=folds,
                processes=processes,
            )
            output = output or Path("report")
        results.title = title or results.title
        features, problems = ({}, []) if no_pictures else _features(results)
        missing = write_report(
            results,
            output,
            metric=metric,
            pool="datasets" if pool == "datasets" else "anatomies",
            pictures=not no_pictures,
            features=features,
            notes=[*results.notes, *problems],
            progress=lambda step: status.update(f"report: {step}"),
        )
    page = (output / "index.html").resolve()
    if as_json:
        ranking = output / "tables" / "ranking.csv"
        print(
            json.dumps(
                {
                    "page": str(page),
                    "tables": str(page.parent / "tables"),
                    "missing": missing,
                    "ranking": _rows(ranking),
                }
            )
        )
        return
    for sentence in missing:
        console.print(f"Not in the report: {sentence}", markup=False)
    if not quiet:
        print(page)


def _rows(file: Path) -> list[dict[str, object]]:
    """Rows of a table that was written; undefined numbers become None."""
    import pandas as pd

    if not file.is_file():
        return []
    return json.loads(pd.read_csv(file).to_json(orient="records"))


def _features(results: Results) -> tuple[dict[str, tuple[Picture, Picture]], list[str]]:
    """Label -> a slice and its features, of the first 2D foundation models; and why some are missing."""
    files = results.files.merge(results.runs[results.runs["control"].isna()], on="run")
    files = files[files["configuration"].str.startswith("2d")] if len(files) else files
    if not len(files):
        return {}, []
    from nnunet_fm.inference.features import feature_pca
    from nnunet_fm.reporting.figures.slices import array_png
    from nnunet_fm.reporting.sections.elements import Picture

    made: dict[str, tuple[Picture, Picture]] = {}
    problems = []
    for label, rows in files.groupby("label", sort=False):
        if len(made) == MOST_FEATURES:
            break
        row = rows.iloc[0]
        try:
            pair = feature_pca(Path(row["model_folder"]), row["fold"], "checkpoint_final.pth", _channels(row["image"]))
        except Exception as error:  # a network that cannot be loaded, for whatever reason, must not cost the report
            problems.append(f"Features of {label}: {' '.join(str(error).split())}")
            continue
        if pair is not None:
            image, colours = (array_png(part) for part in pair)
            made[str(label)] = (
                Picture(image, f"slice of {row['case']}"),
                Picture(colours, f"features that {label} sees in the slice of {row['case']}"),
            )
    return made, problems


def _channels(first: str) -> list[Path]:
    """All channel files of the case whose first channel's file is given."""
    path = Path(first)
    stem, mark, ending = path.name.rpartition("_0000")
    if not mark:
        return [path]
    channels = sorted(path.parent.glob(f"{escape(stem)}_[0-9][0-9][0-9][0-9]{escape(ending)}"))
    return channels or [path]
