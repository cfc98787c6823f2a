"""Tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest

from nnunet_fm.reporting.tables import csv, latex, markdown, plus_minus

FRAME = pd.DataFrame(
    {
        "model": ["dinov2_b", "a|b & 50 %", "Ä_#~^\\{}$"],
        "Dice ≥ 15 %": [0.1234567890123, 0.88888, 0.8889],
        "HD95": [3.0, np.nan, 1.5],
        "runs": [1, 2, 3],
    },
    index=[4, 4, 4],
)
FORMATS = {"Dice ≥ 15 %": ".3f", "HD95": ".1f"}


def test_csv_keeps_every_digit() -> None:
    again = pd.read_csv(io.StringIO(csv(FRAME)))
    pd.testing.assert_frame_equal(again, FRAME.reset_index(drop=True))


def test_markdown() -> None:
    text = markdown(FRAME, FORMATS, {"Dice ≥ 15 %": "max", "HD95": "min"}, caption="Table of models")
    assert text.splitlines() == [
        "Table of models",
        "",
        "| model | Dice ≥ 15 % | HD95 | runs |",
        "| --- | ---: | ---: | ---: |",
        "| dinov2_b | 0.123 | 3.0 | 1 |",
        r"| a\|b & 50 % | **0.889** | – | 2 |",  # reads as the best
        r"| Ä_#~^\\{}$ | **0.889** | **1.5** | 3 |",
    ]


def test_latex() -> None:
    text = latex(FRAME, FORMATS, {"HD95": "min"}, caption="Dice & 100 % of HD95", label="tab:models")
    lines = text.splitlines()
    assert lines[0] == r"\begin{table}[tb]" and lines[-1] == r"\end{table}"
    assert r"\caption{Dice \& 100 \% of HD95}" in lines and r"\label{tab:models}" in lines
    assert r"\begin{tabular}{lrrr}" in lines
    assert [line for line in lines if line in (r"\toprule", r"\midrule", r"\bottomrule")] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    assert r"model & Dice $\geq$ 15 \% & HD95 & runs \\" in lines
    assert r"dinov2\_b & 0.123 & 3.0 & 1 \\" in lines
    assert r"a|b \& 50 \% & 0.889 & -- & 2 \\" in lines
    assert r"Ä\_\#\textasciitilde \textasciicircum \textbackslash \{\}\$ & 0.889 & \textbf{1.5} & 3 \\" in lines


def test_captions_and_labels_are_optional() -> None:
    assert markdown(FRAME).splitlines()[3].endswith("| 0.889 | – | 2 |")
    assert r"\caption" not in latex(FRAME) and r"\label" not in latex(FRAME)


def test_little_to_show() -> None:
    empty = FRAME.iloc[:0]
    assert len(markdown(empty).splitlines()) == 2
    assert r"\bottomrule" in latex(empty, FORMATS, {"HD95": "max"})
    nothing = pd.DataFrame({"a": [math.nan, math.nan]})
    assert "**" not in markdown(nothing, best={"a": "max"})
    assert "–" in markdown(nothing)


def test_columns_of_one_name_and_ranks_without_value() -> None:
    frame = pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]).assign(rank=pd.array([1, None], dtype="Int64"))
    assert markdown(frame).splitlines()[-1] == "| 3 | 4 | – |"
    assert r"3 & 4 & -- \\" in latex(frame)


@pytest.mark.parametrize(
    ("mean", "sd", "text"), [(0.12345, 0.05, "0.123 ± 0.050"), (0.5, math.nan, "0.500"), (math.nan, 1.0, "–")]
)
def test_plus_minus(mean: float, sd: float, text: str) -> None:
    assert plus_minus(mean, sd) == text
