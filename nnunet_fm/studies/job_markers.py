"""Files that mark the jobs of a study as done or failed, for people and for Snakemake."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_fm.io.atomic_write import write_text

if TYPE_CHECKING:
    from nnunet_fm.studies.jobs import Job

INTERRUPTED_BY = "interrupted by "
"""Beginning of the last line of a job's log after a signal, whose name follows."""


class JobMarkers:
    """Markers in a study's folder: ``jobs/<rule>/<id>.json`` of a finished job is the output of its Snakemake rule.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def done(self, rule: str, job: str) -> Path:
        """Marker of a finished job."""
        return self.folder / "jobs" / rule / f"{job}.json"

    def failed(self, rule: str, job: str) -> Path:
        """Marker of a job that failed in the last run."""
        return self.folder / "failed" / rule / f"{job}.json"

    def log(self, rule: str, job: str) -> Path:
        """File with the output of a job."""
        return self.folder / "logs" / rule / f"{job}.log"

    def clear_failed(self) -> None:
        """Remove the markers of failed jobs, before a new run."""
        for path in (self.folder / "failed").glob("*/*.json"):
            path.unlink(missing_ok=True)

    def finished(self, jobs: Iterable[Job]) -> set[str]:
        """Ids of those jobs that are done."""
        return self._marked("jobs", jobs)

    def unsuccessful(self, jobs: Iterable[Job]) -> set[str]:
        """Ids of those jobs that failed in this run."""
        return self._marked("failed", jobs)

    def _marked(self, kind: str, jobs: Iterable[Job]) -> set[str]:
        ending = len(".json")
        there = {path.name[:-ending] for path in (self.folder / kind).glob("*/[!.]*.json")}
        return {job.id for job in jobs} & there


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step and make its folder; raises as `replacing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def read_json_or_none(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None if it does not exist or was cut off."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
