"""Statistics over patients and runs: against closed forms, and where there is little or nothing to compute."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from matplotlib.figure import Figure
from scipy import stats

from nnunet_fm.data.subjects import read_subjects
from nnunet_fm.reporting.results import RUN_COLUMNS, SCORE_COLUMNS, Results
from nnunet_fm.reporting.statistics import (
    ROW,
    bootstrap_interval,
    can_claim,
    case_matrix,
    intervals,
    mean_over_runs,
    pairwise,
    ranks,
    run_values,
)
from nnunet_fm.studies.collect_trained import _anatomies
from tests.helpers.errors import fails

NAN = math.nan


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def runs_of(*runs: dict[str, Any]) -> pd.DataFrame:
    default = dict.fromkeys(RUN_COLUMNS) | {"dataset": "A", "anatomy": "x", "fold": "0"}
    return pd.DataFrame([default | {"run": str(number)} | run for number, run in enumerate(runs)], columns=RUN_COLUMNS)


def results_of(runs: pd.DataFrame, scores: Sequence[tuple[str, str, str, float]]) -> Results:
    """Scores are (run, target, case, value) of one class."""
    rows = [(run, target, case, "u", "", "Dice", value) for run, target, case, value in scores]
    return Results("t", runs, pd.DataFrame(rows, columns=SCORE_COLUMNS))


def matrix(**columns: Sequence[float]) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(
        [("x", "A", "A", f"A {n}", str(n)) for n in range(len(next(iter(columns.values()))))], names=ROW
    )
    return pd.DataFrame(columns, index=index, dtype=float)


def test_mean_and_spread_over_folds_and_seeds() -> None:
    runs = runs_of(
        *({"label": "m", "fold": str(fold), "seed": seed} for fold in (0, 1) for seed in (1, 2)), {"label": "n"}
    )
    scores = [(str(run), "A", case, 0.1 * run + shift) for run in range(5) for case, shift in (("p", 0.0), ("q", 0.2))]
    values = run_values(results_of(runs, scores))
    assert values["value"].to_list() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert values["cases"].to_list() == [2] * 5
    table = mean_over_runs(values).set_index("label")
    assert table.loc["m", "mean"] == pytest.approx(0.25)
    assert table.loc["m", "sd"] == pytest.approx(np.std([0.1, 0.2, 0.3, 0.4], ddof=1))
    assert math.isnan(table.loc["n", "sd"]) and table.loc["n", "runs"] == 1


def test_cases_are_averaged_over_folds_and_seeds_first() -> None:
    runs = runs_of({"label": "m", "seed": 1}, {"label": "m", "seed": 2}, {"label": "n"}, {"label": "n", "dataset": "B"})
    scores = [
        ("0", "A", "1", 0.2),
        ("1", "A", "1", 0.6),
        ("0", "A", "2", 0.5),
        ("2", "A", "1", 0.1),
        ("3", "A", "1", 0.3),
    ]
    table = case_matrix(results_of(runs, scores))
    assert list(table.columns) == ["m", "n"]
    assert table.loc[("x", "A", "A", "A 1", "1")].to_list() == pytest.approx([0.4, 0.1])
    assert table.loc[("x", "A", "A", "A 2", "2"), "m"] == 0.5
    assert math.isnan(table.loc[("x", "A", "A", "A 2", "2"), "n"])
    assert case_matrix(results_of(runs, scores), domain="out").index.to_list() == [("x", "B", "A", "A 1", "1")]
    assert len(case_matrix(results_of(runs, scores), domain="in")) == 2


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, 200)
    low, high = bootstrap_interval(values)
    expected = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=2e-3)
    assert bootstrap_interval(values, resamples=99, seed=1) == bootstrap_interval(values, resamples=99, seed=1)
    assert bootstrap_interval(values, resamples=99, seed=1) != bootstrap_interval(values, resamples=99, seed=2)
    assert bootstrap_interval(np.array([0.4, 0.4, NAN])) == (0.4, 0.4)
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.array([0.4, NAN])))


def test_intervals_count_a_case_once() -> None:
    table = matrix(m=[0.1, 0.3, 0.2], n=[0.5, NAN, 0.7])
    again = table.copy()
    again.index = again.index.set_levels(["B"], level="source")
    both = intervals(pd.concat([table, again + 0.2]), resamples=99)
    assert both["cases"].to_list() == [3, 2]
    assert both["mean"].to_list() == pytest.approx([0.3, 0.7])
    assert (both["low"] <= both["mean"]).all() and (both["mean"] <= both["high"]).all()
    apart = intervals(pd.concat([table, again + 0.2]), by=["source", "target"], resamples=99)
    assert apart[["source", "label"]].to_numpy().tolist() == [["A", "m"], ["A", "n"], ["B", "m"], ["B", "n"]]
    assert apart["mean"].to_list() == pytest.approx([0.2, 0.6, 0.4, 0.8])
    assert len(intervals(table, by=["source"], resamples=99)) == 2


def test_signed_rank_of_a_constant_gain() -> None:
    low = np.linspace(0.1, 0.5, 8)
    table = pairwise(matrix(a=low + np.linspace(0.01, 0.08, 8), b=low))
    row = table.iloc[0]
    assert (row["cases"], row["p"], row["p_holm"], row["significant"]) == (8, 2 / 2**8, 2 / 2**8, True)
    assert row["difference"] == pytest.approx(0.045)


def test_holm_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(20)
    table = pairwise(matrix(a=base, b=base + 0.02 * rng.normal(size=20), c=base - 0.05 - 0.1 * rng.random(20)))
    p = table["p"].to_numpy()
    order = np.argsort(p)
    expected = np.minimum(np.maximum.accumulate(p[order] * (3, 2, 1)), 1)
    assert table["p_holm"].to_numpy()[order] == pytest.approx(expected)
    assert table["significant"].to_list() == [False, True, True]


def test_pairs_with_ties_zeros_and_gaps() -> None:
    table = pairwise(matrix(a=[0.5] * 7, b=[0.5] * 7, c=[NAN] * 7, d=[0.5] * 4 + [0.6] * 3)).set_index(["a", "b"])
    assert table.loc[("a", "b"), "p"] == 1
    assert table.loc[("a", "c"), "cases"] == 0
    assert table.loc[[("a", "c"), ("b", "c"), ("c", "d")], ["p", "p_holm", "difference"]].isna().all(axis=None)
    assert not table["significant"].any()
    assert table.loc[("a", "d"), "p"] == pytest.approx(stats.wilcoxon([0.1] * 3).pvalue)


def test_differences_in_the_last_digit_are_none() -> None:
    table = pairwise(matrix(a=[0.1 + 0.2] * 8, b=[0.3] * 8))
    assert table["p"].to_list() == [1]


def two_scans(patients: int = 8) -> Results:
    """T1 and T2 of each patient, two datasets of one anatomy; the first patient has a second T1."""
    generator = np.random.default_rng(3)
    runs = runs_of(*({"label": label, "dataset": sequence} for label in "abc" for sequence in ("T1", "T2")))
    names = {sequence: [f"{sequence}_{n}" for n in range(patients)] for sequence in ("T1", "T2")}
    names["T1"].append("T1_0_later")
    scores = [
        (run, runs["dataset"][int(run)], case, 0.5 + 0.02 * (int(run) // 2) + 0.1 * generator.random())
        for run in runs["run"]
        for case in names[runs["dataset"][int(run)]]
    ]
    subjects = {sequence: {case: case.split("_")[1] for case in cases} for sequence, cases in names.items()}
    results = results_of(runs, scores)
    results.subjects = subjects
    return results


def test_a_patient_counts_once_whatever_number_of_scans() -> None:
    """Numbers of all patients' means, computed by hand: interval, signed-rank test, ranks and Friedman's test."""
    results = two_scans()
    table = case_matrix(results)
    assert len(table) == 17
    people = pd.DataFrame(
        {
            label: [
                np.mean([value for (*_, who, _), value in table[label].items() if who == str(patient)])
                for patient in range(8)
            ]
            for label in table
        }
    )
    row = intervals(table).set_index("label").loc["b"]
    assert (row["patients"], row["cases"]) == (8, 17)
    assert row["mean"] == pytest.approx(people["b"].mean())
    assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(people["b"].to_numpy()))
    over_cases = bootstrap_interval(table["b"].to_numpy())
    assert row["high"] - row["low"] != pytest.approx(over_cases[1] - over_cases[0], rel=0.01)

    pair = pairwise(table).set_index(["a", "b"]).loc[("a", "c")]
    assert (pair["patients"], pair["cases"]) == (8, 17)
    assert pair["p"] == pytest.approx(stats.wilcoxon(people["a"] - people["c"]).pvalue)
    found = ranks(table)
    assert (found.patients, found.cases) == (8, 17)
    assert found.average.to_dict() == pytest.approx(people.rank(axis=1, ascending=False).mean().to_dict())
    assert found.friedman == pytest.approx(stats.friedmanchisquare(*(people[label] for label in people)).pvalue)
    assert len(intervals(table, by=["target"])) == 6


def test_patients_are_not_joined_over_anatomies_nor_without_being_told() -> None:
    """Six cases of three patients allow no claim; the same names in another anatomy, or untold, are others."""
    results = two_scans(3)
    few = ranks(case_matrix(results))
    assert few.patients == 3 and can_claim(results.runs, few.patients) is not None
    results.runs["anatomy"] = results.runs["dataset"]
    assert ranks(case_matrix(results)).patients == 6
    results.runs["anatomy"], results.subjects = "x", {}
    untold = ranks(case_matrix(results))
    assert untold.patients == untold.cases == 7


def test_patients_are_read_from_conversions_and_from_a_users_table(tmp_path: Path) -> None:
    """A user's table comes first; of one cohort, two conversions name the same patients, of two cohorts others."""
    folders = [tmp_path / name for name in ("T1", "T2", "other")]
    for folder, cohort in zip(folders, ("hcp", "hcp", "abide"), strict=True):
        folder.mkdir()
        cases = {f"{folder.name}_7": {"subject": "7", "files": {}}}
        (folder / "conversion.json").write_text(json.dumps({"dataset": cohort, "cases": cases}))
    read = [read_subjects(folder) for folder in folders]
    assert read[0]["T1_7"] == read[1]["T2_7"] != read[2]["other_7"]
    assert read_subjects(tmp_path / "nowhere", folders[0]) == read[0]
    assert read_subjects(tmp_path / "nowhere") == {}
    (folders[0] / "subjects.json").write_text('{"T1_7": "anna", "T1_8": 8}')
    assert read_subjects(folders[0], folders[1]) == {"T1_7": "anna", "T1_8": "8"}
    (folders[0] / "subjects.json").write_text('{"T1_7": ["anna"]}')
    with fails("patients-form", "subjects.json"):
        read_subjects(folders[0])
    for content in ("[]", "{", '{"cases": 3}', '{"cases": {"a": {}}}'):
        (folders[1] / "conversion.json").write_text(content)
        assert read_subjects(folders[1]) == {}


