"""Domain generalisation: cells from scores, their summaries, adaptation, rankings and the check of label sets."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_fm.reporting.generalisation import (
    CELL_COLUMNS,
    adaptation,
    cells,
    check_label_sets,
    missing_cells,
    summarise,
)
from nnunet_fm.reporting.ranking import ranking
from nnunet_fm.reporting.results import RUN_COLUMNS, SCORE_COLUMNS, Results
from tests.helpers.errors import fails

NAN = math.nan


def make(runs: list[dict[str, Any]], scores: list[tuple[Any, ...]]) -> Results:
    """Results of runs with defaults, and scores (run, target, case, class, value)."""
    default = dict.fromkeys(RUN_COLUMNS) | {"label": "m", "dataset": "A", "anatomy": "x", "fold": "0"}
    rows = [(run, target, case, name, "", "Dice", value) for run, target, case, name, value in scores]
    return Results("t", pd.DataFrame([default | run for run in runs]), pd.DataFrame(rows, columns=SCORE_COLUMNS))


def matrix(label: str, anatomy: str, values: list[list[float]], method: str = "") -> pd.DataFrame:
    """Cells of one label: a square of values, sources are rows; NaN has no cell."""
    rows = [
        dict.fromkeys(CELL_COLUMNS, "")
        | {"label": label, "trained": label, "model": label, "method": method, "anatomy": anatomy, "value": value}
        | {"source": f"{anatomy}{i}", "target": f"{anatomy}{j}"}
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if not math.isnan(value)
    ]
    return pd.DataFrame(rows)


def test_classes_then_cases_then_runs() -> None:
    results = make(
        [{"run": "r0", "fold": "0"}, {"run": "r1", "fold": "1"}],
        [
            ("r0", "A", "1", "u", 0.2), ("r0", "A", "1", "v", 0.4),
            ("r0", "A", "2", "u", 0.9), ("r0", "A", "2", "v", NAN),
            ("r1", "A", "3", "u", 0.0), ("r1", "A", "3", "v", 0.2),
            ("r0", "B", "9", "u", NAN), ("r0", "B", "9", "v", NAN),
        ],
    )  # fmt: skip
    table = cells(results)
    assert list(table.columns) == CELL_COLUMNS
    assert len(table) == 1  # no case of B has a value
    row = table.iloc[0]
    assert row["value"] == pytest.approx(((0.3 + 0.9) / 2 + 0.1) / 2)
    assert row["sd"] == pytest.approx(np.std([0.6, 0.1], ddof=1))
    assert row["runs"] == 2
    assert (row["model"], row["method"], row["control"]) == ("", "", "")


def test_labels_and_domains_stay_apart() -> None:
    results = make(
        [
            {"run": "a", "label": "m", "model": "mae_b", "train_cases": 3},
            {"run": "b", "label": "n", "model": "mae_b"},
            {"run": "c", "label": "m", "model": "mae_b", "train_cases": 3, "dataset": "B"},
        ],
        [(run, target, "1", "u", value) for run, target, value in
         (("a", "A", 0.1), ("a", "B", 0.2), ("b", "A", 0.3), ("b", "B", 0.4), ("c", "B", 0.5), ("c", "A", 0.6))],
    )  # fmt: skip
    table = cells(results).set_index(["label", "source", "target"])["value"]
    assert table.to_dict() == {
        ("m", "A", "A"): 0.1,
        ("m", "A", "B"): 0.2,
        ("n", "A", "A"): 0.3,
        ("n", "A", "B"): 0.4,
        ("m", "B", "B"): 0.5,
        ("m", "B", "A"): 0.6,
    }


def test_adapted_models_belong_to_source_and_target() -> None:
    results = make(
        [
            {"run": "a", "label": "m"},
            {"run": "b", "label": "m+", "dataset": "B", "source": "A", "method": "entropymin"},
        ],
        [("a", "A", "1", "u", 0.8), ("a", "B", "2", "u", 0.4), ("b", "B", "2", "u", 0.6), ("b", "A", "1", "u", 0.1)],
    )
    table = cells(results)
    adapted = table[table["method"] == "entropymin"]
    assert adapted[["source", "target", "value"]].to_numpy().tolist() == [["A", "B", 0.6]]
    summary = summarise(table)
    assert summary["label"].to_list() == ["m"]
    row = adaptation(table).iloc[0]
    assert (row["method"], row["DS"], row["DG"], row["shift"]) == ("entropymin", 0.8, 0.4, 0.6)
    assert row["loss %"] == pytest.approx(-25)


def test_adapted_models_find_the_one_they_started_from() -> None:
    runs: list[dict[str, Any]] = [
        {"label": "DINOv2", "model": "dinov2_b"},
        {"label": "DINOv2 official", "model": "dinov2_b"},
        {"label": "DINOv2, 3 cases", "model": "dinov2_b", "train_cases": 3},
        {"label": "scratch", "model": "dinov2_b", "control": "scratch"},
        {"label": "SAM", "model": "sam_b"},
    ]
    adapted = {"dataset": "B", "source": "A", "method": "selftraining"}
    runs += [
        {"label": "DINOv2, adapted", "model": "dinov2_b"} | adapted,
        {"label": "DINOv2 official, adapted", "model": "dinov2_b"} | adapted,
        {"label": "three", "model": "dinov2_b", "train_cases": 3} | adapted,
        {"label": "adapted SAM", "model": "sam_b"} | adapted,
        {"label": "of nothing known", "model": "mae_b"} | adapted,
    ]
    runs = [run | {"run": str(number)} for number, run in enumerate(runs)]
    scores = [(run["run"], run.get("dataset", "A"), "1", "u", 0.1 * (n + 1)) for n, run in enumerate(runs)]
    table = cells(make(runs, scores))
    found = dict(zip(table["label"], table["trained"], strict=True))
    assert {label: trained for label, trained in found.items() if label != trained} == {
        "DINOv2, adapted": "DINOv2",
        "DINOv2 official, adapted": "DINOv2 official",
        "three": "DINOv2, 3 cases",
        "adapted SAM": "SAM",
    }
    rows = adaptation(table).set_index("label")
    assert rows["DS"].to_list() == pytest.approx([0.1, 0.2, 0.3, 0.5, NAN], nan_ok=True)


def test_metrics() -> None:
    results = make([{"run": "a"}], [("a", "A", "1", "u", 0.8)])
    results.scores["metric"] = "HD95"
    assert cells(results, "HD95")["value"].to_list() == [0.8]
    assert cells(results, "NSD").empty and list(cells(results, "NSD").columns) == CELL_COLUMNS
    with fails("metric-unknown", "dice"):
        cells(results, "dice")


def test_pools() -> None:
    table = pd.concat(
        [
            matrix("m", "x", [[0.9, 0.1, 0.2], [0.3, 0.8, 0.0], [0.1, 0.1, 0.7]]),
            matrix("m", "y", [[0.5, 0.2], [0.4, 0.1]]),
        ]
    )
    by_anatomy = summarise(table, by=["label", "anatomy"]).set_index("anatomy")
    assert by_anatomy.loc["x", ["DS", "DG", "OV"]].to_list() == pytest.approx([0.8, 0.8 / 6, 3.2 / 9])
    assert by_anatomy.loc["y", ["DS", "DG", "OV"]].to_list() == pytest.approx([0.3, 0.3, 0.3])
    row = summarise(table).iloc[0]
    assert row[["DS", "DG", "OV"]].to_list() == pytest.approx([0.55, (0.8 / 6 + 0.3) / 2, (3.2 / 9 + 0.3) / 2])
    assert (row["anatomies"], row["cells"]) == (2, 13)
    row = summarise(table, pool="datasets").iloc[0]
    assert row[["DS", "DG", "OV"]].to_list() == pytest.approx([3.0 / 5, 1.4 / 8, 4.4 / 13])


def test_averages_over_a_column_are_taken_last() -> None:
    table = pd.concat(
        [matrix("a", "x", [[0.9, 0.1], [0.1, 0.9]]), matrix("b", "x", [[0.3, 0.2]]), matrix("b", "y", [[0.7]])]
    )
    table = table.assign(head="linear")
    row = summarise(table, by=["head"], over=["model"]).iloc[0]
    assert row["DS"] == pytest.approx((0.9 + (0.3 + 0.7) / 2) / 2)
    assert row["DG"] == pytest.approx((0.1 + 0.2) / 2)  # anatomy y has one domain and no DG
    assert row["OV"] == pytest.approx((0.5 + (0.25 + 0.7) / 2) / 2)


def test_one_domain_has_no_dg() -> None:
    row = summarise(matrix("m", "x", [[0.9]])).iloc[0]
    assert row["DS"] == row["OV"] == 0.9
    assert math.isnan(row["DG"])


def test_missing_cells() -> None:
    table = pd.concat(
        [matrix("a", "x", [[1, 1], [1, 1]]), matrix("b", "x", [[1, 1], [NAN, 1]]), matrix("b", "y", [[1]])]
    )
    assert missing_cells(table).to_numpy().tolist() == [["a", "y", "y0", "y0"], ["b", "x", "x1", "x0"]]
    assert missing_cells(matrix("a", "x", [[1, 1], [1, 1]])).empty


def test_adaptation_compares_with_the_sources_it_started_from() -> None:
    trained = matrix("m", "x", [[0.8, 0.2], [0.4, 0.5]])
    one = matrix("m", "x", [[NAN, 0.6]], method="selftraining")
    both = matrix("m", "x", [[NAN, 0.6], [0.5, NAN]], method="entropymin")
    rows = adaptation(pd.concat([trained, one, both])).set_index("method")
    assert rows.loc["selftraining", ["DS", "DG", "shift", "loss %"]].to_list() == pytest.approx([0.8, 0.2, 0.6, -25])
    assert rows.loc["entropymin", ["DS", "DG", "shift"]].to_list() == pytest.approx([0.65, 0.3, 0.55])
    untrained = adaptation(one)
    assert untrained["shift"].to_list() == [0.6]
    assert untrained[["DS", "DG", "loss %"]].isna().all(axis=None)
    assert adaptation(trained).empty


def test_adaptation_over_anatomies() -> None:
    parts = [matrix("m", "x", [[0.8, 0.2], [0.4, 0.6]]), matrix("m", "x", [[NAN, 0.6], [0.4, NAN]], "selftraining")]
    parts += [matrix("m", "y", [[0.5, 0.2]]), matrix("m", "y", [[NAN, 0.3]], "selftraining")]
    row = adaptation(pd.concat(parts), by=["model"]).iloc[0]
    assert row[["DS", "shift"]].to_list() == pytest.approx([(0.7 + 0.5) / 2, (0.5 + 0.3) / 2])
    row = adaptation(pd.concat(parts), by=["model"], pool="datasets").iloc[0]
    assert row[["DS", "shift"]].to_list() == pytest.approx([1.9 / 3, 1.3 / 3])


def summary(**values: list[float]) -> pd.DataFrame:
    names = [chr(ord("a") + number) for number in range(len(values["OV"]))]
    return pd.DataFrame({"label": names, "DS": 0.5, "DG": 0.5, **values})


def test_ranking() -> None:
    table = ranking(summary(OV=[0.4, 0.8, NAN, 0.8], DG=[0.2, 0.1, 0.4, 0.0]))
    assert table["label"].to_list() == ["b", "d", "a", "c"]
    assert table["rank"].to_list() == [1, 1, 3, pd.NA]
    assert table["OV diff %"].to_list()[:3] == pytest.approx([0, 0, -50])
    assert table["DG diff %"].to_list() == pytest.approx([-75, -100, -50, 0])
    assert list(table.columns[:4]) == ["rank", "label", "OV", "OV diff %"]
    assert ranking(summary(OV=[0.4, 0.8], DG=[0.2, 0.1]), by="DG")["label"].to_list() == ["a", "b"]


def test_ranking_of_distances_and_of_nothing() -> None:
    table = ranking(summary(OV=[4.0, 2.0]), lower_is_better=True)
    assert table["label"].to_list() == ["b", "a"]
    assert table["OV diff %"].to_list() == [0, 100]
    assert ranking(summary(OV=[0.0, 0.0]))["OV diff %"].isna().all()
    assert ranking(summary(OV=[])).empty
    with fails("metric-unknown", "label", "OV", "DS", "DG"):
        ranking(summary(OV=[1.0]), by="label")


def labels(**values: Any) -> dict[str, Any]:
    return {"labels": {"background": 0, **values}}


def test_equal_label_sets_pass() -> None:
    check_label_sets({})
    check_label_sets({"A": labels(x=1, y=2)})
    check_label_sets({"A": labels(x=1, y=2), "B": labels(y=2, x=1), "C": labels(x=[1], y=2, ignore=3)})
    regions = labels(whole=[1, 2], core=2) | {"regions_class_order": [1, 2]}
    check_label_sets({"A": regions, "B": json.loads(json.dumps(regions))})


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (labels(x=1), ("labels-differ", "Dataset002_B", "y")),
        (labels(x=1, y=2, z=3), ("labels-differ", "z")),
        (labels(x=2, y=1), ("labels-differ", "x", "2", "1", "y")),
        (labels(x=1, y=[1, 2]) | {"regions_class_order": [1, 2]}, ("labels-differ", "y", "2")),
        ({"labels": {"Background": 0, "x": 1, "y": 2}}, ("labels-differ", "background", "Background")),
    ],
)
def test_different_label_sets_are_told(other: dict[str, Any], expected: tuple[str, ...]) -> None:
    with fails(*expected, "Dataset002_B", "Dataset001_A"):
        check_label_sets({"Dataset001_A": labels(x=1, y=2), "Dataset002_B": other})


def test_order_of_regions_matters() -> None:
    regions = labels(whole=[1, 2], core=2)
    with fails("labels-differ", "regions_class_order"):
        check_label_sets(
            {"A": regions | {"regions_class_order": [1, 2]}, "B": regions | {"regions_class_order": [2, 1]}}
        )


def test_broken_dataset_files_are_named() -> None:
    with fails("labels-table", "dataset.json", "Dataset003_Ä", "labels"):
        check_label_sets({"Dataset003_Ä": {}})
    with fails("labels-table", "0", "background", "v2"):
        check_label_sets({"old": {"labels": {"0": "background", "1": "tumour"}}} | {"A": labels(x=1)})
