"""Self-contained HTML page about a training: Dice, seconds, learning curve, pictures, commands."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.metrics.summary import mean_foreground, mean_per_class, per_case
from nnunet_fm.reporting.sections import part

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 1.5rem; }
.bar { display: inline-block; height: .6rem; background: var(--series-0); border-radius: 2px; }
.columns > div { min-width: 0; }
td.wide { width: 45%; text-align: left; }
tfoot td { font-weight: 650; border-bottom: 0; }
th:first-child, td:first-child { text-align: left; }
img { background: #fff; border-radius: 6px; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<div class="card top"><div><div class="number">$dice</div><div class="soft">mean foreground Dice, $cases</div></div>
<dl>$facts</dl></div>
<div class="columns">
<div><h2>Dice</h2><div class="card scroll">$scores</div></div>
<div><h2>Seconds</h2><div class="card scroll">$seconds</div></div>
</div>
<h2>Learning curve</h2>
<figure class="card">$curve<figcaption>$curve_caption</figcaption></figure>
<h2>Pictures</h2>
<div class="card">$overlays</div>
<h2>Commands</h2>
<div class="card"><pre>$commands</pre></div>
</main>
</body>
</html>
""")


def write_page(
    path: Path,
    *,
    title: str,
    scores: pd.DataFrame,
    log: pd.DataFrame,
    seconds: Mapping[str, float],
    commands: Iterable[str],
    overlays: Sequence[tuple[str, Figure]],
    facts: Mapping[str, str],
) -> None:
    """Write the page, with pictures inside.

    Args:
        path: the HTML file.
        title: heading.
        scores: scores from `nnunet_fm.metrics.folder.evaluate_folder`; the Dice is shown.
        log: log from `nnunet_fm.reporting.training_log.parse_log`.
        seconds: seconds by step, in the order of the steps.
        commands: shell lines of the run.
        overlays: (caption, figure) of each pictured case.
        facts: further facts by name: network, data, machine.
    """
    number = scores["case"].nunique()
    pictures = [
        f'<figure><img alt="{escape(caption)}" src="{_png(figure)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for caption, figure in overlays
    ]
    page = _PAGE.substitute(
        title=escape(title),
        style=part("style.css"),
        dice=f"{mean_foreground(scores):.3f}",
        cases=f"{number} unseen case{'' if number == 1 else 's'}",
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()),
        scores=_scores_table(scores),
        seconds=_seconds_table(seconds),
        curve=f'<img alt="learning curve" src="{_png(learning_curve(log))}">' if len(log) else "",
        curve_caption="What nnU-Net logs after each epoch: loss, and Dice of random patches (pseudo Dice)."
        if len(log)
        else "No epoch was finished.",
        overlays="\n".join(pictures),
        commands="\n".join(map(escape, commands)),
    )
    write_text(path, page)


def learning_curve(log: pd.DataFrame) -> Figure:
    """Draw losses and pseudo Dice over the minutes of training."""
    figure = Figure(figsize=(9.6, 3.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    minutes = log["seconds"].cumsum() / 60
    left.plot(minutes, log["train_loss"], color="#0072B2", marker=".", label="training")
    left.plot(minutes, log["val_loss"], color="#D55E00", marker=".", label="validation", linewidth=1)
    left.set(xlabel="minutes", ylabel="loss")
    left.legend(frameon=False, fontsize=9)
    right.plot(minutes, log["dice"], color="#009E73", marker=".")
    right.set(xlabel="minutes", ylabel="pseudo Dice", ylim=(0, 1))
    for ax in (left, right):
        ax.set_xlim(left=0)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _scores_table(scores: pd.DataFrame) -> str:
    """Table of cases (rows) by classes (columns), with the classes' means in the last row."""
    means = mean_per_class(scores)
    table = per_case(scores)
    head = "".join(f"<th>{escape(str(name))}</th>" for name in table.columns)
    rows = "".join(
        f"<tr><td>{escape(str(case))}</td>{''.join(f'<td>{_number(value)}</td>' for value in values)}</tr>"
        for case, values in table.iterrows()
    )
    foot = "".join(f"<td>{_number(value)}</td>" for value in means)
    return (
        f"<table><thead><tr><th>case</th>{head}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr><td>mean</td>{foot}</tr></tfoot></table>"
    )


def _seconds_table(seconds: Mapping[str, float]) -> str:
    longest = max(seconds.values(), default=0) or 1
    rows = "".join(
        f'<tr><td>{escape(step)}</td><td>{value:.1f}</td><td class="wide">'
        f'<span class="bar" style="width:{100 * value / longest:.1f}%"></span></td></tr>'
        for step, value in seconds.items()
    )
    total = f"<tr><td>total</td><td>{sum(seconds.values()):.1f}</td><td></td></tr>"
    return f'<table style="width:100%"><tbody>{rows}</tbody><tfoot>{total}</tfoot></table>'
