"""Small multiples of learning curves: a panel per model, a colour per dataset, the baseline dotted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nnunet_fm.reporting.figures.style import (
    SERIES,
    SOFT,
    WIDTH_INCH,
    new_figure,
    plain_names,
    shortened,
    styled,
    thousands,
)

Curve = pd.DataFrame
"""One training: columns ``iteration`` and ``value``."""


def learning_curves_figure(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], baseline: str | None, axis: str
) -> Figure:
    """Draw single trainings as thin lines and the mean of several as a thick one.

    Args:
        curves: label -> dataset -> its trainings.
        baseline: label whose mean curves are dotted in all other panels; it has a panel only without other labels.
        axis: metric and unit.
    """
    labels = [label for label in curves if label != baseline] or list(curves)
    datasets = list(dict.fromkeys(dataset for by_dataset in curves.values() for dataset in by_dataset))
    names = plain_names(datasets)
    columns = min(3, len(labels))
    rows = math.ceil(len(labels) / columns)
    with styled():
        figure = new_figure(WIDTH_INCH if columns > 1 else 0.6 * WIDTH_INCH, 0.55 + 2.1 * rows, gap=0.09)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for ax in panels.flat[len(labels) :]:
            ax.set_visible(False)
        for number, (ax, label) in enumerate(zip(panels.flat, labels, strict=False)):
            for dataset, trainings in curves[label].items():
                _draw(ax, trainings, SERIES[datasets.index(dataset) % len(SERIES)])
            if baseline is not None and label != baseline:
                for dataset in curves[label]:
                    mean = mean_curve(curves[baseline].get(dataset, ()))
                    colour = SERIES[datasets.index(dataset) % len(SERIES)]
                    ax.plot(mean["iteration"], mean["value"], color=colour, linewidth=1.5, linestyle=(0, (1, 1.8)))
            ax.set_title(shortened(label, 40))
            ax.set_xlim(left=0)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.xaxis.set_major_formatter(FuncFormatter(thousands))
            if number >= len(labels) - columns:
                ax.set_xlabel("iteration")
            if number % columns == 0:
                ax.set_ylabel(axis, rotation_mode="anchor")
        handles = [
            panels[0, 0].plot([], [], color=SERIES[i % len(SERIES)], linewidth=2, label=names[dataset])[0]
            for i, dataset in enumerate(datasets)
        ]
        if baseline is not None and len(curves) > 1:
            name = f"{shortened(baseline)} (baseline)"
            handles += panels[0, 0].plot([], [], color=SOFT, linewidth=1.5, linestyle=(0, (1, 1.8)), label=name)
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def mean_curve(trainings: Sequence[Curve]) -> Curve:
    """Mean of trainings on the union of their iterations, up to the end of the shortest; empty without trainings."""
    trainings = [curve.dropna() for curve in trainings]
    trainings = [curve for curve in trainings if len(curve)]
    if not trainings:
        return pd.DataFrame({"iteration": [], "value": []})
    end = min(curve["iteration"].max() for curve in trainings)
    start = max(curve["iteration"].min() for curve in trainings)
    grid = np.unique(np.concatenate([curve["iteration"].to_numpy() for curve in trainings]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = [np.interp(grid, curve["iteration"], curve["value"]) for curve in trainings]
    return pd.DataFrame({"iteration": grid, "value": np.mean(values, axis=0)}) if len(grid) else trainings[0]


def _draw(ax: Axes, trainings: Sequence[Curve], colour: str) -> None:
    several = len(trainings) > 1
    for curve in trainings:
        marker = "o" if len(curve) < 3 else None
        ax.plot(
            curve["iteration"], curve["value"], color=colour, linewidth=0.8 if several else 1.7,
            alpha=0.4 if several else 1, marker=marker, markersize=3,
        )  # fmt: skip
    if several:
        mean = mean_curve(trainings)
        ax.plot(mean["iteration"], mean["value"], color=colour, linewidth=2)
