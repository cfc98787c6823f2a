"""Data of a report: runs with their tidy scores, records, times and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from nnunet_fm.data.subjects import Subjects, own_name
from nnunet_fm.metrics.scores_table import COLUMNS
from nnunet_fm.planfile.schema import Method
from nnunet_fm.records.training import TrainingRecord

Control = Literal["stock", "resenc", "scratch"]
METHODS: dict[str, str] = {"selftraining": "self-training", "entropymin": "entropy minimisation"}
"""Names of the methods of adaptation in labels and tables."""


class Run(BaseModel):
    """One training of a model on a dataset.

    Args:
        run: identifier, unique in a study and a legal folder name.
        label: name in tables and figures; runs that differ in dataset, fold or seed only share it.
        control: control row of the run; None for the models under study.
        dataset: name of the training dataset, such as ``Dataset904_A``; for an adapted model, of the target.
        source: dataset of the model that an adaptation starts from.
        anatomy: anatomy; its datasets share their labels and are domains of one another.
        train_cases: number of training cases; None for all.
        method: method of an adaptation.
        model_folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    run: str
    label: str
    model: str | None = None
    head: str | None = None
    adapter: str | None = None
    control: Control | None = None
    trainer: str
    plans: str
    configuration: str
    dataset: str
    source: str | None = None
    anatomy: str
    fold: str
    seed: int | None = None
    train_cases: int | None = None
    method: Method | None = None
    model_folder: str


RUN_COLUMNS = list(Run.model_fields)
SCORE_COLUMNS = ["run", "target", *COLUMNS]
TIME_COLUMNS = ["run", "target", "case", "step", "seconds", "processor"]
FILE_COLUMNS = ["run", "target", "case", "image", "reference", "prediction"]


def _empty(columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=columns)


@dataclass
class Results:
    """Content of a report.

    Args:
        title: heading of the report.
        runs: one row per run, columns `RUN_COLUMNS`.
        scores: tidy scores of every run on every dataset it was tested on (``target``), columns `SCORE_COLUMNS`.
        records: training records by run, of those that have one.
        times: seconds per case and step (reading, preprocessing, inference, export), columns `TIME_COLUMNS`.
        files: images, references and predictions for pictures, columns `FILE_COLUMNS`.
        size_shares: dataset -> class -> share of the labelled volume, from 0 to 1.
        subjects: dataset -> case -> patient; a case without an entry is a patient of its own.
        published: id of the published study to compare with, if any.
        folder: folder that the results were collected from.
        notes: sentences on omitted cases.
    """

    title: str
    runs: pd.DataFrame
    scores: pd.DataFrame
    records: Mapping[str, TrainingRecord] = field(default_factory=dict)
    times: pd.DataFrame = field(default_factory=lambda: _empty(TIME_COLUMNS))
    files: pd.DataFrame = field(default_factory=lambda: _empty(FILE_COLUMNS))
    size_shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    subjects: Subjects = field(default_factory=dict)
    published: str | None = None
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    def patient(self, dataset: str, case: str) -> str:
        """Name of the patient of a dataset's case."""
        return self.subjects.get(dataset, {}).get(case) or own_name(dataset, case)
