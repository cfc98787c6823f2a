"""Box plots of a metric by size group and model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd
from matplotlib.figure import Figure

from nnunet_fm.metrics.scores_table import SIZE_GROUPS
from nnunet_fm.reporting.figures.style import (
    CARD,
    CONTROL,
    INK,
    MODEL,
    WIDTH_INCH,
    name_rows,
    new_figure,
    styled,
)


def size_groups_figure(scores: pd.DataFrame, labels: Sequence[str], controls: Collection[str], axis: str) -> Figure:
    """Draw a panel per size group with scores, and a row per model.

    A box spans the quartiles, its line is the median, whiskers reach 1.5 times the box, points lie beyond.

    Args:
        scores: columns ``label``, ``size_group`` and ``value``, one row per run, case and class.
        labels: order of the rows.
        controls: labels drawn in grey.
        axis: metric and unit.
    """
    scores = scores.dropna(subset=["value"])
    groups = [group for group in SIZE_GROUPS if (scores["size_group"] == group).any()]
    with styled():
        figure = new_figure(WIDTH_INCH, 1.0 + 0.29 * len(labels))
        panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for ax, group in zip(panels, groups, strict=True):
            inside = scores[scores["size_group"] == group]
            for row, label in enumerate(labels):
                values = inside.loc[inside["label"] == label, "value"].to_numpy()
                if not len(values):
                    continue
                colour = CONTROL if label in controls else MODEL
                ax.boxplot(
                    values,
                    positions=[row],
                    orientation="horizontal",
                    widths=0.58,
                    patch_artist=True,
                    manage_ticks=False,
                    boxprops={"facecolor": colour, "edgecolor": colour, "linewidth": 1},
                    medianprops={"color": CARD, "linewidth": 2, "solid_capstyle": "butt"},
                    whiskerprops={"color": colour, "linewidth": 1.1},
                    capprops={"color": colour, "linewidth": 1.1},
                    flierprops={"marker": "o", "markersize": 2.4, "markerfacecolor": colour, "markeredgewidth": 0,
                                "alpha": 0.55},
                )  # fmt: skip
            ax.set_title(group, color=INK)
            ax.grid(False, axis="y")
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.set_xlabel(axis)
        name_rows(panels[0], labels, list(controls))  # the other panels share its rows
    return figure
