"""Heat maps of source by target: scores of a model of one dataset on another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nnunet_fm.reporting.figures.style import (
    INK,
    LETTER_INCH,
    MODEL,
    SOFT,
    WIDTH_INCH,
    new_figure,
    plain_names,
    shortened,
    styled,
)

_PALEST, _STRONGEST = 0.05, 0.75  # opacities with which the text is readable on every cell in both schemes


def heatmap_figure(
    matrices: Mapping[str, pd.DataFrame], text: Callable[[float], str], *, higher: bool = True
) -> Figure:
    """Draw a panel per model; darker is better; cells of the training's own dataset have a frame.

    Args:
        matrices: label -> sources (rows) by targets (columns); NaN if not tested.
        text: format of a number.
        higher: whether higher numbers are better.
    """
    numbers = pd.concat([matrix.stack() for matrix in matrices.values()])
    low, high = (numbers.min(), numbers.max()) if higher else (numbers.max(), numbers.min())
    sources = max(len(matrix) for matrix in matrices.values())
    targets = max(len(matrix.columns) for matrix in matrices.values())
    names = plain_names(list(dict.fromkeys(n for m in matrices.values() for n in [*m.index, *m.columns])))
    names = {name: shortened(plain, 22) for name, plain in names.items()}
    letter = LETTER_INCH * 8 / 9
    longest = letter * max(map(len, names.values()))
    width = max(0.66, longest + 0.12) * targets + longest + 0.35
    rows = math.ceil(len(matrices) / max(1, int((WIDTH_INCH + 0.3) / width)))
    columns = math.ceil(len(matrices) / rows)
    height = 0.4 * sources + 0.85
    with styled():
        figure = new_figure(width * columns, height * rows, gap=0.07)
        panels = figure.subplots(rows, columns, squeeze=False)
        for ax in panels.flat[len(matrices) :]:
            ax.set_visible(False)
        for ax, (label, matrix) in zip(panels.flat, matrices.items(), strict=False):
            for row, source in enumerate(matrix.index):
                for column, target in enumerate(matrix.columns):
                    value = matrix.loc[source, target]
                    share = 0.5 if high == low else (value - low) / (high - low)
                    opacity = 0.0 if pd.isna(value) else _PALEST + (_STRONGEST - _PALEST) * share
                    ax.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, color=MODEL, alpha=opacity, lw=0))
                    if source == target:
                        frame = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=INK, lw=1.2)
                        ax.add_patch(frame)
                    words = "–" if pd.isna(value) else text(value)
                    ax.text(column, row, words, ha="center", va="center_baseline", fontsize=8.5, color=INK)
            ax.set_xticks(range(len(matrix.columns)), [names[name] for name in matrix.columns])
            ax.set_yticks(range(len(matrix.index)), [names[name] for name in matrix.index])
            ax.set(xlim=(-0.5, len(matrix.columns) - 0.5), ylim=(len(matrix.index) - 0.5, -0.5))
            ax.tick_params(length=0, labelsize=8, labelcolor=SOFT)
            ax.grid(False)
            ax.spines[:].set_visible(False)
            ax.set_title(shortened(label, 40), color=INK)
    return figure
