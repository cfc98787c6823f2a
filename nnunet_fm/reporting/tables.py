"""Convert data frames to CSV, Markdown or LaTeX, with formatted numbers and the best of a column in bold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

Best = Literal["max", "min"]

MISSING = "–"
FLOAT = ".3f"
"""Default format of floating point numbers."""

# Characters that pandas does not escape and old LaTeX does not know.
_LATEX = {"–": "--", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "∞": r"$\infty$"}
_LATEX |= {"−": "$-$", "σ": r"$\sigma$", "α": r"$\alpha$", "μ": r"$\mu$"}


def plus_minus(mean: float, sd: float, spec: str = ".3f") -> str:
    """Format ``mean ± sd``; only the mean if sd is NaN, a dash if the mean is."""
    if math.isnan(mean):
        return MISSING
    return f"{mean:{spec}}" if math.isnan(sd) else f"{mean:{spec}} ± {sd:{spec}}"


def csv(frame: pd.DataFrame) -> str:
    """Convert to comma-separated values with all digits."""
    return frame.to_csv(index=False, lineterminator="\n")


def markdown(
    frame: pd.DataFrame,
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, Best] | None = None,
    caption: str = "",
) -> str:
    """Convert to a Markdown table: numbers aligned right, the caption above.

    Args:
        frame: table; its index is left out.
        formats: column -> format of its numbers, such as ``.2f`` (default `FLOAT`); NaN is a dash.
        best: columns whose largest or smallest value is bold, with all of equal text.
        caption: one line of text.
    """
    texts, bold = _texts(frame, formats or {}), _best(frame, formats or {}, best or {})
    texts = texts.apply(lambda column: column.str.replace("\\", "\\\\").str.replace("|", "\\|").str.replace("\n", " "))
    texts = texts.where(~bold, "**" + texts + "**")
    rules = ["---:" if pd.api.types.is_numeric_dtype(frame[column]) else "---" for column in frame]
    header = [str(column).replace("|", "\\|") for column in frame]
    lines = ["| " + " | ".join(row) + " |" for row in [header, rules, *texts.itertuples(index=False, name=None)]]
    return "\n".join([caption, ""] * bool(caption) + lines) + "\n"


def latex(
    frame: pd.DataFrame,
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, Best] | None = None,
    caption: str = "",
    label: str = "",
) -> str:
    """Convert to a LaTeX ``table`` with rules of the package ``booktabs``; all text is escaped.

    Args:
        frame: table; its index is left out.
        formats: column -> format of its numbers, such as ``.2f`` (default `FLOAT`); NaN is a dash.
        best: columns whose largest or smallest value is bold, with all of equal text.
        caption: caption, which is escaped.
        label: label for ``\\ref``, which is not escaped.
    """
    texts, bold = _texts(frame, formats or {}), _best(frame, formats or {}, best or {})
    styles = bold.map(lambda yes: "textbf:--rwrap" if yes else "")
    # Styler needs unique names of rows and columns.
    columns = range(len(frame.columns))
    texts = texts.set_axis(columns, axis=1)
    styler = texts.style.format(escape="latex").apply(lambda _: styles.set_axis(columns, axis=1), axis=None)
    styler = styler.relabel_index([_escape(str(column)) for column in frame], axis=1).hide(axis="index")
    alignment = "".join("r" if pd.api.types.is_numeric_dtype(frame[column]) else "l" for column in frame)
    text = styler.to_latex(
        column_format=alignment,
        hrules=True,
        position="tb",
        position_float="centering",
        caption=_escape(caption) or None,
        label=label or None,
    )
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return text


def _texts(frame: pd.DataFrame, formats: Mapping[str, str]) -> pd.DataFrame:
    """Convert every entry to text."""

    def text(value: Any, spec: str) -> str:
        if pd.isna(value):
            return MISSING
        return (
            str(value) if isinstance(value, str) else format(value, spec or (FLOAT if isinstance(value, float) else ""))
        )

    columns = {
        number: [text(value, formats.get(str(column), "")) for value in frame.iloc[:, number]]
        for number, column in enumerate(frame.columns)
    }
    return pd.DataFrame(columns, dtype=object).set_axis(frame.columns, axis=1)


def _best(frame: pd.DataFrame, formats: Mapping[str, str], best: Mapping[str, Best]) -> pd.DataFrame:
    """True for the best value of a column and all of equal text."""
    bold = pd.DataFrame(False, index=range(len(frame)), columns=frame.columns)
    texts = _texts(frame, formats)
    for column, direction in best.items():
        values = frame[column].reset_index(drop=True)
        if values.notna().any():
            position = values.argmax() if direction == "max" else values.argmin()
            bold[column] = texts[column] == texts[column].iloc[position]
    return bold


def _escape(text: str) -> str:
    """Escape LaTeX's special characters like pandas does in the entries."""
    marks = {"\\": r"\textbackslash ", "~": r"\textasciitilde ", "^": r"\textasciicircum "}
    return "".join(marks.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
