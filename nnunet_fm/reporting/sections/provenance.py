"""Section: versions, machines, runs and the commands that repeat them."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable
from datetime import datetime

import pandas as pd

from nnunet_fm import __version__
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table, definitions


def provenance_section(context: Context) -> Section:
    """Facts and a table of runs."""
    section = Section("provenance", "Provenance")
    records = list(context.results.records.values())
    versions: dict[str, list[str]] = {}
    for record in records:
        for package, version in record.versions.items():
            versions.setdefault(package, []).append(version)
    times = context.results.times
    facts = {
        "Report": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, nnunet-fm {__version__}, Python "
        f"{platform.python_version()}",
        "Trained with": ", ".join(f"{package} {_distinct(found)}" for package, found in versions.items()),
        "Trained on": _distinct(
            f"{record.processor}, {record.threads} threads" + (f", {record.device}" if record.device != "cpu" else "")
            for record in records
        ),
        "Predicted on": _distinct(times["processor"].dropna()) if len(times) else "",
        "Numbers": "mean over classes of a case, then over cases; undefined values (NaN) are left out",
        "Unit of intervals and tests": _unit(context),
    }
    section.body.append(f'<div class="card">{definitions({k: v for k, v in facts.items() if v})}</div>')
    table = Table(
        "runs",
        "Every training, and the command that repeats it in an environment with the same plans and data.",
        runs_frame(context),
        [
            Column("run", "Run", wrap=True),
            Column("label", "Model", wrap=True),
            Column("dataset", "Dataset"),
            Column("source", "Adapted from"),
            Column("fold", "Fold"),
            Column("seed", "Seed", ".0f"),
            Column("train_cases", "Training cases", ".0f"),
            Column("iterations", "Iterations", ",.0f"),
            Column("hours", "Hours", ".2f"),
            Column("command", "Command", wrap=True),
        ],
        context.controls,
    )
    section.tables.append(table)
    section.body.append(f"<details><summary>Runs and commands</summary>{table.html()}</details>")
    return section


def _unit(context: Context) -> str:
    """Sentence about the unit of intervals and tests, and datasets without known patients."""
    untold = [name for name in context.results.scores["target"].unique() if not context.results.subjects.get(name)]
    words = "the patient of an anatomy, by the mean over the cases"
    if untold:
        words += (
            f"; of {', '.join(untold)} neither conversion.json nor subjects.json tells the patients: each case counts"
        )
    return words


def runs_frame(context: Context) -> pd.DataFrame:
    """Runs with their records and training commands."""
    runs = context.results.runs.reset_index(drop=True)
    found = [context.results.records.get(run) for run in runs["run"]]
    used = [record.training_cases if record else None for record in found]
    return runs.assign(
        train_cases=pd.to_numeric(pd.Series(used, dtype=object).fillna(runs["train_cases"])),
        seed=pd.to_numeric(runs["seed"]),
        iterations=pd.Series([record.iterations if record else None for record in found], dtype=float),
        hours=pd.Series([record.seconds / 3600 if record else None for record in found], dtype=float),
        command=[
            shlex.join(["nnUNetv2_train", dataset, configuration, str(fold), "-tr", trainer, "-p", plans])
            for dataset, configuration, fold, trainer, plans in zip(
                runs["dataset"], runs["configuration"], runs["fold"], runs["trainer"], runs["plans"], strict=True
            )
        ],
    )


def _distinct(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))
