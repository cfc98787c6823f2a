"""Common style of all charts, and their SVG with colours of the page's light or dark scheme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, SOFT, LINE, CARD = "#1c2330", "#5b6675", "#dfe3e8", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98800", "#3a96cf", "#7a6bb5")
"""Okabe and Ito's colours, with the three bright ones darkened for lines on white."""
MODEL, CONTROL = SERIES[0], "#8a94a3"

VARIABLES = {INK: "--text", SOFT: "--soft", LINE: "--line", CARD: "--card", CONTROL: "--control"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
"""Colours of the light scheme, in which charts are drawn, and the page's variables that replace them."""

WIDTH_INCH = 10.4
"""Width of a card on a wide screen."""
LETTER_INCH = 0.075
"""Width of a letter at 9 pt."""

_STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller files, the reader's font, searchable
    "svg.hashsalt": "nnunet-fm",
    "text.parse_math": False,  # dollar signs in names are no formulas
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


def styled() -> AbstractContextManager[None]:
    """Let matplotlib draw in the report's style within this context."""
    return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float, gap: float = 0.04) -> Figure:
    """Make a figure of a size in inches with gaps around its panels, outside of pyplot's state."""
    layout = ConstrainedLayoutEngine(w_pad=gap, h_pad=gap)
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def svg(figure: Figure, alt: str, prefix: str) -> str:
    """Convert a figure to an ``<svg>`` element.

    Args:
        figure: figure drawn within `styled`, in colours of this module.
        alt: alternative text.
        prefix: prefix of all ids in the element, unique in the page.
    """
    buffer = io.StringIO()
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's font decides
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    width, height = (float(size) * 96 / 72 for size in figure.get_size_inches() * 72)
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    body = re.sub(r"; font-family: [^;\"]*", "", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r' (d|x|y|width|height|points|transform)="([^"]*)"', _short_numbers, body)
    body = re.sub(r">\s+<", "><", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    size = f"{72 * figure.get_size_inches()[0]:g} {72 * figure.get_size_inches()[1]:g}"
    return (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {size}" '
        f'style="width:{width:.0f}px;min-width:{0.72 * width:.0f}px" data-height="{height:.0f}">{body}</svg>'
    )


def _short_numbers(attribute: re.Match[str]) -> str:
    """Round the coordinates of an attribute to 0.01 points, which halves the file."""
    short = re.sub(r"([0-9][.][0-9]{2})[0-9]+", r"\1", attribute[2])
    return f' {attribute[1]}="{short}"'


def shortened(name: str, letters: int = 34) -> str:
    """Shorten a name for a chart in its middle, because names differ at both ends."""
    if len(name) <= letters:
        return name
    keep = letters - 1  # one for the dots
    return f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"


def plain_names(datasets: Sequence[str]) -> dict[str, str]:
    """Remove nnU-Net's ``Dataset501_`` from names of datasets if they stay different."""
    plain = {name: re.sub(r"^Dataset\d{3}_", "", name) or name for name in datasets}
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in datasets}


def name_rows(ax: Axes, names: Sequence[str], controls: Sequence[str] = ()) -> None:
    """Name the rows of a chart, the first at the top, controls in grey, without lines between rows."""
    ax.set_yticks(range(len(names)), [shortened(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, pad=7)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set_color(SOFT if name in controls else INK)


def thousands(value: float, _position: int | None = None) -> str:
    """Format numbers of an axis: 500, 2k, 12.5k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
