"""The page of a demonstration."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from nnunet_fm.reporting.page import learning_curve, write_page
from nnunet_fm.reporting.training_log import parse_log
from tests.helpers.training_logs import LOG


def test_page_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    scores = pd.DataFrame(
        [("case<1>", "organ", "Dice", 0.9), ("case<1>", "tumour", "Dice", float("nan")), ("b", "organ", "Dice", 0.8)],
        columns=["case", "class", "metric", "value"],
    )
    log = parse_log(LOG.format(epoch=0, loss=-0.5, seconds=12.5))
    write_page(
        tmp_path / "page.html",
        title="A & B",
        scores=scores,
        log=log,
        seconds={"plan": 1.25, "train": 20.0},
        commands=["nnUNetv2_train 1 2d 0 && echo '<done>'"],
        overlays=[("the first", learning_curve(log))],
        facts={"Cores": "2"},
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A &amp; B" in page and "case&lt;1&gt;" in page and "&lt;done&gt;" in page
    assert "<td>0.900</td><td>–</td>" in page and ">0.850<" in page and "2 unseen cases" in page
    assert "<td>20.0</td>" in page and "<td>21.2</td>" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script|\$[a-z]", page), "must need nothing from elsewhere"


def test_page_without_a_finished_epoch(tmp_path: Path) -> None:
    scores = pd.DataFrame([("a", "organ", "Dice", 1.0)], columns=["case", "class", "metric", "value"])
    page = tmp_path / "page.html"
    write_page(page, title="t", scores=scores, log=parse_log(""), seconds={}, commands=[], overlays=[], facts={})
    assert "No epoch was finished" in page.read_text(encoding="utf-8")
    assert "1 unseen case<" in page.read_text(encoding="utf-8")
