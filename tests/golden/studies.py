"""Runs and jobs of the ready studies, and what a dry run says of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunet_fm.studies.prepare import prepare, threads
from nnunet_fm.studies.schema import read_study
from tests.golden.command import succeed
from tests.golden.record import Subjects, against_first, plain
from tests.helpers.datasets import write_files

REPOSITORY = Path(__file__).parents[2]
FILES = (*sorted(REPOSITORY.glob("docs/studies/*.yaml")), REPOSITORY / "nnunet_fm" / "studies" / "example.yaml")
CORES = 4
IN_FULL = "hippocampus"
"""The study whose jobs are written out; of the others, the first and the last of each kind are, and a hash of all."""


def studies(root: Path) -> Subjects:
    """A file for each study: its runs and jobs, and of one what the command says, with data and without."""
    numbers: dict[str, int] = {}
    yield "study/missing data", _dry_run(root, FILES[0])
    for file in FILES:
        study = read_study(file)
        for name in {name: None for group in study.groups.values() for name in group}:
            if name not in numbers:
                numbers[name] = len(numbers) + 1
                write_files(root / "nnUNet_raw", name, numbers[name])
        prepared = prepare(study, CORES, elsewhere=False)
        by_rule: dict[str, dict[str, Any]] = {}
        for job in prepared.jobs.values():
            cores, hours = threads(study, prepared.machine, job.rule), prepared.estimate.hours[job.id]
            needs = job.needs if len(job.needs) < 6 else {"jobs": len(job.needs), "all": _hash(job.needs)}
            entry = {**asdict(job), "needs": needs, "cores": cores, "hours": hours}
            by_rule.setdefault(job.rule, {})[job.id] = entry
        runs = {
            run: {**training.run.model_dump(mode="json"), "targets": list(training.targets)}
            for run, training in prepared.expansion.trainings.items()
        }
        tables = {"runs": runs, **{f"jobs, {rule}": jobs for rule, jobs in by_rule.items()}}
        shown = against_first if file.stem == IN_FULL else _ends
        content = {name: shown(plain(table, root)) for name, table in tables.items()}
        yield f"study/{file.stem}", {"order": _hash(list(prepared.jobs)), **content}
    yield "study/dry run", _dry_run(root, FILES[0])


def _ends(table: Mapping[str, Any]) -> dict[str, Any]:
    """The first and the last entry, how many there are, and a hash of all."""
    first, *_, last = [*table, *table]
    return {"entries": len(table), "all": _hash(table), first: table[first], last: table[last]}


def _hash(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _dry_run(root: Path, file: Path) -> Any:
    before = Path.cwd()
    os.chdir(root)  # the study's folder is made here
    try:
        return plain(json.loads(succeed("study", file, "--dry-run", "--json", "--cores", str(CORES))["out"][-1]), root)
    finally:
        os.chdir(before)
