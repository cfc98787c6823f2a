"""The report: every number recomputed from the scores, a page that is whole, and what a browser makes of it."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import wilcoxon
from typer.testing import CliRunner

import nnunet_fm.studies.collect as collecting
from nnunet_fm.cli.app import app
from nnunet_fm.metrics.scores_table import METRICS
from nnunet_fm.reporting.report import write_report
from nnunet_fm.reporting.results import Results
from nnunet_fm.reporting.sections.cases import cases_section
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Picture, Section, Table, breakable, picture_grid
from nnunet_fm.reporting.sections.generalisation import generalisation_section
from nnunet_fm.reporting.sections.numbers import metric_style, millions, p_value, percent, plural, signed
from nnunet_fm.reporting.sections.published import published_section
from nnunet_fm.reporting.sections.ranking import ranking_table
from nnunet_fm.reporting.sections.summary import claim, summary
from tests.helpers.browser import browser, console, findings, run
from tests.helpers.errors import fails
from tests.helpers.results_maker import STEPS, make_results

needs_browser = pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome on this machine")


class Page(HTMLParser):
    """A page's tables as words, its texts, links and ids; every tag must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, *heads: str) -> list[dict[str, str]]:
        """Rows of the table whose headings begin with these."""
        for rows in self.tables:
            if tuple(rows[0][: len(heads)]) == heads:
                return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        raise AssertionError(f"no table {heads} among {[rows[0] for rows in self.tables]}")


def made(tmp_path: Path, results: Results, **options: Any) -> tuple[Page, list[str]]:
    missing = write_report(results, tmp_path, **options)
    return Page(tmp_path / "index.html"), missing


def read(tmp_path: Path, name: str) -> pd.DataFrame:
    for ending in ("md", "tex"):
        assert (tmp_path / "tables" / f"{name}.{ending}").stat().st_size > 0
    return pd.read_csv(tmp_path / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])


