"""Models ordered by their score: the mean, its bootstrap interval and every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from nnunet_fm.reporting.figures.style import (
    CARD,
    CONTROL,
    INK,
    MODEL,
    SOFT,
    WIDTH_INCH,
    name_rows,
    new_figure,
    styled,
)


def ranking_figure(table: pd.DataFrame, runs: Mapping[str, Sequence[float]], axis: str) -> Figure:
    """Draw a row per model: a bar for the interval, a dot for the mean, small dots for the runs.

    Args:
        table: rows in their order, columns ``label``, ``control`` (bool), ``mean``, ``low`` and ``high``; the
            interval may be NaN.
        runs: scores of the runs by label.
        axis: metric and unit.
    """
    names = list(table["label"])
    with styled():
        figure = new_figure(WIDTH_INCH, 0.75 + 0.3 * len(names))
        ax = figure.subplots()
        columns = (table[name].tolist() for name in ("label", "control", "mean", "low", "high"))
        for row, (label, control, mean, low, high) in enumerate(zip(*columns, strict=True)):
            colour = CONTROL if control else MODEL
            values = runs.get(label, ())
            ax.plot([low, high], [row, row], color=colour, linewidth=6, alpha=0.3)
            if len(values) > 1:
                ax.scatter(values, [row] * len(values), s=9, color=SOFT, alpha=0.75, linewidths=0, zorder=3)
            face = CARD if control else colour
            ax.scatter([mean], [row], s=42, color=face, edgecolors=colour, linewidths=1.6, zorder=4)
        best = table["mean"].iloc[0] if len(table) else float("nan")
        if pd.notna(best):
            ax.axvline(best, color=INK, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        name_rows(ax, names, list(table.loc[table["control"], "label"]))
        ax.set_xlabel(axis)
    return figure
