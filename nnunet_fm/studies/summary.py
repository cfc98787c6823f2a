"""Summaries of a study before and after a run, as values for JSON."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nnunet_fm.studies.job_markers import JobMarkers
from nnunet_fm.studies.jobs import RULES
from nnunet_fm.studies.prepare import Prepared
from nnunet_fm.studies.run import Outcome


def plan_summary(prepared: Prepared) -> dict[str, Any]:
    """Jobs, hours, bytes on disk and missing files of a study, before it runs."""
    rules = _by_rule(prepared, JobMarkers(prepared.study.folder).finished(prepared.jobs.values()))
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


def outcome_summary(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    """Finished, failed and waiting jobs of a study, after it ran."""
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


def _by_rule(prepared: Prepared, done: Collection[str]) -> dict[str, dict[str, Any]]:
    """Number of jobs, number of finished ones, and hours of the others, by rule."""
    table = {}
    for rule in RULES:
        jobs = [job for job in prepared.jobs.values() if job.rule == rule]
        if jobs:
            left = [job for job in jobs if job.id not in done]
            hours = round(sum(prepared.estimate.hours[job.id] for job in left), 2)
            table[rule] = {"jobs": len(jobs), "done": len(jobs) - len(left), "hours": hours}
    return table
