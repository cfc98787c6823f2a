"""Critical-difference diagram: models on an axis of average ranks; bars join those that do not differ."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from matplotlib.figure import Figure
from scikit_posthocs import critical_difference_diagram

from nnunet_fm.reporting.figures.style import INK, MODEL, SOFT, WIDTH_INCH, new_figure, shortened, styled


def critical_difference_figure(
    ranks: pd.Series[float], p_values: pd.DataFrame, controls: Collection[str] = (), alpha: float = 0.05
) -> Figure:
    """Draw Demšar's diagram (JMLR 7, 2006); 1 is the best rank.

    Args:
        ranks: label -> average rank over the cases.
        p_values: corrected p of each pair, labels by labels.
        controls: labels drawn in grey.
        alpha: pairs with a larger p are joined.
    """
    short = {name: shortened(name, 30) for name in ranks.index}
    if len(set(short.values())) < len(short):
        short = {name: name for name in ranks.index}
    colours = {short[name]: SOFT if name in controls else MODEL for name in ranks.index}
    names = [short[name] for name in ranks.index]
    with styled():
        figure = new_figure(WIDTH_INCH, 0.9 + 0.26 * ((len(ranks) + 1) // 2))
        ax = figure.subplots()
        critical_difference_diagram(
            pd.Series(ranks.to_numpy(), index=names),
            pd.DataFrame(p_values.loc[ranks.index, ranks.index].to_numpy(), index=names, columns=names),
            alpha=alpha,
            ax=ax,
            color_palette=colours,
            label_fmt_left="{label}\u2002{rank:.2f}\u2002",
            label_fmt_right="\u2002{rank:.2f}\u2002{label}",
            label_props={"fontsize": 9},
            crossbar_props={"color": INK, "linewidth": 3, "marker": None, "solid_capstyle": "round"},
            elbow_props={"linewidth": 1.1},
            marker_props={"s": 26, "linewidths": 0},
            text_h_margin=0.02,
        )
        ax.grid(False)
        ax.tick_params(axis="x", length=4, color=SOFT)
    return figure
