"""Data of all sections: results, metric, and models in the order of their score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nnunet_fm.metrics.scores_table import CASE, METRIC
from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.reporting.figures.style import svg
from nnunet_fm.reporting.generalisation import Pool, cells
from nnunet_fm.reporting.results import Results
from nnunet_fm.reporting.sections.elements import Picture
from nnunet_fm.reporting.sections.numbers import MetricStyle, metric_style
from nnunet_fm.reporting.statistics import case_matrix, intervals, mean_over_runs, run_values


@dataclass
class Context:
    """A report's data.

    Args:
        results: results to show.
        metric_name: one of `nnunet_fm.metrics.scores_table.METRICS`.
        pool: average over several anatomies.
        pictures: whether to draw pictures of cases.
        features: a slice and the model's feature maps of it as pictures, by label.
        progress: called with the name of the next step.
    """

    results: Results
    metric_name: str
    pool: Pool = "anatomies"
    pictures: bool = True
    features: Mapping[str, tuple[Picture, Picture]] = field(default_factory=dict)
    progress: Callable[[str], None] = lambda step: None

    def __post_init__(self) -> None:
        self._charts = itertools.count(1)

    def chart(self, figure: Figure, alt: str) -> str:
        """Convert a figure to SVG with unique ids."""
        return svg(figure, alt, f"f{next(self._charts)}")

    @cached_property
    def metric(self) -> MetricStyle:
        return metric_style(self.metric_name)

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """Matrix of cases by labels on the dataset of their training; without such tests, of all tests."""
        inside = case_matrix(self.results, self.metric_name, "in")
        return inside if len(inside) else case_matrix(self.results, self.metric_name)

    @cached_property
    def domain(self) -> str:
        """Words for the tests of the ranking."""
        inside = (self.matrix.index.get_level_values("source") == self.matrix.index.get_level_values("target")).all()
        return "on the dataset of the training" if inside else "on other datasets than those of the training"

    @cached_property
    def table(self) -> pd.DataFrame:
        """Labels from best to worst: ``rank``, ``label``, ``control`` and the columns of `intervals`."""
        table = intervals(self.matrix)
        table = table.sort_values("mean", ascending=not self.metric.higher, kind="stable", na_position="last")
        table["rank"] = table["mean"].rank(method="min", ascending=not self.metric.higher).astype("Int64")
        table["control"] = table["label"].isin(self.controls)
        return table.reset_index(drop=True)

    @cached_property
    def labels(self) -> list[str]:
        """Labels with scores, best first, then those of plain trainings without scores."""
        return list(dict.fromkeys([*self.table["label"], *self.trained["label"]]))

    @cached_property
    def trained(self) -> pd.DataFrame:
        """Runs that are no adaptations."""
        return self.results.runs[self.results.runs["method"].isna()]

    @cached_property
    def controls(self) -> list[str]:
        runs = self.results.runs
        return list(runs.loc[runs["control"].notna(), "label"].unique())

    @cached_property
    def models(self) -> list[str]:
        """Labels under study that have scores, best first; the controls where there are no others."""
        scored = list(self.table.loc[self.table["mean"].notna(), "label"])
        return [label for label in scored if label not in self.controls] or scored

    @cached_property
    def run_values(self) -> pd.DataFrame:
        return run_values(self.results, self.metric_name)

    @cached_property
    def cells(self) -> pd.DataFrame:
        return cells(self.results, self.metric_name)

    @cached_property
    def own_tests(self) -> pd.DataFrame:
        """Scores of plain trainings on the dataset of the training, with ``label``."""
        scores = self.results.scores.merge(self.trained[["run", "label", "dataset"]], on="run")
        return scores[scores["target"] == scores["dataset"]]

    @cached_property
    def files(self) -> pd.DataFrame:
        """Rows of `Results.files` whose three files exist."""
        files = self.results.files
        paths = files[["image", "reference", "prediction"]]
        there = {path: Path(path).is_file() for path in pd.unique(paths.to_numpy().ravel())}
        return files[paths.map(lambda path: there[path]).all(axis=1)] if len(files) else files

    @cached_property
    def by_dataset(self) -> pd.DataFrame:
        """Mean and sd over runs on the dataset of the training: ``label``, ``dataset``, ``mean``, ``sd``, ``runs``."""
        values = self.run_values
        own = values[(values["source"] == values["target"]) & values["method"].isna()]
        return mean_over_runs(own, by=("label", "target")).rename(columns={"target": "dataset"})

    @cached_property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.results.runs["dataset"]))

    def case_means(self, target: str, labels: Sequence[str]) -> pd.Series[float]:
        """Mean of the metric of each case of a dataset over the runs of some labels that were trained on it."""
        scores = self.own_tests
        chosen = (scores["target"] == target) & scores["label"].isin(labels) & (scores[METRIC] == self.metric_name)
        return scores[chosen].groupby([CASE, "run"])["value"].mean().groupby(CASE).mean().dropna()

    def records(self, label: str) -> list[TrainingRecord]:
        """Records of the plain trainings of a label."""
        runs = self.trained.loc[self.trained["label"] == label, "run"]
        return [self.results.records[run] for run in runs if run in self.results.records]