def test_datasets_of_the_same_patients_and_classes_are_one_anatomy() -> None:
    """Models trained by hand name no anatomy."""
    labels = {"background": 0, "a": 1}
    classes = {"T1": labels, "T2": labels, "more": {**labels, "b": 2}, "others": labels}
    subjects = {"T1": {"x": "hcp 1"}, "T2": {"y": "hcp 1"}, "more": {"x": "hcp 1"}, "others": {"x": "2"}}
    assert _anatomies(classes, subjects) == {"T1": "T1", "T2": "T1", "more": "more", "others": "others"}


def test_sources_do_not_multiply_cases() -> None:
    table = matrix(a=np.linspace(0.1, 0.2, 8), b=np.linspace(0.1, 0.3, 8) + 0.01)
    copies = []
    for source in "BCD":
        copy = table.copy()
        copy.index = copy.index.set_levels([source], level="source")
        copies.append(copy)
    assert pairwise(pd.concat(copies))["p"].to_list() == pairwise(table)["p"].to_list()
    assert ranks(pd.concat(copies)).cases == 8


def test_ranks() -> None:
    table = matrix(a=[0.9, 0.8, 0.9, NAN], b=[0.5, 0.8, 0.7, 1.0], c=[0.1, 0.2, 0.3, 0.9])
    found = ranks(table)
    assert found.average.to_dict() == pytest.approx({"a": 3.5 / 3, "b": 5.5 / 3, "c": 3})
    assert found.cases == 3
    complete = table.iloc[:3]
    assert found.friedman == stats.friedmanchisquare(*(complete[label] for label in "abc")).pvalue
    assert found.p.equals(found.p.T) and (np.diag(found.p) == 1).all()
    assert found.p.loc["a", "c"] == pairwise(table).set_index(["a", "b"]).loc[("a", "c"), "p_holm"]
    assert list(ranks(table, lower_is_better=True).average.index) == ["c", "b", "a"]


