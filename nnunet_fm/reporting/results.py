"""What a report is made of: the runs, their tidy scores, records, times and files, however they were gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from nnunet_fm.data.subjects import Subjects, own_name
from nnunet_fm.metrics.scores_table import COLUMNS
from nnunet_fm.records.training import TrainingRecord

Control = Literal["stock", "resenc", "scratch"]
Method = Literal["selftraining", "entropymin"]


class Run(BaseModel):
    """One training: what was trained on what.

    Args:
        run: identifier, unique in a study and a legal folder name.
        label: what the run is called in tables and figures; runs that differ in dataset, fold or seed only share it.
        control: which control row the run belongs to; None for the models under study.
        dataset: name of the dataset it was trained on, such as ``Dataset904_A``; of an adapted model, the target.
        source: of an adapted model, the dataset of the model it started from.
        anatomy: datasets of one anatomy share their labels and are domains of one another.
        train_cases: number of training cases it was restricted to; None is all of them.
        method: of an adapted model, how it was adapted.
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
    """Everything a report shows.

    Args:
        title: heading of the report.
        runs: one row per run, columns `RUN_COLUMNS`.
        scores: tidy scores of every run on every dataset it was tested on (``target``), columns `SCORE_COLUMNS`.
        records: run -> what its training recorded, where it did.
        times: seconds per case and step (reading, preprocessing, inference, export), columns `TIME_COLUMNS`.
        files: images, references and predictions to make pictures of, columns `FILE_COLUMNS`.
        size_shares: dataset -> class -> share of the labelled volume, from 0 to 1.
        subjects: dataset -> case -> patient; a case that is not in it is a patient of its own.
        published: id of the published study whose numbers stand beside ours, None where there is none.
        folder: where the results were gathered from.
        notes: sentences on what is left out.
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
        """Name of the patient that a case of a dataset is of."""
        return self.subjects.get(dataset, {}).get(case) or own_name(dataset, case)
