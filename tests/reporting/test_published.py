"""Published numbers: every row of a summary table that follows from single tests is recomputed from them."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from nnunet_fm.models.registry import get_card
from nnunet_fm.reporting.generalisation import MODEL, adaptation, cells, missing_cells, summarise
from nnunet_fm.reporting.published import (
    STUDIES,
    beside,
    dataset_key,
    published_architectures,
    published_cells,
    published_results,
    published_summary,
)
from nnunet_fm.reporting.ranking import ranking
from nnunet_fm.reporting.results import RUN_COLUMNS, SCORE_COLUMNS, Results
from tests.helpers.errors import fails

PRINTED = 0.0101
"""Tests and their means are both printed with two digits: 0.005 each, and the last bit of a float."""

MISPRINTS = {("A.6", "mae_b", "ladder", "OV")}
"""Printed values that do not follow from the tests of their own table."""

TABLES = {
    "A.1": 12 * (4 * 8 - 1),
    "A.6": 16 * 16,
    "A.8": 16 * 4,
    "A.10": 12 * 4,
    "A.13": 13 * 16,
    "A.15": 13 * 4,
    "A.17": 12 * 4,
    "A.19": 12 * 4,
    "A.21": 10 * 16,
    "A.22": 10 * 4,
    "A.23": 9 * 4,
    "A.24": 9 * 4,
}


def percent(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table.assign(**{column: 100 * table[column] for column in columns})


def compare(
    printed: pd.DataFrame, computed: pd.DataFrame, keys: list[str], values: list[str]
) -> set[tuple[object, ...]]:
    """Entries of printed rows that differ from the computed ones; every printed row has a computed one."""
    both = printed.merge(computed, on=keys, suffixes=(" printed", ""), validate="one_to_one")
    assert len(both) == len(printed)
    return {
        (*(row[key] for key in keys), value)
        for _, row in both.iterrows()
        for value in values
        if not abs(row[value + " printed"] - row[value]) <= PRINTED
    }


def test_every_test_is_there() -> None:
    found = pd.concat([published_cells(study) for study in STUDIES if study != "thesis_a"])
    assert found["table"].value_counts().to_dict() == TABLES
    assert found["value"].between(0, 1).all()
    assert not found.duplicated(["table", *MODEL, "source", "target"]).any()


@pytest.mark.parametrize("study", list(STUDIES))
def test_names_are_those_of_this_package(study: str) -> None:
    table = published_cells(study)
    for model, head, adapter in table[MODEL].drop_duplicates().itertuples(index=False):
        described = get_card(model)
        assert head in (described.heads or [""])
        assert adapter in (described.adapters or [""])
    assert {dataset_key(name) for name in table["source"]} == set(table["source"])


def test_a_training_has_the_same_tests_in_every_table() -> None:
    found = pd.concat([published_cells(study) for study in STUDIES])
    kinds = found[found["method"] == ""].groupby([*MODEL, "source", "target"])["value"]
    assert (kinds.nunique() == 1).all()
    assert (kinds.size() > 1).sum() > 100


def test_values_of_two_rows_are_the_same_by_coincidence_once_at_most() -> None:
    """Table A.6 gives SAM and MAE, frozen and trained on ABIDE Stanford, two equal numbers of three."""
    table = published_cells("thesis_b_fine_tuning").pivot_table(
        index=[*MODEL, "source"], columns="target", values="value", sort=False
    )
    alike = {
        (a[0], b[0], a[-1])
        for a, b in itertools.combinations(table.index, 2)
        if a[-1] == b[-1] and (table.loc[a] == table.loc[b]).sum() > 1
    }
    assert alike == {("sam_b", "mae_b", "ABIDE_STANFORD")}


def test_decode_heads_pool_datasets() -> None:
    table = published_cells("thesis_b_decode_heads")
    rows = percent(summarise(table, by=["model", "head"], pool="datasets"), ["DS", "DG", "OV"])
    assert compare(published_summary("A.1"), rows, ["model", "head"], ["DS", "DG", "OV"]) == set()
    heads = percent(summarise(table, by=["head"], pool="datasets", over=["model"]), ["DS", "DG", "OV"])
    assert compare(published_summary("4.2"), heads, ["head"], ["DS", "DG", "OV"]) == set()


@pytest.mark.parametrize("table", ["4.2", "A.2", "A.3", "A.4", "A.5"])
def test_ranking_of_decode_heads(table: str) -> None:
    printed = published_summary(table)
    own = published_cells("thesis_b_decode_heads")
    if "model" in printed:
        own = own[own["model"] == printed["model"].iloc[0]]
    check_ranking(printed, summarise(own, by=["head"], pool="datasets", over=["model"]), "head")


@pytest.mark.parametrize(
    ("table", "anatomy"), [("A.7", "brain"), ("A.9", "lumbar_spine"), ("A.11", "prostate"), ("A.12", None)]
)
def test_ranking_of_adapters(table: str, anatomy: str | None) -> None:
    own = published_cells("thesis_b_fine_tuning")
    if anatomy is None:  # the anatomies are averaged last: MedSAM is in two of them only
        summary = summarise(own, by=["adapter", "anatomy"], over=["model"])
        summary = summary.groupby("adapter", sort=False)[["DS", "DG", "OV"]].mean().reset_index()
    else:
        summary = summarise(own[own["anatomy"] == anatomy], by=["adapter"], over=["model"])
    check_ranking(published_summary(table), summary, "adapter")


def check_ranking(printed: pd.DataFrame, summary: pd.DataFrame, name: str) -> None:
    rows = percent(ranking(summary), ["DS", "DG", "OV"])
    assert rows[name].to_list() == printed[name].to_list()
    assert rows["rank"].to_list() == printed["rank"].to_list()
    for value in ("DS", "DG", "OV"):
        assert (rows[value] - printed[value]).abs().max() <= PRINTED
        allowed = 100 * PRINTED / rows[value].max() + 0.005
        assert (rows[f"{value} diff %"] - printed[f"{value} diff %"]).abs().max() <= allowed


def test_parameters_of_table_4_2_stand_in_wrong_rows() -> None:
    """DA, small U-Net, ResNet and the two SAM decoders have one another's; A.2 to A.5 agree with the models."""
    right = dict(published_summary("A.2").set_index("head")["trainable_m"])
    for table in ("A.3", "A.4", "A.5"):
        assert dict(published_summary(table).set_index("head")["trainable_m"]) == right
    printed = published_summary("4.2").set_index("head")["trainable_m"]
    wrong = {head: value for head, value in printed.items() if value != right[head]}
    assert wrong == {"samdec": 5.60, "samdec_frozen_pe": 5.61, "da": 7.87, "unetdec_small": 39.21, "resdec": 24.35}
    assert sorted(printed) == sorted(right.values())


