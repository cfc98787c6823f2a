"""Means of tidy scores over cases and classes, without scores of slices and undefined ones (NaN)."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.metrics.labels import BACKGROUND
from nnunet_fm.metrics.scores_table import CASE, CLASS, DICE, METRIC, SIZE_GROUP, SLICE, VALUE


def volume_scores(scores: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """Rows of whole cases, of all metrics or of one."""
    if SLICE in scores:
        scores = scores[scores[SLICE].isna()]
    return scores if metric is None else scores[scores[METRIC] == metric]


def mean_per_class(scores: pd.DataFrame, metric: str = DICE) -> pd.Series[float]:
    """Mean over the cases of each class, in the order of the table."""
    return volume_scores(scores, metric).groupby(CLASS, sort=False)[VALUE].mean()


def mean_foreground(scores: pd.DataFrame, metric: str = DICE) -> float:
    """Mean over cases, then over classes without the background; all classes weigh the same.

    Like nnU-Net's ``foreground_mean``, except that a class without a score in any case does not make it NaN.
    """
    return float(mean_per_class(scores, metric).drop(BACKGROUND, errors="ignore").mean())


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over cases: columns ``class``, ``metric``, ``mean``, ``sd``, ``n``.

    ``n`` is the number of cases where the score is defined; the deviation is that of a sample, NaN of one case.
    """
    groups = volume_scores(scores).groupby([CLASS, METRIC], sort=False)[VALUE]
    return groups.agg(mean="mean", sd="std", n="count").reset_index()


def per_case(scores: pd.DataFrame, metric: str = DICE) -> pd.DataFrame:
    """Table of cases (rows) by classes (columns), both in the order of the scores."""
    rows = volume_scores(scores, metric)
    return rows.pivot(index=CASE, columns=CLASS, values=VALUE).loc[rows[CASE].unique(), rows[CLASS].unique()]


def class_groups(scores: pd.DataFrame) -> dict[str, str]:
    """Size group of each class that has the same group in all cases."""
    groups = volume_scores(scores).groupby(CLASS, sort=False)[SIZE_GROUP]
    return {str(name): str(values.iloc[0]) for name, values in groups if values.nunique() == 1}
