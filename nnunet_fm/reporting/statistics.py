"""Statistics over runs and cases: means, spreads, intervals, paired tests, ranks, and conditions of a claim.

Patients are the unit of every interval and test. A case has one value per label: the mean over its classes, then over
the folds and seeds of the label. A patient has the mean over the own cases of an anatomy. Means leave out
undefined values (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.messages import listed
from nnunet_fm.metrics.scores_table import CASE, DICE, METRIC, METRICS, VALUE
from nnunet_fm.reporting.results import Results

Domain = Literal["all", "in", "out"]

SUBJECT = "subject"
"""Column of the case's patient."""

ROW = ["anatomy", "source", "target", SUBJECT, CASE]
"""Index of the rows of `case_matrix`."""

FEWEST = 6
"""Two-sided signed-rank tests of fewer pairs cannot reach 5 %: the smallest p-value of 5 pairs is 2/2^5 = 0.0625."""


def with_source(runs: pd.DataFrame) -> pd.DataFrame:
    """Fill ``source`` of runs: the dataset of the model they started from, or of a plain training its own."""
    return runs.assign(source=runs["source"].where(runs["source"].notna(), runs["dataset"]))


def case_values(results: Results, metric: str = DICE) -> pd.DataFrame:
    """Mean over classes of each case of each run, with the columns of `Results.runs`.

    Further columns are ``target``, ``case``, ``subject`` (the patient) and ``value``.

    Classes without a value (NaN) are left out of a case's mean, and so are cases without any value. An adapted model
    counts on the dataset it was adapted to only.

    Raises:
        ValueError: for an unknown metric.
    """
    if metric not in METRICS:
        raise InvalidValueError(
            f"there is no metric '{metric}'; the metrics are {', '.join(METRICS)}", code="metric-unknown"
        )
    scores = results.scores.loc[results.scores[METRIC] == metric]
    means = scores.astype({VALUE: float}).groupby(["run", "target", CASE], sort=False)[VALUE].mean().dropna()
    values = with_source(results.runs).merge(means.reset_index(), on="run")
    values[SUBJECT] = [
        results.patient(target, case) for target, case in zip(values["target"], values[CASE], strict=True)
    ]
    return values[values["method"].isna() | (values["target"] == values["dataset"])].reset_index(drop=True)


def run_values(results: Results, metric: str = DICE) -> pd.DataFrame:
    """Mean over the cases of each run on each dataset: columns of `case_values`, and the number of ``cases``."""
    values = case_values(results, metric)
    keys = ["run", "target"]
    means = values.groupby(keys, sort=False)[VALUE].agg(value="mean", cases="count").reset_index()
    return values.drop(columns=[CASE, SUBJECT, VALUE]).drop_duplicates(keys).merge(means, on=keys)


def mean_over_runs(values: pd.DataFrame, by: Sequence[str] = ("label", "source", "target")) -> pd.DataFrame:
    """Mean and standard deviation (n - 1) over folds and seeds, and the number of runs.

    Args:
        values: values from `run_values`.
        by: columns that group runs which differ in fold and seed only.

    Returns:
        Columns ``by``, ``mean``, ``sd`` (NaN with one run), ``runs``.
    """
    groups = values.groupby(list(by), sort=False, dropna=False)[VALUE]
    return groups.agg(mean="mean", sd="std", runs="count").reset_index()


def case_matrix(results: Results, metric: str = DICE, domain: Domain = "all") -> pd.DataFrame:
    """Matrix of cases, by source dataset of the models, and labels; NaN if not tested.

    Args:
        results: results, whose runs give the order of the labels.
        metric: one of `METRICS`.
        domain: ``in`` for tests on the training's own dataset, ``out`` for those on other ones.

    Returns:
        Index `ROW`; values are means over the folds and seeds of a label.
    """
    values = case_values(results, metric)
    if domain != "all":
        values = values[(values["source"] == values["target"]) == (domain == "in")]
    matrix = values.pivot_table(index=ROW, columns="label", values=VALUE, aggfunc="mean", sort=False)
    labels = [label for label in results.runs["label"].drop_duplicates() if label in matrix.columns]
    return matrix[labels].rename_axis(columns=None)


def bootstrap_interval(
    values: NDArray[np.floating[Any]], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of the mean; NaN for fewer than two values.

    Args:
        values: one per patient, shape (N,); NaN is left out.
        confidence: confidence level of the interval.
        resamples: number of bootstrap samples.
        seed: the same seed gives the same interval.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=resamples, batch=1000, random_state=seed
    ).confidence_interval
    return float(interval.low), float(interval.high)


