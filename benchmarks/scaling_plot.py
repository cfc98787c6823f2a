"""The picture of `benchmarks.scaling`: small multiples, a row per kind of work, a column per property of the case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INK = "#7d8590"
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#2f81f7", "marker": "o", "label": "nnunet-fm"},
    "opponent": {"color": "#d9822b", "marker": "s", "linestyle": "--", "label": "stock nnU-Net"},
}
"""Colours that stand out from white and from black; the lines differ in form, too."""
QUANTITIES = {"cpu": ("CPU time, s", 1.0, 5e-3), "memory": ("memory, MB", 1e-6, 1.0)}
"""Title, factor, and what is drawn for less."""
PROPERTIES = {
    "slices": "slices",
    "classes": "classes",
    "channels": "channels",
    "pixels": "pixels of a slice",
}


def plot(found: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw times above and memory below, both axes logarithmic, with a thin line of slope 1."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    subjects = list(dict.fromkeys(line["subject"] for line in found))
    colours = {f"{part}.color": INK for part in ("xtick", "ytick", "text")}
    style = {**colours, "axes.edgecolor": INK, "axes.labelcolor": INK, "font.size": 7, "svg.fonttype": "none",
             "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
             "svg.hashsalt": "scaling"}  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(9, 2 * (0.5 + 1.25 * len(subjects))), layout="constrained")
        parts = figure.subfigures(2, 1)
        for part, (quantity, (title, factor, least)) in zip(parts, QUANTITIES.items(), strict=True):
            part.suptitle(title, fontsize=10, color=INK)
            grid = part.subplots(len(subjects), len(PROPERTIES), squeeze=False)
            for row, subject in zip(grid, subjects, strict=True):
                for axes, name in zip(row, PROPERTIES, strict=True):
                    of_panel = [line for line in found if (line["subject"], line["axis"]) == (subject, name)]
                    _panel(axes, of_panel, quantity, factor, least)
                row[0].set_ylabel(subject)
            for axes, title in zip(grid[0], PROPERTIES.values(), strict=True):
                axes.set_title(title, fontsize=8)
        handles = {h.get_label(): h for axes in parts[0].axes for h in axes.get_legend_handles_labels()[0]}
        figure.legend(handles=list(handles.values()), loc="upper right", frameon=False, ncols=3)
        figure.savefig(file, transparent=True, dpi=100, metadata={"Date": None} if file.suffix == ".svg" else None)
    if file.suffix == ".png":  # few colours: a quarter of the bytes
        from PIL import Image

        with Image.open(file) as picture:
            small = picture.quantize(64, method=Image.Quantize.FASTOCTREE)
        small.save(file, optimize=True)


def _panel(axes: Any, lines: Sequence[Mapping[str, Any]], quantity: str, factor: float, least: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    lines = [line for line in lines if line["points"]]
    if not lines:
        axes.set_axis_off()
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    for line in lines:
        values = [point["value"] for point in line["points"]]
        costs = [max(point[quantity] * factor, least) for point in line["points"]]
        axes.plot(values, costs, markersize=3, linewidth=1.3, **STYLES[line["side"]])
        if line["side"] == "ours":
            top = [costs[-1] * value / values[-1] for value in values]
            axes.plot(values, top, color=INK, linewidth=0.6, linestyle=":", label="in proportion", zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, max(high, 12 * low) * 1.3)
    axes.spines[["top", "right"]].set_visible(False)
    ticks = sorted({point["value"] for line in lines for point in line["points"]})
    axes.set_xticks(ticks, [f"{t:,}" if t < 1000 else f"{t / 1000:.0f}k" for t in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
