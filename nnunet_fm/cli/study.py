"""``nnunet-fm study``: models × heads × adapters × datasets × folds × seeds as one table, run by Snakemake."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.console import JsonObjectOnly, Quiet, results_only, working

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_fm.studies.jobs import Job
    from nnunet_fm.studies.prepare import Prepared
    from nnunet_fm.studies.run import Outcome

EPILOG = """
Examples:

  nnunet-fm study --example > study.yaml

  nnunet-fm study study.yaml --dry-run

  nnunet-fm study study.yaml --cores 8

  nnunet-fm study study.yaml --profile slurm -- --set-resources train:runtime=2880

The same command goes on with a study that was interrupted or killed. What stands after -- is for Snakemake.
"""

INTERRUPTED = 130


def study(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Study file.", metavar="STUDY.yaml")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show jobs, disk and hours; run and write nothing.")
    ] = False,
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="Cores to use; without it, all.")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="Profile of Snakemake, to run on a cluster.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a study file with comments.")] = False,
    quiet: Quiet = False,
    as_json: JsonObjectOnly = False,
) -> None:
    """Train, test and report a whole comparison; finished work is never repeated."""
    if example:
        from importlib import resources

        print(resources.files("nnunet_fm.studies").joinpath("example.yaml").read_text(encoding="utf-8"), end="")
        return
    if file is None:
        raise typer.BadParameter("name a study file, or print one with --example", param_hint="STUDY.yaml")
    if find_spec("snakemake") is None or find_spec("psutil") is None:
        raise RuntimeError('a study runs on Snakemake: pip install "nnunet-fm[study]"')

    from rich.console import Console

    from nnunet_fm.studies.prepare import prepare
    from nnunet_fm.studies.schema import read_study

    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    with results_only(as_json=as_json, quiet=quiet), working("reading the study", quiet=quiet):
        prepared = prepare(read_study(file), cores, elsewhere=profile is not None)
    if dry_run:
        from nnunet_fm.studies.run import check_with_snakemake

        check_with_snakemake(prepared, profile, context.args)
        if as_json:
            print(json.dumps(_summary(prepared)))
        elif not quiet:
            _print_summary(prepared)
        return
    if prepared.missing:
        raise FileNotFoundError(f"datasets are missing in nnUNet_raw: {_how(prepared)}")
    outcome = _run(prepared, profile, context.args, console)
    if as_json:
        print(json.dumps(_result(prepared, outcome)))
    _print_outcome(prepared, outcome, console)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if outcome.failures:
        raise typer.Exit(1)


def _how(prepared: Prepared) -> str:
    return "; ".join(f"{name}: {how}" for name, how in prepared.missing.items())


def _run(prepared: Prepared, profile: str | None, further: list[str], console: Console) -> Outcome:
    """Run the study with a bar in a terminal, and a line for each finished job elsewhere."""
    from dataclasses import replace

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from nnunet_fm.studies.marks import Marks
    from nnunet_fm.studies.run import run, write_partial_report

    if prepared.missing_weights:
        console.print(
            f"Official weights are not at hand, and trainings that need them will fail: "
            f"{', '.join(prepared.missing_weights)} (see `nnunet-fm weights list`)"
        )
    done = len(Marks(prepared.study.folder).finished(prepared.jobs.values()))
    count = len(prepared.jobs)
    columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("jobs", total=count, completed=done)

        def tell_end(job: Job, well: bool) -> None:
            nonlocal done
            done += well
            bar.update(task, completed=done)
            console.print(f"[{done}/{count}] {job.title}{'' if well else ': failed'}", markup=False)

        outcome = run(prepared, profile, further, tell_end, lambda text: console.print(text, markup=False))
    if outcome.failures:
        outcome = replace(outcome, report=write_partial_report(prepared, outcome))
    return outcome


def _result(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    failed = [
        {"job": f.job.id, "title": f.job.title, "run": f.job.run, "reason": f.reason, "log": str(f.log)}
        for f in outcome.failures
    ]
    return {
        "output": str(prepared.study.folder),
        "jobs": _by_rule(prepared, outcome.done),
        "failed": failed,
        "waiting": [job.id for job in outcome.waiting],
        "interrupted": outcome.interrupted,
        "report": str(outcome.report) if outcome.report else None,
    }


def _by_rule(prepared: Prepared, done: set[str]) -> dict[str, dict[str, Any]]:
    from nnunet_fm.studies.jobs import RULES

    table = {}
    for rule in RULES:
        jobs = [job for job in prepared.jobs.values() if job.rule == rule]
        if jobs:
            left = [job for job in jobs if job.id not in done]
            hours = round(sum(prepared.estimate.hours[job.id] for job in left), 2)
            table[rule] = {"jobs": len(jobs), "done": len(jobs) - len(left), "hours": hours}
    return table


def _summary(prepared: Prepared) -> dict[str, Any]:
    from nnunet_fm.studies.marks import Marks

    done = Marks(prepared.study.folder).finished(prepared.jobs.values())
    rules = _by_rule(prepared, done)
    return {
        "name": prepared.study.name,
        "output": str(prepared.study.folder),
        "runs": len(prepared.expansion.trainings),
        "jobs": rules,
        "hours": round(sum(rule["hours"] for rule in rules.values()), 2),
        "device": prepared.machine.device,
        "disk": {place: round(size) for place, size in prepared.estimate.disk.items()},
        "assumptions": prepared.estimate.assumptions,
        "missing": prepared.missing,
        "missing_weights": prepared.missing_weights,
    }


def _print_summary(prepared: Prepared) -> None:
    from nnunet_fm.cli.table import print_table
    from nnunet_fm.studies.run import free_space
    from nnunet_fm.studies.workplace import nnunet_folder

    summary = _summary(prepared)
    study = prepared.study
    print(f"{study.title or study.name}: {summary['runs']} runs, to {summary['output']}\n")
    print_table(
        [
            {"jobs": rule, "all": str(n["jobs"]), "done": str(n["done"]), "hours left": f"{n['hours']:.1f}"}
            for rule, n in summary["jobs"].items()
        ]
    )
    device = "GPU" if prepared.machine.gpus else "processor"
    print(f"\n{summary['hours']:.1f} hours of work on one {device}, one job after the other.")
    for place, size in summary["disk"].items():
        folder = study.folder if place == "output" else nnunet_folder(place)
        print(f"{size / 1e9:8.1f} GB in {folder} ({free_space(folder) / 1e9:.0f} GB are free)")
    for sentence in summary["assumptions"]:
        print(sentence)
    for name, how in summary["missing"].items():
        print(f"Missing: {name}: {how}")
    if summary["missing_weights"]:
        print(f"Official weights not at hand: {', '.join(summary['missing_weights'])}")


def _print_outcome(prepared: Prepared, outcome: Outcome, console: Console) -> None:
    for failure in outcome.failures:  # told to the quiet, too
        print(f"Failed: {failure.job.title}: {failure.reason} (see {failure.log})", file=sys.stderr)
    if outcome.waiting and outcome.failures:
        console.print(f"{len(outcome.waiting)} jobs wait for these. The same command tries again.")
    if not outcome.failures and not outcome.interrupted:
        console.print(f"All {len(prepared.jobs)} jobs are done.")
    if outcome.report:
        part = " of what there is" if outcome.failures else ""
        console.print(f"Report{part}: {outcome.report}", markup=False)