def intervals(
    matrix: pd.DataFrame, by: Sequence[str] = (), confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Mean over patients with its bootstrap interval, for each label.

    A case has the mean over the source datasets of the tested models. A patient counts once in an anatomy, with the
    mean over the own cases.

    Args:
        matrix: matrix from `case_matrix`.
        by: levels of its index that give separate rows, such as ``source`` and ``target``.
        confidence: confidence level of the interval.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        Columns ``by``, ``label``, ``patients``, ``cases``, ``mean``, ``low``, ``high``.
    """
    rows = []
    groups = matrix.groupby(level=list(by), sort=False) if by and len(matrix) else [((), matrix)]
    for key, group in groups:
        for label in group:
            values = _units(group[label]).to_numpy()
            low, high = bootstrap_interval(values, confidence, resamples, seed)
            mean = float(values.mean()) if len(values) else math.nan
            rows.append((*key, label, len(values), _count_cases(group[label]), mean, low, high))
    return pd.DataFrame(rows, columns=[*by, "label", "patients", "cases", "mean", "low", "high"])


def pairwise(matrix: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Wilcoxon's signed-rank test over patients for each pair of labels, with Holm's correction over all pairs.

    A pair is compared on its common rows; differences are averaged over source datasets, then over the cases of a
    patient. Zero differences are left out, like in Wilcoxon's paper; if all are zero, p is 1. Pairs without a common
    case have no p (NaN).

    Args:
        matrix: matrix from `case_matrix`.
        alpha: family-wise error rate.

    Returns:
        Columns ``a``, ``b``, ``patients``, ``cases``, ``difference`` (mean of a - b), ``p``, ``p_holm`` and
        ``significant``.
    """
    rows = []
    for a, b in combinations(matrix.columns, 2):
        common = matrix[a] - matrix[b]
        differences = _units(common).to_numpy()
        mean = float(differences.mean()) if len(differences) else math.nan
        rows.append((a, b, len(differences), _count_cases(common), mean, _signed_rank(differences)))
    table = pd.DataFrame(rows, columns=["a", "b", "patients", "cases", "difference", "p"])
    table["p_holm"] = np.nan
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    table["significant"] = table["p_holm"] < alpha
    return table


@dataclass(frozen=True)
class Ranks:
    """Data of a critical-difference diagram.

    Args:
        average: label -> average rank over patients, 1 is best, best first.
        p: corrected p-value of each pair, a symmetric table with ones on its diagonal and for pairs without a test.
        friedman: p-value of Friedman's test that all labels are alike; None for less than three labels or two patients.
        patients: number of patients with cases that every label was tested on.
        cases: number of these cases.
    """

    average: pd.Series[float]
    p: pd.DataFrame
    friedman: float | None
    patients: int
    cases: int


def ranks(matrix: pd.DataFrame, lower_is_better: bool = False) -> Ranks:
    """Average ranks over the patients that all labels have, with Holm-corrected signed-rank tests of the pairs.

    Demšar (2006), but with the pairwise tests of Benavoli et al. (2016) instead of Nemenyi's, because they do not
    depend on the other labels. Ties share their mean rank.

    Args:
        matrix: matrix from `case_matrix`.
        lower_is_better: whether lower values are better, as for distances.
    """
    complete = matrix.dropna()
    units = _units(complete)
    # Rounded, because the order of summation may change the last digit of equal means.
    units = units.round(12)
    labels = list(matrix.columns)
    ranked = units.rank(axis=1, ascending=lower_is_better)
    p = pd.DataFrame(1.0, index=labels, columns=labels)
    for row in pairwise(matrix[labels]).dropna(subset="p_holm").itertuples():
        p.loc[row.a, row.b] = p.loc[row.b, row.a] = row.p_holm
    friedman = None
    if len(labels) >= 3 and len(units) >= 2:
        same = bool((units.nunique(axis=1) == 1).all())
        friedman = 1.0 if same else float(stats.friedmanchisquare(*(units[label] for label in labels)).pvalue)
    average = ranked.mean().sort_values(kind="stable")
    return Ranks(average, p, friedman, len(units), _count_cases(complete))


def can_claim(runs: pd.DataFrame, patients: int | None = None) -> str | None:
    """Reason why these runs do not allow the claim that one label is better than another; None if they do.

    Args:
        runs: runs of `Results`.
        patients: number of patients of the comparison, if known.
    """
    if runs["label"].nunique() < 2:
        return "No claim of superiority can be made: there are no two models to compare."
    trained = ["label", "source", "dataset"]
    different = with_source(runs).drop_duplicates([*trained, "fold", "seed"])
    repeats = different.groupby(trained, sort=False).size()
    single = repeats[repeats < 2].index.get_level_values("label").unique()
    if len(single) == runs["label"].nunique():
        return (
            "No claim of superiority can be made: every model was trained once (one fold, one seed), so that the "
            "spread between trainings is unknown. Train several folds or seeds."
        )
    if len(single):
        return (
            f"No claim of superiority can be made about {listed(single, most=5)}: trained once (one fold, one seed) on "
            "some dataset, so that the spread between trainings is unknown. Train several folds or seeds."
        )
    if patients is not None and patients < FEWEST:
        return (
            f"No claim of superiority can be made: the models share {patients} tested "
            f"patient{'' if patients == 1 else 's'}, and a signed-rank test of fewer than {FEWEST} cannot reach 5 %."
        )
    return None


Values = TypeVar("Values", "pd.Series[float]", pd.DataFrame)


def _units(values: Values) -> Values:
    """One row per patient of an anatomy: mean over source datasets for each case, then over cases.

    Rows that lack a value in any column are left out.
    """
    values = values.dropna()
    if not len(values):
        return values
    of_cases = values.groupby(level=["anatomy", SUBJECT, "target", CASE], sort=False).mean()
    return of_cases.groupby(level=["anatomy", SUBJECT], sort=False).mean()


def _count_cases(values: pd.Series[float] | pd.DataFrame) -> int:
    """Number of cases with a value in every column."""
    index = values.dropna().index
    return len(index.droplevel([level for level in index.names if level not in ("target", CASE)]).unique())


def _signed_rank(differences: NDArray[np.floating[Any]]) -> float:
    """Two-sided p-value; 1 if all differences are zero, NaN without differences."""
    if not len(differences):
        return math.nan
    differences = differences.round(12)
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
