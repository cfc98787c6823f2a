"""Horizontal bars by model: grouped by dataset, or stacked from the steps of one case."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nnunet_fm.reporting.figures.style import (
    CARD,
    CONTROL,
    MODEL,
    SERIES,
    SOFT,
    WIDTH_INCH,
    name_rows,
    new_figure,
    plain_names,
    styled,
    thousands,
)


def grouped_bars_figure(
    table: pd.DataFrame, axis: str, controls: Sequence[str] = (), text: Callable[[float], str] = thousands
) -> Figure:
    """Draw a row per model with a bar and its number per column; NaN has no bar.

    Args:
        table: labels by groups, such as datasets.
        axis: quantity and unit.
        controls: labels drawn in grey.
        text: format of the number at a bar's end.
    """
    groups = [str(group) for group in table.columns]
    names = plain_names(groups)
    with styled():
        figure = _figure(table, max(0.3, 0.17 * len(groups) + 0.1), legend=len(groups) > 1)
        ax = figure.subplots()
        thick = 0.74 / len(groups)
        largest = float(np.nanmax(table.to_numpy(float)))
        for number, group in enumerate(groups):
            rows = [row - 0.37 + (number + 0.5) * thick for row in range(len(table))]
            values = table[group].to_numpy(float)
            colours = [SERIES[number % len(SERIES)]] * len(table)
            if len(groups) == 1:
                colours = [CONTROL if str(label) in controls else MODEL for label in table.index]
            ax.barh(rows, values, thick * 0.92, color=colours, label=names[group])
            for row, value in zip(rows, values.tolist(), strict=True):
                missing = math.isnan(value)
                place = 0.012 * largest + (0 if missing else value)
                words = "–" if missing else text(value)
                ax.text(place, row, words, va="center_baseline", fontsize=7.5, color=SOFT)
        ax.set_xlim(0, 1.07 * largest if largest > 0 else 1)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.xaxis.set_major_formatter(FuncFormatter(thousands))
        name_rows(ax, [str(name) for name in table.index], controls)
        ax.set_xlabel(axis)
        if len(groups) > 1:
            figure.legend(loc="outside upper left", ncols=4)
    return figure


def stacked_bars_figure(table: pd.DataFrame, axis: str, controls: Sequence[str] = ()) -> Figure:
    """Draw a row per model with its columns stacked and their sum at the end.

    Args:
        table: labels by parts, such as the steps of a prediction.
        axis: quantity and unit.
        controls: labels drawn in grey.
    """
    with styled():
        figure = _figure(table, 0.32, legend=True)
        ax = figure.subplots()
        left = pd.Series(0.0, index=table.index)
        for number, part in enumerate(table.columns):
            values = table[part].fillna(0)
            ax.barh(range(len(table)), values, 0.66, left, color=SERIES[number % len(SERIES)],
                    edgecolor=CARD, linewidth=0.6, label=str(part))  # fmt: skip
            left += values
        longest = float(left.max())
        for row, total in enumerate(left.tolist()):
            ax.text(total + 0.012 * longest, row, f"{total:.2f}", va="center_baseline", fontsize=8, color=SOFT)
        ax.set_xlim(0, 1.07 * longest or 1)
        name_rows(ax, [str(name) for name in table.index], controls)
        ax.set_xlabel(axis)
        figure.legend(loc="outside upper left", ncols=len(table.columns))
    return figure


def _figure(table: pd.DataFrame, row_inch: float, *, legend: bool) -> Figure:
    return new_figure(WIDTH_INCH, 0.8 + row_inch * len(table) + (0.25 if legend else 0))
