"""Means of tidy scores over cases and classes. They leave out the scores of slices and what is undefined (NaN)."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.metrics.labels import BACKGROUND
from nnunet_fm.metrics.scores_table import CASE, CLASS, DICE, METRIC, SIZE_GROUP, SLICE, VALUE


def volume_scores(scores: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """The rows of whole cases, of one metric if it is named."""
    if SLICE in scores:
        scores = scores[scores[SLICE].isna()]
    return scores if metric is None else scores[scores[METRIC] == metric]


def mean_per_class(scores: pd.DataFrame, metric: str = DICE) -> pd.Series[float]:
    """Mean over the cases of each class, in the order of the table."""
    return volume_scores(scores, metric).groupby(CLASS, sort=False)[VALUE].mean()


def mean_foreground(scores: pd.DataFrame, metric: str = DICE) -> float:
    """Mean over cases, then over classes without the background: every class weighs the same, however often it occurs.

    As nnU-Net's ``foreground_mean``, which is NaN as soon as one class is empty in all cases.
    """
    return float(mean_per_class(scores, metric).drop(BACKGROUND, errors="ignore").mean())


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over cases: columns ``class``, ``metric``, ``mean``, ``sd``, ``n``.

    ``n`` is the number of cases where the score is defined; the deviation is that of a sample, NaN of one case.
    """
    groups = volume_scores(scores).groupby([CLASS, METRIC], sort=False)[VALUE]
    return groups.agg(mean="mean", sd="std", n="count").reset_index()


def per_case(scores: pd.DataFrame, metric: str = DICE) -> pd.DataFrame:
    """Cases down, classes across, both in the order of the table."""
    rows = volume_scores(scores, metric)
    return rows.pivot(index=CASE, columns=CLASS, values=VALUE).loc[rows[CASE].unique(), rows[CLASS].unique()]


def class_groups(scores: pd.DataFrame) -> dict[str, str]:
    """Class -> size group, of classes that are in one group in all cases."""
    groups = volume_scores(scores).groupby(CLASS, sort=False)[SIZE_GROUP]
    return {str(name): str(values.iloc[0]) for name, values in groups if values.nunique() == 1}