def test_ranks_suit_the_diagram() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(30)
    found = ranks(matrix(a=base + 0.5, b=base + 0.02 * rng.normal(size=30), c=base + 0.02 * rng.normal(size=30)))
    axes = Figure().subplots()
    drawn = scikit_posthocs.critical_difference_diagram(found.average, found.p, ax=axes)
    assert len(drawn["crossbars"]) == 1  # b and c are alike
    assert len(drawn["markers"]) == 3


@pytest.mark.parametrize(
    "columns", [{"a": [0.5]}, {"a": [NAN]}, {"a": [0.5], "b": [0.6]}, {"a": [0.5] * 3, "b": [0.5] * 3, "c": [0.5] * 3}]
)
def test_little_to_compare(columns: dict[str, list[float]]) -> None:
    table = matrix(**columns)
    found = ranks(table)
    assert list(found.p.columns) == list(columns)
    assert found.friedman in (None, 1.0)
    assert not pairwise(table)["significant"].any()
    assert len(intervals(table)) == len(columns)


def test_no_scores_at_all() -> None:
    table = case_matrix(results_of(runs_of({"label": "m"}), []))
    assert table.empty
    assert pairwise(table).empty and intervals(table).empty and ranks(table).cases == 0
    assert mean_over_runs(run_values(results_of(runs_of({"label": "m"}), []))).empty