def mean(values: Any) -> float:
    """Mean of the numbers that are defined; NaN without any."""
    known = [float(v) for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def own_case_values(
    results: Results, metric: str = "Dice"
) -> dict[tuple[str, str], dict[tuple[str, str], dict[str, float]]]:
    """(label, source, target) as ``[label, source] -> [target, case] -> run -> mean over classes``, by plain loops."""
    runs = {row["run"]: row for row in results.runs.to_dict("records")}
    raw: dict[Any, list[float]] = defaultdict(list)
    for row in results.scores.to_dict("records"):
        if row["metric"] == metric:
            raw[row["run"], row["target"], row["case"]].append(row["value"])
    found: dict[Any, dict[Any, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (name, target, case), values in raw.items():
        run_row = runs[name]
        value = mean(values)
        if not math.isnan(value) and pd.isna(run_row["method"]):
            found[run_row["label"], run_row["dataset"]][target, case][name] = value
    return found


def in_domain(results: Results, metric: str = "Dice") -> dict[str, dict[tuple[str, str], float]]:
    """Label -> case -> mean over runs."""
    found: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for (label, source), cases in own_case_values(results, metric).items():
        for (target, case), by_run in cases.items():
            if target == source:
                found[label][target, case] = mean(by_run.values())
    return found


@pytest.fixture(scope="module")
def two() -> Results:
    """Two datasets of one anatomy, tested across, adapted, some scores undefined."""
    return make_results(
        models=("STU-Net B", "DINOv2 B"),
        controls=("stock", "scratch"),
        datasets=("Dataset905_MRI", "Dataset906_CT"),
        classes=("anterior", "posterior", "tiny"),
        across=True,
        adapted=("selftraining",),
        cases=7,
        nan_share=0.1,
    )


@pytest.fixture(scope="module")
def report(two: Results, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    folder = tmp_path_factory.mktemp("report")
    return made(folder, two)[0], folder


@pytest.mark.parametrize("metric", ["Dice", "HD95"])
def test_ranking(two: Results, metric: str) -> None:
    made_table = ranking_table(context := Context(two, metric))
    cases = in_domain(two, metric)
    means = {label: mean(values.values()) for label, values in cases.items()}
    order = sorted(means, key=means.__getitem__, reverse=metric == "Dice")
    table = made_table.frame.set_index("label")
    assert list(table.index) == order and table["rank"].tolist() == [1, 2, 3, 4]
    best = order[0]
    pairs = list(itertools.combinations(means, 2))
    raw = []
    for a, b in pairs:
        common = [c for c in cases[a] if c in cases[b]]
        raw.append(wilcoxon([round(cases[a][c] - cases[b][c], 12) for c in common]).pvalue)
    holm = dict.fromkeys(pairs, 0.0)
    largest = 0.0
    for place, index in enumerate(np.argsort(raw)):
        largest = max(largest, min(1.0, (len(raw) - place) * raw[index]))
        holm[pairs[index]] = largest
    digits = 3 if metric == "Dice" else 2
    axis = "Dice" if metric == "Dice" else "HD95 [mm]"
    heads = [column.title for column in made_table.columns]
    rows = {words[0]: dict(zip(heads, words, strict=True)) for words in made_table.words()}
    for label in order:
        assert table.loc[label, "mean"] == pytest.approx(means[label])
        assert table.loc[label, "low"] < means[label] < table.loc[label, "high"]
        spread = np.std(list(cases[label].values()), ddof=1) / math.sqrt(len(cases[label]))
        assert table.loc[label, "high"] - table.loc[label, "low"] == pytest.approx(3.92 * spread, rel=0.3)
        assert table.loc[label, "difference %"] == pytest.approx(100 * (means[label] / means[best] - 1))
        assert table.loc[label, "cases"] == len(cases[label])
        assert rows[label][axis] == f"{means[label]:.{digits}f}"
        assert rows[label]["to the best [%]"] == signed(100 * (means[label] / means[best] - 1))
        if label != best:
            p = holm.get((label, best), holm.get((best, label)))
            assert table.loc[label, "p (Holm) against the best"] == pytest.approx(p)
            assert rows[label]["p against the best"] == p_value(p)
    head = summary(context)
    assert f"{means[best]:.{digits}f}" in head and f"{metric} of {best}" in head
    assert table.loc["control stock", "control"] and not table.loc["DINOv2 B", "control"]


def test_by_dataset_generalisation_and_cells(two: Results, report: tuple[Page, Path]) -> None:
    page, folder = report
    values = own_case_values(two)
    cell: dict[tuple[str, str, str], tuple[float, float]] = {}
    for (label, source), cases in values.items():
        by_run: dict[tuple[str, str], list[float]] = defaultdict(list)
        for (target, _), found in cases.items():
            for name, value in found.items():
                by_run[target, name].append(value)
        for target in {target for target, _ in by_run}:
            runs = [mean(v) for (t, _), v in by_run.items() if t == target]
            cell[label, source, target] = mean(runs), float(np.std(runs, ddof=1))
    datasets = ("Dataset905_MRI", "Dataset906_CT")
    table = read(folder, "by_dataset").set_index("label")
    rows = {row["Model"].removesuffix("control"): row for row in page.table("Model", *datasets)}
    general = read(folder, "generalisation").set_index("label")
    shown = {row["Model"].removesuffix("control"): row for row in page.table("Model", "Rank", "OV")}
    for label in table.index:
        own = []
        for dataset in datasets:
            value, sd = cell[label, dataset, dataset]
            own.append(value)
            assert table.loc[label, dataset] == pytest.approx(value)
            assert table.loc[label, f"{dataset} sd"] == pytest.approx(sd)
            assert rows[label][dataset] == f"{value:.3f} ± {sd:.3f}"
        off = [cell[label, a, b][0] for a, b in (datasets, datasets[::-1])]
        assert general.loc[label, "DS"] == pytest.approx(mean(own)) == pytest.approx(table.loc[label, "mean"])
        assert general.loc[label, "DG"] == pytest.approx(mean(off))
        assert general.loc[label, "OV"] == pytest.approx(mean(own + off))
        assert shown[label]["OV"] == f"{mean(own + off):.3f}"
        best = max(mean([cell[other, d, d][0] for d in datasets]) for other in table.index)
        assert general.loc[label, "DS diff %"] == pytest.approx(100 * (mean(own) / best - 1))
    cells = read(folder, "cells")
    for row in cells[cells["method"].isna()].to_dict("records"):
        value, sd = cell[row["label"], row["source"], row["target"]]
        assert (row["value"], row["sd"]) == pytest.approx((value, sd))
    for (label, source, target), (value, _) in cell.items():
        assert f"{value:.3f}" in page.text, (label, source, target)  # in the heat map


def test_adaptation(two: Results, report: tuple[Page, Path]) -> None:
    page, folder = report
    table = read(folder, "adaptation").set_index("model")
    runs = two.runs.set_index("run")
    dice = two.scores[two.scores["metric"] == "Dice"]

    def of(label: str, wanted: Any) -> float:
        """Mean over pairs, of means over runs, of means over cases, of means over classes."""
        pairs: dict[Any, list[float]] = defaultdict(list)
        for (name, target), rows in dice.groupby(["run", "target"]):
            entry = runs.loc[name]
            if entry["label"] == label and wanted(entry, target):
                value = mean(mean(group["value"]) for _, group in rows.groupby("case"))
                pairs[entry["source"] or entry["dataset"], target].append(value)
        return mean(mean(values) for values in pairs.values())

    rows = {row["Model"]: row for row in page.table("Model", "Method")}
    for label in ("STU-Net B", "DINOv2 B"):
        ds = of(label, lambda entry, target: entry["dataset"] == target)
        dg = of(label, lambda entry, target: entry["dataset"] != target)
        shift = of(f"{label}, selftraining", lambda entry, target: True)
        adapted = f"{label}, selftraining"
        assert table.loc[adapted, "method"] == "self-training"
        assert table.loc[adapted, ["DS", "DG", "shift"]].tolist() == pytest.approx([ds, dg, shift])
        assert table.loc[adapted, "loss %"] == pytest.approx(100 * (shift - ds) / ds)
        assert rows[adapted]["Target, adapted"] == f"{shift:.3f}"
        assert rows[adapted]["Loss [%]"] == signed(100 * (shift - ds) / ds)


def test_classes_and_metrics(two: Results, report: tuple[Page, Path]) -> None:
    page, folder = report
    plain = two.runs[two.runs["method"].isna()]
    scores = two.scores.merge(plain[["run", "label", "dataset"]], on="run")
    scores = scores[scores["target"] == scores["dataset"]]

    def value(metric: str, dataset: str, name: str, label: str) -> float:
        chosen = scores[(scores["metric"] == metric) & (scores["target"] == dataset) & (scores["class"] == name)]
        chosen = chosen[chosen["label"] == label]
        return mean(mean(group["value"]) for _, group in chosen.groupby("case"))

    classes = read(folder, "classes")
    assert len(classes) == 6
    for row, shown in zip(classes.to_dict("records"), page.table("Class", "Dataset", "Size group"), strict=True):
        share = two.size_shares[row["dataset"]][row["class"]]
        expected = "<1 %" if share < 0.01 else "1–5 %" if share < 0.05 else "5–15 %" if share < 0.15 else "≥15 %"
        assert row["size group"] == expected == shown["Size group"]
        for label in ("STU-Net B", "control stock"):
            assert row[label] == pytest.approx(value("Dice", row["dataset"], row["class"], label))
            assert shown[label] == f"{row[label]:.3f}"
    metrics = read(folder, "metrics")
    assert len(metrics) == 6 * 4
    for row in metrics.to_dict("records"):
        for metric in METRICS:
            assert row[metric] == pytest.approx(value(metric, row["dataset"], row["class"], row["label"]))
    shares = read(folder, "class_shares")
    for row in shares.to_dict("records"):
        assert row["share %"] == pytest.approx(100 * two.size_shares[row["dataset"]][row["class"]])


def test_cost_convergence_and_seconds(two: Results, report: tuple[Page, Path]) -> None:
    page, folder = report
    plain = two.runs[two.runs["method"].isna()]
    models = read(folder, "models").set_index("label")
    convergence = read(folder, "convergence").set_index("label")
    times = read(folder, "seconds").set_index("label")
    rows = {row["Model"].removesuffix("control"): row for row in page.table("Model", "Patch [voxels]")}
    for label, group in plain.groupby("label"):
        records = [two.records[name] for name in group["run"]]
        first = records[0]
        assert models.loc[label, "parameters"] == first.parameters
        assert rows[label]["Parameters [M]"] == millions(first.parameters)
        assert rows[label]["Trained [M]"] == millions(first.parameters_trained)
        assert rows[label]["Patch [voxels]"] == " × ".join(map(str, first.patch_size))
        samples = np.concatenate([np.tile([r.speed.mean - r.speed.sd, r.speed.mean + r.speed.sd], 50) for r in records])
        assert models.loc[label, "samples/s"] == pytest.approx(samples.mean())
        assert models.loc[label, "samples/s sd"] == pytest.approx(samples.std())
        assert rows[label]["Samples/s"] == f"{samples.mean():.2f} ± {samples.std():.2f}"
        assert models.loc[label, "waiting share"] == pytest.approx(first.speed.waiting_share)
        assert rows[label]["Memory [GiB]"] == f"{first.peak_memory / 2**30:.2f}"
        for dataset, part in group.groupby("dataset"):
            numbers = [two.records[name].convergence_iteration for name in part["run"]]
            assert convergence.loc[label, dataset] == pytest.approx(mean(n for n in numbers if n is not None))
        mine = two.times[two.times["run"].isin(two.runs.loc[two.runs["label"] == label, "run"])]
        for step in STEPS:
            assert times.loc[label, step] == pytest.approx(mine.loc[mine["step"] == step, "seconds"].mean())
        assert times.loc[label, "total"] == pytest.approx(times.loc[label, list(STEPS)].sum())
        assert times.loc[label, "cases"] == len(mine) / len(STEPS)


def test_pooling_of_anatomies() -> None:
    results = make_results(
        models=("A", "B"),
        controls=(),
        datasets=("Dataset901_A", "Dataset902_B", "Dataset903_C", "Dataset904_D", "Dataset905_E"),
        anatomies=("brain", "brain", "brain", "spine", "spine"),
        across=True,
        cases=2,
        folds=1,
        seeds=1,
        records=False,
        times=False,
    )
    sections = {pool: generalisation_section(Context(results, "Dice", pool)) for pool in ("anatomies", "datasets")}
    tables = {pool: {table.name: table.frame for table in section.tables} for pool, section in sections.items()}
    cells = tables["anatomies"]["cells"]
    anatomies, datasets = (tables[pool]["generalisation"].set_index("label") for pool in ("anatomies", "datasets"))
    for label in ("A", "B"):
        own = cells[cells["label"] == label]
        by_anatomy = [mean(own.loc[own["anatomy"] == anatomy, "value"]) for anatomy in ("brain", "spine")]
        assert anatomies.loc[label, "OV"] == pytest.approx(mean(by_anatomy))
        assert datasets.loc[label, "OV"] == pytest.approx(mean(own["value"])) != anatomies.loc[label, "OV"]


def test_page_is_whole_and_needs_nothing(report: tuple[Page, Path]) -> None:
    page, folder = report
    assert len(set(page.ids)) == len(page.ids)
    anchors = {value.removeprefix("#") for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert anchors <= set(page.ids) and {"ranking", "generalisation", "adaptation", "models"} <= anchors
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action") and tag != "a":
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert all(value for tag, name, value in page.attributes if (tag, name) in (("img", "alt"), ("svg", "aria-label")))
    assert page.html.count("<svg") == page.html.count('role="img"')
    assert len(page.html) < 1_000_000
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "tables"]


def test_claims_follow_the_tests() -> None:
    def says(**shape: Any) -> str:
        return claim(
            Context(make_results(models=("A", "B"), controls=(), records=False, times=False, **shape), "Dice")
        )[0]

    assert says(folds=1, seeds=1).startswith("No claim of superiority can be made: every model was trained once")
    assert says(cases=3).startswith("No claim of superiority can be made: the models share 3 tested patients")
    assert says(cases=20).startswith("A is better than each of the others")
    hidden = says(cases=7, spread=0.2, generator_seed=2)
    assert re.match(r"[AB] has the best mean, but no claim can be made that it is better than [AB]:", hidden), hidden


LONG = "DINOv2 ViT-g/14 with registers, HQHSAM, Rein + LoRA & <b>tags</b> $x_1$ größer `code` " * 2
SINGLE: dict[str, Any] = {"folds": 1, "seeds": 1, "cases": 2}
ODD: dict[str, dict[str, Any]] = {
    "one label, one case": {**SINGLE, "models": ("A",), "controls": (), "cases": 1, "classes": ("Läsion",)},
    "no records": {"records": False, "times": False, "cases": 2},
    "nothing defined": {"nan_share": 1.0, "cases": 2, "folds": 1},
    "long names": {**SINGLE, "models": (LONG, LONG + "二", "模型"), "controls": ("stock",), "across": True,
                   "datasets": (f"Dataset905_{'Überlang' * 9}", "Dataset906_短い")},
    "only controls": {"models": (), "controls": ("stock", "resenc"), "cases": 6, "folds": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=[] if place == 0 else pytest.mark.slow) for place, shape in enumerate(ODD)]
)
def test_odd_shapes(tmp_path: Path, shape: str) -> None:
    results = make_results(**ODD[shape])
    page, missing = made(tmp_path, results)
    assert "nan" not in page.text.lower().split() and "None" not in page.text.split()
    assert all(" ".join(sentence.replace("`", "").split()) in page.text for sentence in missing)
    for label in results.runs["label"].unique():
        assert " ".join(label.split()) in page.text
    assert "<b>tags" not in page.html and set(re.findall(r"<b>([^<]*)</b>", page.html)) <= {
        cell for table in page.tables for row in table for cell in row
    }


def test_nothing_scored_yet(tmp_path: Path) -> None:
    results = make_results(cases=2, records=False, times=False)
    page, missing = made(tmp_path, replace(results, scores=results.scores[:0], size_shares={}))
    assert "there are no scores yet" in page.text
    assert [s.split(":")[0] for s in missing][:2] == ["Ranking", "Generalisation"]
    with fails("trainings-none"):
        write_report(replace(results, runs=results.runs[:0]), tmp_path)
    with fails("metric-unknown", "F1"):
        write_report(results, tmp_path, metric="F1")


def test_published_numbers() -> None:
    results = make_results(models=("ours",), controls=(), datasets=("Dataset501_AortaSeg24",), cases=2, times=False)
    results.runs["model"], results.runs["adapter"], results.runs["head"] = "stunet_b", "full", None
    section = published_section(Context(replace(results, published="thesis_a"), "Dice"))
    own = mean(in_domain(results)["ours"].values())
    row = section.tables[0].words()[0]
    assert row[4].startswith(f"{own:.3f} ±") and row[5:] == ["0.760", f"{own - 0.76:+.3f}".replace("-", "−")]
    assert "master's thesis" in section.html().replace("&#x27;", "'")
    unknown = published_section(Context(replace(results, published="unknown"), "Dice"))
    assert "no published study 'unknown'" in unknown.missing[0] and not unknown.html()
    assert "are of Dice" in published_section(Context(replace(results, published="thesis_a"), "HD95")).missing[0]


@pytest.mark.parametrize("flat", [False, True])
def test_pictures(tmp_path: Path, flat: bool) -> None:
    results = make_results(
        models=("A", "B"), controls=("stock",), datasets=("Dataset905_MRI", "Dataset906_CT")[: 1 + (not flat)],
        across=not flat, adapted=() if flat else ("selftraining",), cases=2, folds=1, seeds=1, records=False,
        image_folder=tmp_path / "images", flat=flat,
    )  # fmt: skip
    results.files = results.files[results.files["target"] == "Dataset905_MRI"]
    picture = Picture(b"png", "features of A")
    section = cases_section(Context(results, "Dice", features={"A": (picture, picture)}))
    (tmp_path / "page.html").write_text(section.html(), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    values = in_domain(results)
    ranked = sorted(
        {case for _, case in values["A"] if case.startswith("MRI")},
        key=lambda case: -mean([values["A"]["Dataset905_MRI", case], values["B"]["Dataset905_MRI", case]]),
    )
    rows = [row for table in page.tables for row in table[1:] if row and row[0].startswith(("best: MRI", "worst: MRI"))]
    assert {row[0] for row in rows} == {f"best: {ranked[0]}", f"worst: {ranked[-1]}"}
    best = next(row for row in rows if row[0].startswith("best"))
    assert best[3] == f"Dice {values['A']['Dataset905_MRI', ranked[0]]:.3f}"
    heads = [table[0][1:] for table in page.tables if table[0][0] == ""]
    assert ["input", "truth", "A", "B", "control stock"] in heads and ["input", "features"] in heads
    across = ["input", "truth", "this dataset (DS)", "CT (DG)", "from CT, self-training"]
    assert (across in heads) == (not flat)
    assert (["truth", "A", "B", "control stock"] in heads) == (not flat)  # surfaces
    assert section.missing == []
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) >= 10 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_pictures_that_cannot_be_made(tmp_path: Path) -> None:
    results = make_results(models=("A",), controls=(), cases=1, folds=1, seeds=1, image_folder=tmp_path / "images")
    Path(results.files["prediction"].iloc[0]).write_bytes(b"no image")
    assert cases_section(Context(results, "Dice")).missing[0].startswith("Pictures of Dataset904_A: ")
    Path(results.files["prediction"].iloc[0]).unlink()
    assert "were not found" in cases_section(Context(results, "Dice")).missing[0]
    assert "--no-pictures" in cases_section(Context(results, "Dice", pictures=False)).missing[0]


def test_table_words_and_files(tmp_path: Path) -> None:
    frame = pd.DataFrame({"label": ["a|b", "c_d"], "x": [-0.1234, math.nan], "sd": [0.01, 0.02], "y": [1234.5, 2.0]})
    columns = [Column("label", "Name"), Column("x", "X", ".2f", sd="sd"), Column("y", "Y [%]", ",.0f", best="max")]
    table = Table("t", "a caption & more", frame, columns, ["c_d"])
    assert table.words() == [["a|b", "−0.12 ± 0.01", "1,234"], ["c_d", "–", "2"]]
    assert "<b>1,234</b>" in table.html() and 'data-value="-0.1234"' in table.html()
    table.write(tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), frame)
    assert r"a\|b" in (tmp_path / "t.md").read_text(encoding="utf-8")
    assert r"c\_d" in (tmp_path / "t.tex").read_text(encoding="utf-8")


def test_numbers_and_words() -> None:
    assert [signed(v) for v in (0.04, -0.04, 1.25, -3.0)] == ["0.0", "0.0", "+1.2", "−3.0"]
    assert [p_value(v) for v in (0.0001, 0.0123, 0.5, math.nan)] == ["< 0.001", "0.012", "0.50", "–"]
    assert [percent(v) for v in (0.0, 0.012, 0.5)] == ["0", "1.2", "50"]
    assert [millions(v) for v in (58.26e6, 470_000, 1200)] == ["58.26", "0.47", "0.0012"]
    assert [plural(n, noun) for n, noun in ((1, "case"), (2, "class"), (12345, "case"))] == [
        "1 case",
        "2 classes",
        "12\u202f345 cases",
    ]
    assert metric_style("HD95").axis == "HD95 [mm]" and not metric_style("HD95").higher
    assert breakable("Dataset905_<Name>") == "Dataset905_<wbr>&lt;Name&gt;" and breakable("a b") == "a b"
    grid = picture_grid(["x"], [("row", [None])])
    assert "–" in grid
    section = Section("n", "T")
    section.warn("use `this` <now>")
    assert "<code>this</code> &lt;now&gt;" in section.html() and Section("n", "T").html() == ""


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_results(models=("A", "B"), controls=("stock",), cases=6, folds=1, records=False, times=False)
    asked: dict[str, Any] = {}

    def collect_results(datasets: list[str], **options: Any) -> Results:
        asked.update(options, datasets=list(datasets))
        return results

    monkeypatch.setattr(collecting, "collect_results", collect_results)
    runner = CliRunner()
    out = tmp_path / "out"
    line = [
        "report",
        "-d",
        "501",
        "502",
        "-tr",
        "fm_trainer",
        "nnUNetTrainer",
        "-f",
        "0",
        "1",
        "-o",
        str(out),
        "--title",
        "Ä",
    ]
    done = runner.invoke(app, [*line, "--json", "--no-pictures"])
    assert done.exit_code == 0, done.output
    assert asked["datasets"] == ["501", "502"] and asked["trainers"] == ["fm_trainer", "nnUNetTrainer"]
    assert asked["folds"] == ["0", "1"] and asked["plans"] is None
    printed = json.loads(done.stdout)
    assert printed["page"] == str(out / "index.html") and printed["ranking"][0]["label"] == "A"
    assert "<h1>Ä</h1>" in (out / "index.html").read_text(encoding="utf-8")
    for wrong in ([], ["x", "-d", "1"], ["x", "-tr", "y"], ["-d", "1", "--pool", "x"], ["-d", "1", "--metric", "F1"]):
        assert runner.invoke(app, ["report", *wrong]).exit_code == 2, wrong
    assert runner.invoke(app, ["report", str(tmp_path)]).exit_code == 1


@needs_browser
def test_in_a_browser(report: tuple[Page, Path], tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_bytes((report[1] / "index.html").read_bytes())
    light, dark = findings(page), findings(page, width=390, dark=True)
    for seen in (light, dark):
        assert seen["scroll_width"] <= seen["width"], "the page scrolls sideways"
        assert seen["overlaps"] == seen["outside"] == [] and seen["empty_pictures"] == 0
        assert seen["height"] > 3000
    assert (light["width"], dark["width"]) == (1200, 390)
    assert brightness(light["background"]) > 200 > 80 > brightness(light["ink"])
    assert brightness(dark["background"]) < 60 < 200 < brightness(dark["ink"])
    assert brightness(light["axis"]) < 130 < 150 < brightness(dark["axis"])  # charts follow
    names = ["STU-Net B", "DINOv2 B", "control stockcontrol", "control scratchcontrol"]
    assert light["sorted"] == names  # two clicks on the head: the alphabet, backwards
    assert light["shown"] == ["Dataset905_MRI"] * 3


@needs_browser
def test_the_browser_sees_overlaps(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    texts = '<text x="10" y="40">one text</text><text x="30" y="42">another</text><text x="990" y="90">cut off</text>'
    page.write_text(f'<body><figure><svg width="1000" height="100">{texts}</svg></figure></body>', encoding="utf-8")
    seen = findings(page)
    assert seen["overlaps"] == [["one text", "another"]] and seen["outside"] == ["cut off"]
    page.write_text("<body><script>undefined_name()</script></body>", encoding="utf-8")
    with pytest.raises(AssertionError, match="undefined_name"):
        findings(page)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("shape", ["pictures", "many", "long names"])
def test_large_pages_in_a_browser(tmp_path: Path, shape: str) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "pictures": {"datasets": ("Dataset905_MRI", "Dataset906_CT"), "across": True, "adapted": ("selftraining",),
                     "image_folder": tmp_path / "images", "cases": 4},
        "many": {"models": [f"model number {i} with head" for i in range(18)], "folds": 1, "seeds": 1, "cases": 6,
                 "classes": [f"vertebra {i}" for i in range(30)], "image_folder": tmp_path / "images"},
        "long names": ODD["long names"] | {"image_folder": tmp_path / "images"},
    }  # fmt: skip
    write_report(make_results(**shapes[shape]), tmp_path)
    page = tmp_path / "index.html"
    assert page.stat().st_size < 6_000_000
    for width, dark in ((1200, False), (390, True)):
        seen = findings(page, width=width, dark=dark)
        assert seen["scroll_width"] <= seen["width"]
        assert seen["overlaps"] == seen["outside"] == [] and seen["empty_pictures"] == 0
    shot, pdf = tmp_path / "shot.png", tmp_path / "page.pdf"
    assert console(run(page, f"--screenshot={shot}", size=(1200, 4000))) == []
    assert console(run(page, f"--print-to-pdf={pdf}")) == []
    assert len(np.unique(np.asarray(Image.open(shot).convert("L")))) > 50
    assert pdf.read_bytes().startswith(b"%PDF") and 3 < pdf.read_bytes().count(b"/Type /Page\n") < 40


def brightness(colour: str) -> float:
    return float(np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]))
