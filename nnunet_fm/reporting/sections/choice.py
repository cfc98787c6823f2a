"""Choose cases and predictions for pictures: best, median and worst case of a dataset, and the leading models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_fm.metrics.label_map import read_label_map
from nnunet_fm.metrics.labels import foreground, read_dataset_json
from nnunet_fm.reporting.figures.style import plain_names
from nnunet_fm.reporting.results import METHODS
from nnunet_fm.reporting.sections.context import Context

MOST_DATASETS = 6
MOST_MODELS = 3
"""Number of models under study in pictures, besides the best control."""
MOST_SURFACES = 7


@dataclass(frozen=True)
class Prediction:
    """A prediction's file and label; ``kind`` is in-domain, another source's name, or an adaptation."""

    label: str
    run: str
    kind: str
    file: Path


def pictured_datasets(context: Context) -> list[str]:
    """Datasets with existing files, in the order of the runs."""
    files = context.files
    return [name for name in dict.fromkeys([*context.datasets, *files["target"]]) if (files["target"] == name).any()]


def ranked_cases(context: Context, target: str) -> dict[str, str]:
    """``best``, ``median`` and ``worst`` case of a dataset, by the mean over the models under study.

    Fewer than three cases have fewer names; without scores, the first one is ``case``.
    """
    files = context.files
    there = set(files.loc[files["target"] == target, "case"])
    means = context.case_means(target, context.models)
    means = means[means.index.isin(there)].sort_values(ascending=not context.metric.higher, kind="stable")
    if not len(means):
        return {"case": min(there)}
    cases = list(means.index)
    if len(cases) == 1:
        return {"only case": cases[0]}
    if len(cases) == 2:
        return {"best": cases[0], "worst": cases[1]}
    return {"best": cases[0], "median": cases[len(cases) // 2], "worst": cases[-1]}


def leading_labels(context: Context, most: int) -> list[str]:
    """The best models under study and the best control."""
    controls = [label for label in context.labels if label in context.controls and label not in context.models]
    return [*context.models[:most], *controls[:1]]


def in_domain(context: Context, target: str, case: str, labels: Sequence[str]) -> Iterator[Prediction]:
    """First prediction of a case by a model of each label that was trained on the case's dataset."""
    for label in labels:
        found = _rows(context, target, case, label)
        found = found[found["method"].isna() & (found["dataset"] == target)]
        if len(found):
            yield _prediction(found, "this dataset (DS)")


def across_domains(context: Context, target: str, case: str, label: str) -> Iterator[Prediction]:
    """Predictions of a case by the model of a label that was trained elsewhere, and by its adaptations."""
    runs = context.results.runs
    identity = runs.loc[runs["label"] == label, ["model", "head", "adapter"]].iloc[0]
    same = runs[(runs[["model", "head", "adapter"]].fillna("") == identity.fillna("")).all(axis=1)]
    labels = [label, *dict.fromkeys(same.loc[same["method"].notna(), "label"])]
    rows = pd.concat([_rows(context, target, case, name) for name in labels])
    trained = rows[rows["method"].isna() & (rows["dataset"] != target) & (rows["label"] == label)]
    if len(trained):
        first = trained[trained["dataset"] == trained["dataset"].iloc[0]]
        yield _prediction(first, f"{_plain(first['dataset'].iloc[0])} (DG)")
    adapted = rows[rows["method"].notna() & (rows["dataset"] == target)]
    for method, found in adapted.groupby("method", sort=False):
        words = METHODS.get(str(method), str(method))
        yield _prediction(found, f"from {_plain(found['source'].iloc[0])}, {words}")


def case_score(context: Context, run: str, target: str, case: str) -> float:
    """Mean of the metric over the classes of a case; NaN without a score."""
    scores = context.results.scores
    chosen = (scores["run"] == run) & (scores["target"] == target) & (scores["case"] == case)
    values = scores.loc[chosen & (scores["metric"] == context.metric_name), "value"]
    return float(values.mean()) if len(values) else float("nan")


def classes_of(reference: Path) -> dict[str, tuple[int, ...]]:
    """Classes of the ``dataset.json`` above a reference's folder; else the labels in the reference."""
    description = reference.parent.parent / "dataset.json"
    if description.is_file():
        return foreground(read_dataset_json(description)["labels"])[0]
    return {f"label {value}": (int(value),) for value in np.unique(read_label_map(reference).array) if value > 0}


def _rows(context: Context, target: str, case: str, label: str) -> pd.DataFrame:
    files = context.files
    files = files[(files["target"] == target) & (files["case"] == case)]
    return files.merge(context.results.runs[context.results.runs["label"] == label], on="run")


def _plain(dataset: str) -> str:
    return plain_names([dataset])[dataset]


def _prediction(rows: pd.DataFrame, kind: str) -> Prediction:
    first = rows.iloc[0]
    return Prediction(str(first["label"]), str(first["run"]), kind, Path(first["prediction"]))
