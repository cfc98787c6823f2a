"""Score against a cost: one named point per model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nnunet_fm.reporting.figures.style import (
    CARD,
    CONTROL,
    INK,
    LETTER_INCH,
    MODEL,
    SOFT,
    WIDTH_INCH,
    new_figure,
    shortened,
    styled,
    thousands,
)

MOST_NAMES = 16
"""Largest number of points with names; more points have their ranks, because names would overlap."""


def scatter_figure(panels: Sequence[tuple[str, pd.DataFrame]], axis: str) -> Figure:
    """Draw a panel per cost on a logarithmic axis, all with the same score on the vertical axis.

    Args:
        panels: (cost and unit, its points: columns ``label``, ``rank``, ``control``, ``x`` and ``y``).
        axis: metric and unit.
    """
    with styled():
        figure = new_figure(0.5 * WIDTH_INCH * len(panels), 3.9)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for number, (ax, (cost, points)) in enumerate(zip(axes, panels, strict=True)):
            colours = [CONTROL if control else MODEL for control in points["control"]]
            faces = [CARD if control else MODEL for control in points["control"]]
            ax.scatter(points["x"], points["y"], s=44, c=faces, edgecolors=colours, linewidths=1.6, zorder=3)
            _limits(ax, points)
            ax.set_xlabel(cost)
            if number == 0:
                ax.set_ylabel(axis, rotation_mode="anchor")
        figure.draw_without_rendering()  # labels are placed in pixels, which the layout fixes
        figure.set_layout_engine("none")
        for ax, (_, points) in zip(axes, panels, strict=True):
            _name_points(ax, points, by_rank=len(points) > MOST_NAMES)
    return figure


def _limits(ax: Axes, points: pd.DataFrame) -> None:
    """Set a logarithmic axis with numbers like 500k and some room around the points."""
    low, high = points["x"].min(), points["x"].max()
    margin = max((high / low) ** 0.12, 1.4)
    ax.set_xscale("log")
    ax.set_xlim(low / margin, high * margin)
    decades = np.log10(high / low * margin**2)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(thousands))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    span = points["y"].max() - points["y"].min() or 0.02
    ax.set_ylim(points["y"].min() - 0.14 * span, points["y"].max() + 0.14 * span)


def _name_points(ax: Axes, points: pd.DataFrame, *, by_rank: bool) -> None:
    """Name each point at the first place where the name stays in the panel and touches nothing."""
    dots = ax.transData.transform(points[["x", "y"]].to_numpy(float))
    pixels = ax.figure.dpi  # per inch
    frame = ax.get_window_extent()
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    height = 0.15 * pixels
    columns = (points[column].tolist() for column in ("label", "rank", "control", "x", "y"))
    for (x, y), (label, rank, control, *point) in sorted(
        zip(dots.tolist(), zip(*columns, strict=True), strict=True), key=lambda pair: -pair[0][1]
    ):
        name = str(rank) if by_rank else shortened(label, 30)
        width = (LETTER_INCH * len(name) + 0.04) * pixels
        left, bottom = _free_place(x, y, width, height, taken, (frame.x0, frame.y0, frame.x1, frame.y1))
        taken.append((left, bottom, left + width, bottom + height))
        middle = left + width / 2
        far = abs(middle - x) > width / 2 + 16 or abs(bottom + height / 2 - y) > 18
        across, up = ax.transData.inverted().transform((middle, bottom + height / 2))
        if far:
            ax.plot([point[0], across], [point[1], up], color=SOFT, linewidth=0.5, zorder=1)
        side = "left" if left > x else "right" if left + width < x else "center"  # letters may be narrower than assumed
        edge = {"left": left, "right": left + width, "center": middle}[side]
        start, up = ax.transData.inverted().transform((edge, bottom + height / 2))
        ax.text(start, up, name, ha=side, va="center_baseline", fontsize=8, color=SOFT if control else INK)


Box = tuple[float, float, float, float]


def _free_place(
    x: float, y: float, width: float, height: float, taken: Sequence[Box], frame: Box
) -> tuple[float, float]:
    """Lower left corner of the first free box near a point; of the least overlapping one if none is free."""
    places = [
        (x + sign * 8 + (0 if sign > 0 else -width), y - height / 2 + shift * height)
        for shift in (0, 0.6, -0.6)
        for sign in (1, -1)
    ]
    places += [
        (x - width / 2 + side * width / 2, y - height / 2 + shift * height)
        for shift in (0.95, -0.95, 1.6, -1.6, 2.4, -2.4, 3.2, -3.2, 4, -4)
        for side in (0, 1, -1)
    ]

    def overlap(place: tuple[float, float]) -> float:
        left, bottom = place
        box = (left, bottom, left + width, bottom + height)
        outside = max(0, frame[0] - box[0]) + max(0, box[2] - frame[2]) + max(0, box[3] - frame[3])
        outside += max(0, frame[1] - box[1])
        return outside * height + sum(_common_area(box, other) for other in taken)

    return next((place for place in places if overlap(place) == 0), min(places, key=overlap))


def _common_area(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