def test_fine_tuning() -> None:
    table = published_cells("thesis_b_fine_tuning")
    anatomies = percent(summarise(table, by=["adapter", "model", "anatomy"]), ["DS", "DG", "OV"])
    wrong = set()
    for name in ("A.6", "A.8", "A.10"):
        keys = ["anatomy", "model", "adapter"]
        found = compare(published_summary(name), anatomies, keys, ["DS", "DG", "OV"])
        wrong |= {(name, *entry[1:]) for entry in found}
    assert wrong == MISPRINTS
    means = percent(summarise(table, by=["adapter", "model"]), ["DS", "DG", "OV"])
    assert compare(published_summary("4.3"), means, ["adapter", "model"], ["DS", "DG", "OV"]) == set()


@pytest.mark.parametrize("table", ["4.5", "4.6"])
def test_generalisation_within_anatomies(table: str) -> None:
    rows = summarise(published_cells("thesis_b_generalisation"), by=[*MODEL, "anatomy"])
    rows = percent(rows, ["DS", "DG", "OV"])
    assert compare(published_summary(table), rows, [*MODEL, "anatomy"], ["DS", "DG", "OV"]) == set()


def test_generalisation_across_anatomies() -> None:
    rows = percent(summarise(published_cells("thesis_b_generalisation"), by=MODEL), ["DS", "DG", "OV"])
    assert compare(published_summary("4.7"), rows, MODEL, ["DS", "DG", "OV"]) == set()
    assert set(rows["model"]) - set(published_summary("4.7")["model"]) == {"medsam_b"}
    lacking = missing_cells(published_cells("thesis_b_generalisation"), by=["model"])
    assert set(lacking["model"]) == {"medsam_b"}
    assert set(lacking["anatomy"]) == {"prostate", "brain_tumour"}
    assert len(lacking) == 8


