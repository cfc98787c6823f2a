"""Collect everything a report shows from a study's folder; `collect_trained` does so for models trained by hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_fm.data.subjects import read_subjects
from nnunet_fm.errors import MissingFileError
from nnunet_fm.io.untrusted import read_yaml
from nnunet_fm.metrics.scores_table import read_scores
from nnunet_fm.records.prediction import FILE as TIMES
from nnunet_fm.reporting.results import FILE_COLUMNS, RUN_COLUMNS, SCORE_COLUMNS, TIME_COLUMNS, Results, Run
from nnunet_fm.studies.cases import CaseSet, dataset_json, label_names, without_seen
from nnunet_fm.studies.collect_trained import collect_results, read_records, trained_on
from nnunet_fm.studies.job_markers import read_json_or_none
from nnunet_fm.studies.testing import LEFT_OUT, TESTED


def collect(folder: Path) -> Results:
    """Collect the results of a study as far as it has run: runs without scores appear in ``runs`` only.

    Runs on the disk that are no longer in the study are left out.

    Args:
        folder: output folder of `nnunet-fm study`, with ``study.yaml`` and ``runs``.

    Raises:
        FileNotFoundError: if it is no study's folder.
        ValueError: if a file in it is damaged; the message names it.
    """
    if not (folder / "study.yaml").is_file() or not (folder / "runs").is_dir():
        raise MissingFileError(f"{folder} is no study's folder: it has no study.yaml, or no runs", code="study-folder")
    study: dict[str, Any] = read_yaml(folder / "study.yaml")
    jobs = read_json_or_none(folder / "jobs.json") or {}
    runs = _runs(folder, jobs.get("runs"))
    raw = Path(jobs.get("raw") or os.environ.get("nnUNet_raw") or "nnUNet_raw")
    scores, times, files, notes = [], [], [], []
    shares: dict[str, Mapping[str, float]] = {}
    subjects: dict[str, Mapping[str, str]] = {}
    for run in runs:
        # Only targets of the present study; former ones stay on the disk.
        for target in _targets(folder / "runs" / run.run, jobs.get("runs", {}).get(run.run)):
            about = {"run": run.run, "target": target.name}
            frame, tested = read_scores(target / "scores.csv"), read_json_or_none(target / TESTED) or {}
            left_out = tested.get(LEFT_OUT, [])
            if "images" in tested:  # scores of older versions include cases of the training
                scored = CaseSet(tested["images"], tested["labels"], sorted(frame["case"].unique()))
                model = Path(run.model_folder, f"fold_{run.fold}")
                left_out = [*left_out, *without_seen(scored, raw / target.name, model, run.dataset)[1]]
            scores.append(frame[~frame["case"].isin(left_out)].assign(**about))
            times += [{**about, **row} for row in _times(target / "predictions" / TIMES)]
            files += [{**about, **row} for row in _files(target, raw / target.name, scores[-1]["case"].unique())]
            if left_out:
                notes.append(trained_on(run.label, target.name, left_out))
            if target.name not in subjects:
                subjects[target.name] = read_subjects(raw / target.name)
            if target.name not in shares:
                known = read_json_or_none(folder / "size_shares" / f"{target.name}.json")
                shares |= {target.name: known} if known else {}
    return Results(
        title=study.get("title") or study["name"],
        runs=pd.DataFrame([run.model_dump() for run in runs], columns=RUN_COLUMNS),
        scores=pd.concat(scores, ignore_index=True)[SCORE_COLUMNS] if scores else pd.DataFrame(columns=SCORE_COLUMNS),
        records=read_records(runs),
        times=pd.DataFrame(times, columns=TIME_COLUMNS),
        files=pd.DataFrame(files, columns=FILE_COLUMNS),
        size_shares=shares,
        notes=list(dict.fromkeys(notes)),
        subjects=subjects,
        published=study.get("published"),
        folder=folder,
    )


def _runs(folder: Path, current: Mapping[str, Any] | None) -> list[Run]:
    """The study's runs in its order; all runs on the disk if the study does not list its own."""
    names = current if current is not None else sorted(p.parent.name for p in (folder / "runs").glob("*/run.json"))
    files = [file for name in names if (file := folder / "runs" / name / "run.json").is_file()]
    return [Run.model_validate_json(file.read_text(encoding="utf-8")) for file in files]


def _targets(folder: Path, current: Iterable[str] | None) -> list[Path]:
    names = current if current is not None else sorted(p.name for p in folder.iterdir() if p.is_dir())
    return [folder / name for name in names if (folder / name / "scores.csv").is_file()]


def _times(file: Path) -> list[dict[str, Any]]:
    content = read_json_or_none(file) or {"cases": {}}
    return [
        {"case": case, "step": step, "seconds": seconds, "processor": content["processor"]}
        for case, steps in content["cases"].items()
        for step, seconds in steps.items()
    ]


def _files(target: Path, raw: Path, cases: Iterable[str]) -> list[dict[str, str]]:
    """Image (first channel), reference and prediction of each case of which all three exist."""
    if not (raw / "dataset.json").is_file():
        return []
    ending = dataset_json(raw)["file_ending"]
    tested = read_json_or_none(target / "tested.json")
    if tested is None:
        part = "Ts" if set(cases) <= label_names(raw / "labelsTs", ending) else "Tr"
        tested = {"images": f"images{part}", "labels": f"labels{part}"}
    found = []
    for case in cases:
        row = {
            "image": raw / tested["images"] / f"{case}_0000{ending}",
            "reference": raw / tested["labels"] / f"{case}{ending}",
            "prediction": target / "predictions" / f"{case}{ending}",
        }
        if all(path.is_file() for path in row.values()):
            found.append({"case": case, **{name: str(path) for name, path in row.items()}})
    return found


__all__ = ["collect", "collect_results"]