def test_claims() -> None:
    once = [{"label": "m"}, {"label": "n"}]
    twice = [*once, {"label": "m", "seed": 2}, {"label": "n", "fold": "1"}]
    assert "every model was trained once" in str(can_claim(runs_of(*once)))
    assert "every model was trained once" in str(can_claim(runs_of(*once, {"label": "m", "dataset": "B"})))
    assert "about n: trained once" in str(can_claim(runs_of(*once, {"label": "m", "seed": 2})))
    assert "no two models" in str(can_claim(runs_of({"label": "m"}, {"label": "m", "fold": "1"})))
    assert "no two models" in str(can_claim(runs_of()))
    assert can_claim(runs_of(*twice)) is None
    assert can_claim(runs_of(*twice), patients=6) is None
    assert "share 5 tested patients" in str(can_claim(runs_of(*twice), patients=5))
    assert "share 1 tested patient, " in str(can_claim(runs_of(*twice), patients=1))


def test_adapted_models_are_repeated_per_pair_of_domains() -> None:
    adapted = {"method": "selftraining", "label": "m+", "dataset": "B"}
    runs = runs_of({"label": "m"}, {"label": "m", "seed": 2}, adapted | {"source": "A"}, adapted | {"source": "C"})
    assert "about m+: trained once" in str(can_claim(runs))