@pytest.mark.parametrize("table", ["4.8", "4.9"])
def test_self_training(table: str) -> None:
    own = published_cells("thesis_b_self_training")
    rows = percent(adaptation(own, by=[*MODEL, "anatomy"]), ["DS", "shift"])
    printed = published_summary(table)
    assert compare(printed, rows, [*MODEL, "anatomy"], ["DS", "shift"]) == set()
    both = printed.merge(rows, on=[*MODEL, "anatomy"], suffixes=(" printed", ""))
    allowed = 100 * PRINTED / both["DS"] + 0.005
    assert ((both["loss % printed"] - both["loss %"]).abs() <= allowed).all()


def test_self_training_is_compared_with_the_same_pairs_before_it() -> None:
    both = pd.concat([published_cells("thesis_b_self_training"), published_cells("thesis_b_generalisation")])
    rows = adaptation(both.drop_duplicates([*MODEL, "method", "source", "target"]), by=[*MODEL, "anatomy"])
    row = rows[(rows["model"] == "dinov2_b") & (rows["anatomy"] == "brain")].iloc[0]
    assert 100 * row["DG"] == pytest.approx(52.37, abs=PRINTED)
    assert 100 * row["shift"] == pytest.approx(80.28, abs=PRINTED)


def test_numbers_of_the_3d_comparison() -> None:
    patches = published_architectures().set_index("model")
    assert patches.loc["misfm", ["patch_z", "patch_y", "patch_x"]].to_list() == [64, 128, 128]
    for model in ("spadnet", "dae", "suprem", "swinmm", "stunet_b", "misfm"):
        assert get_card(model).variants["mission"].geometry.patch == list(patches.loc[model].iloc[:3])
    results = published_results().set_index(["model", "dataset"])
    assert results.loc[("stunet_b", "AortaSeg24"), "dice"] == 0.76
    assert results.loc[("spadnet", "AortaSeg24"), "iterations"] == get_card("spadnet").iterations["aortaseg24"]
    assert len(published_cells("thesis_a")) == results["dice"].notna().sum() == 5


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Dataset521_HCP_T1", "HCP_T1"),
        ("hcp-t1", "HCP_T1"),
        ("HCP1", "HCP_T1"),
        ("Dataset007_MRSegV", "MRSpineSeg"),
        ("Dataset502_HaNSeg_CT", "HaNSeg_CT"),
        ("Dataset904_A", None),
        ("Dataset522_HCP_T1_small", None),
    ],
)
def test_dataset_names(name: str, key: str | None) -> None:
    assert dataset_key(name) == key


def test_own_cells_stand_beside_the_published_ones() -> None:
    run = dict.fromkeys(RUN_COLUMNS) | {
        "run": "r",
        "label": "ours",
        "model": "mae_b",
        "head": "hqhsam",
        "adapter": "freeze",
        "dataset": "Dataset530_NCI",
        "anatomy": "p",
        "fold": "0",
    }
    scores = [
        ("r", f"Dataset{n}_{name}", "c", "cg", "", "Dice", 0.5) for n, name in ((530, "NCI"), (531, "USZ"), (1, "X"))
    ]
    others = [
        run | {"run": "s", "label": "s", "control": "scratch"},
        run | {"run": "n", "label": "n", "train_cases": 3},
    ]
    scores += [(other["run"], *scores[0][1:]) for other in others]
    results = Results("t", pd.DataFrame([run, *others]), pd.DataFrame(scores, columns=SCORE_COLUMNS))
    assert set(cells(results)["label"]) == {"ours", "s", "n"}
    table = beside(cells(results), "thesis_b_generalisation")
    assert dict(zip(table["target"], table["published"], strict=True)) == {
        "Dataset530_NCI": pytest.approx(0.7298),
        "Dataset531_USZ": pytest.approx(0.2928),
    }
    assert table["difference"].to_list() == pytest.approx([-0.2298, 0.2072])


def test_unknown_names_list_the_known_ones() -> None:
    with fails("published-unknown", "thesis_c", "thesis_b_decode_heads"):
        published_cells("thesis_c")
    with fails("published-unknown", "9.9", "4.2"):
        published_summary("9.9")
