"""``nnunet-fm study``: models × heads × adapters × datasets × folds × seeds as one table, run by Snakemake."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_fm.cli.console import bars, print_table, remark, results_only, working
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import JsonObjectOnly, Quiet
from nnunet_fm.errors import FailedError, MissingFileError

if TYPE_CHECKING:
    from nnunet_fm.studies.jobs import Job
    from nnunet_fm.studies.prepare import Prepared
    from nnunet_fm.studies.run import Outcome

EPILOG = """
Examples:

  nnunet-fm study --example > study.yaml

  nnunet-fm study study.yaml --dry-run

  nnunet-fm study study.yaml --cores 8

  nnunet-fm study study.yaml --profile slurm -- --set-resources train:runtime=2880

The same command continues an interrupted study. Words after -- are arguments of Snakemake.
"""

INTERRUPTED = 130


def study(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Study file.", metavar="STUDY.yaml")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show jobs, disk and hours; run and write nothing.")
    ] = False,
    cores: Annotated[int | None, typer.Option("--cores", min=1, help="Cores to use.  [default: all]")] = None,
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
        raise OptionError(
            "name a study file, or print one with --example", param_hint="STUDY.yaml", code="option-incomplete"
        )
    if find_spec("snakemake") is None or find_spec("psutil") is None:
        raise FailedError('a study runs on Snakemake: pip install "nnunet-fm[study]"', code="snakemake-missing")

    from nnunet_fm.studies.prepare import prepare
    from nnunet_fm.studies.schema import read_study
    from nnunet_fm.studies.summary import outcome_summary, plan_summary

    with results_only(as_json=as_json, quiet=quiet), working("reading the study", quiet=quiet):
        prepared = prepare(read_study(file), cores, elsewhere=profile is not None)
    if dry_run:
        from nnunet_fm.studies.run import check_with_snakemake

        check_with_snakemake(prepared, profile, context.args)
        if as_json:
            print(json.dumps(plan_summary(prepared)))
        elif not quiet:
            _print_plan(prepared)
        return
    if prepared.missing:
        missing = "; ".join(f"{name}: {how}" for name, how in prepared.missing.items())
        raise MissingFileError(f"datasets are missing in nnUNet_raw: {missing}", code="dataset-missing")
    outcome = _run(prepared, profile, context.args, quiet)
    if as_json:
        print(json.dumps(outcome_summary(prepared, outcome)))
    _print_outcome(prepared, outcome, quiet)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if outcome.failures:
        raise typer.Exit(1)


def _run(prepared: Prepared, profile: str | None, further: list[str], quiet: bool) -> Outcome:
    """Run the study with a bar in a terminal, and a line for each finished job."""
    from dataclasses import replace

    from nnunet_fm.studies.job_markers import JobMarkers
    from nnunet_fm.studies.run import run, write_partial_report

    say = partial(remark, quiet=quiet)
    if prepared.missing_weights:
        say(
            f"Official weights are not at hand, and trainings that need them will fail: "
            f"{', '.join(prepared.missing_weights)} (see `nnunet-fm weights list`)"
        )
    done = len(JobMarkers(prepared.study.folder).finished(prepared.jobs.values()))
    count = len(prepared.jobs)
    with bars(hidden=quiet) as bar:
        progress = bar("jobs")
        progress(done, count)

        def finish(job: Job, well: bool) -> None:
            nonlocal done
            done += well
            progress(done, count)
            say(f"[{done}/{count}] {job.title}{'' if well else ': failed'}")

        outcome = run(prepared, profile, further, finish, say)
    if outcome.failures:
        outcome = replace(outcome, report=write_partial_report(prepared, outcome))
    return outcome


def _print_plan(prepared: Prepared) -> None:
    from nnunet_fm.studies.job_context import absolute_folder
    from nnunet_fm.studies.run import free_space
    from nnunet_fm.studies.summary import plan_summary

    summary, study = plan_summary(prepared), prepared.study
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
        folder = study.folder if place == "output" else absolute_folder(place)
        print(f"{size / 1e9:8.1f} GB in {folder} ({free_space(folder) / 1e9:.0f} GB are free)")
    for sentence in summary["assumptions"]:
        print(sentence)
    for name, how in summary["missing"].items():
        print(f"Missing: {name}: {how}")
    if summary["missing_weights"]:
        print(f"Official weights not at hand: {', '.join(summary['missing_weights'])}")


def _print_outcome(prepared: Prepared, outcome: Outcome, quiet: bool) -> None:
    for failure in outcome.failures:  # printed with --quiet, too
        remark(f"Failed: {failure.job.title}: {failure.reason} (see {failure.log})")
    if outcome.waiting and outcome.failures:
        remark(f"{len(outcome.waiting)} jobs wait for these. The same command tries again.", quiet=quiet)
    if not outcome.failures and not outcome.interrupted:
        remark(f"All {len(prepared.jobs)} jobs are done.", quiet=quiet)
    if outcome.report:
        part = " of what there is" if outcome.failures else ""
        remark(f"Report{part}: {outcome.report}", quiet=quiet)
