"""Bars of each class's share of the labelled volume, with the limits of the size groups."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from nnunet_fm.reporting.figures.style import SERIES, SOFT, WIDTH_INCH, name_rows, new_figure, plain_names, styled

BORDERS = (1, 5, 15)
"""Limits of the size groups in percent."""


def class_shares_figure(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw a row per class from the smallest to the largest, and a bar per dataset, on a logarithmic axis.

    Args:
        shares: dataset -> class -> share of the labelled volume, from 0 to 1.
    """
    classes = list(dict.fromkeys(name for by_class in shares.values() for name in by_class))
    classes.sort(key=lambda name: sum(by_class.get(name, 0.0) for by_class in shares.values()), reverse=True)
    percent = {dataset: [100 * by_class.get(name, 0.0) for name in classes] for dataset, by_class in shares.items()}
    names = plain_names(list(shares))
    positive = [value for values in percent.values() for value in values if value > 0]
    lowest = min([*positive, 1.0]) / 3
    with styled():
        height = 0.24 if len(shares) == 1 else 0.13 * len(shares) + 0.1
        figure = new_figure(WIDTH_INCH, 0.95 + height * len(classes) + 0.2 * (len(shares) > 1))
        ax = figure.subplots()
        thick = 0.72 / len(shares)
        for number, (dataset, values) in enumerate(percent.items()):
            rows = [row - 0.36 + (number + 0.5) * thick for row in range(len(classes))]
            colour = SERIES[number % len(SERIES)]
            ax.barh(
                rows, [max(v - lowest, 0) for v in values], thick * 0.94, lowest, color=colour, label=names[dataset]
            )
            for row, value in zip(rows, values, strict=True):
                ax.text(
                    max(value, lowest) * 1.08, row, percent_text(value), va="center_baseline", fontsize=7.5, color=SOFT
                )
        ax.set_xscale("log")
        ax.set_xlim(lowest, 320)
        ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 5, 15, 50, 100) if tick >= lowest]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        for border in BORDERS:
            ax.axvline(border, color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=3)
        ax.grid(False)
        name_rows(ax, classes)
        ax.set_xlabel("share of the labelled volume [%]; dotted: borders of the size groups")
        if len(shares) > 1:
            figure.legend(loc="outside upper left", ncols=4)
    return figure


def percent_text(value: float) -> str:
    """A percentage with two significant digits below ten."""
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
