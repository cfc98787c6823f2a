"""Draw the pictures of docs/architecture.md, and copy that of the demo: docs/images.

    python docs/pictures.py             # draw what can be drawn without training
    python docs/pictures.py --check     # exit with 1 if a drawing is not up to date
    python docs/pictures.py DEMO        # take the median case of `nnunet-fm demo --output DEMO`, too

Drawings are written as text, without a plotting library, so that they are the same on every machine.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import imports

IMAGES = Path(__file__).with_name("images")
PACKAGE = Path(__file__).resolve().parents[1] / "nnunet_fm"

STEPS = (
    # title, what a user types (first line) and what is read or made, folders of the package that do it
    ("Convert", "nnunet-fm convert", "raw folder", ("dataset_conversion",)),
    ("Plan", "nnunet-fm plan, nnUNetv2_preprocess", "plans, data", ("plans", "planfile", "preprocessing")),
    ("Train", "nnUNetv2_train", "slim checkpoint", ("trainers", "losses", "adaptation")),
    ("Predict", "nnUNetv2_predict", "label maps", ("inference", "records")),
    ("Compare", "nnunet-fm evaluate, report, study", "scores, one page", ("metrics", "reporting", "studies")),
)
PARTS = (
    ("models", "card, names, registry, building"),
    ("networks", "3D, one file per family"),
    ("backbones", "2D encoders"),
    ("heads", "2D decode heads"),
    ("adapters", "what is trained"),
    ("weights", "official files, slim checkpoints"),
)
SIDE = (
    ("hook", "nnU-Net finds our classes"),
    ("cli", "one file per sub-command"),
    ("checks", "what doctor looks at"),
    ("data", "patches, folds, presets"),
    ("cpu", "what makes processors fast"),
    ("io", "files, read without trust"),
)

WIDTH, HEIGHT, MARGIN = 1080, 470, 20
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1b2a2f }
.title { font-weight: 600; font-size: 17px }
.code { font: 12px ui-monospace, monospace }
.small { font-size: 12px; fill: #4d6068 }
.page { fill: #ffffff }
.step { fill: #e0f2f0; stroke: #00897b }
.part { fill: #ffffff; stroke: #90a4ae }
.frame { fill: #f5f7f8; stroke: #b0bec5; stroke-dasharray: 5 4 }
.arrow { stroke: #00897b; stroke-width: 2; fill: none; marker-end: url(#tip) }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf0 } .small { fill: #a9b8be }
  .page { fill: #12191c }
  .step { fill: #10403b; stroke: #4db6ac } .part { fill: #263238; stroke: #78909c }
  .frame { fill: #1c262a; stroke: #546e7a } .arrow { stroke: #4db6ac }
}
"""


def architecture() -> str:
    """The way of the data on top, what a model is made of below, as SVG."""
    gap = 24
    wide = (WIDTH - 2 * MARGIN - gap * (len(STEPS) - 1)) / len(STEPS)
    drawn = [_box("page", 0, 0, WIDTH, HEIGHT - 20)]
    for number, (title, command, result, folders) in enumerate(STEPS):
        x, y = MARGIN + number * (wide + gap), 44
        drawn += [_box("step", x, y, wide, 128), _text("title", x + 12, y + 26, title)]
        lines = command.split(", ")
        drawn += [_text("code", x + 12, y + 48 + 16 * row, line) for row, line in enumerate(_wrapped(lines))]
        drawn += [_text("", x + 12, y + 92, f"→ {result}"), _text("small", x + 12, y + 114, ", ".join(folders))]
        if number:
            drawn.append(f'<path class="arrow" d="M{x - gap + 2:.0f} {y + 64} H{x - 5:.0f}"/>')
    drawn.append(
        _text("small", MARGIN, 28, "What a user types, what comes of it, and the folder of nnunet_fm that does it")
    )

    top = 210
    drawn += [_box("frame", MARGIN, top, WIDTH - 2 * MARGIN, 136), _text("title", MARGIN + 14, top + 26, "A model")]
    drawn.append(
        _text(
            "small",
            MARGIN + 100,
            top + 26,
            "one card of plans/cards describes it; planning, training and prediction build it from the plan",
        )
    )
    part = (WIDTH - 2 * MARGIN - 28 - 12 * (len(PARTS) - 1)) / len(PARTS)
    for number, (folder, what) in enumerate(PARTS):
        x = MARGIN + 14 + number * (part + 12)
        drawn += [_box("part", x, top + 44, part, 76), _text("code", x + 10, top + 66, folder)]
        drawn += [_text("small", x + 10, top + 86 + 16 * row, line) for row, line in enumerate(_halves(what, 22))]
    for number in (1, 2, 3):
        x = MARGIN + number * (wide + gap) + wide / 2
        drawn.append(f'<path class="arrow" d="M{x:.0f} {top} V{178}"/>')

    low = 366
    side = (WIDTH - 2 * MARGIN - gap * (len(SIDE) - 1)) / len(SIDE)
    for number, (folder, what) in enumerate(SIDE):
        x = MARGIN + number * (side + gap)
        drawn += [
            _box("part", x, low, side, 64),
            _text("code", x + 14, low + 26, folder),
            _text("small", x + 14, low + 48, what),
        ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT - 20}" role="img" '
        'aria-label="From a download to a comparison: convert, plan, train, predict, compare; parts of a model">'
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#00897b"/></marker></defs>'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", tip, *drawn, "</svg>", ""])


def _wrapped(words: Sequence[str]) -> list[str]:
    """The first command on a line, what follows on the next."""
    return [words[0] + "," * (len(words) > 1), ", ".join(words[1:])] if len(words) > 1 else list(words)


def _halves(text: str, most: int) -> list[str]:
    """Words on lines of at most so many letters."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _box(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="8"/>'


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def missing() -> list[str]:
    """Folders of the package that the picture leaves out, or names in it that are none."""
    shown = {folder for *_, folders in STEPS for folder in folders} | {folder for folder, _ in (*PARTS, *SIDE)}
    there = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    return sorted(shown ^ there)


def main(arguments: Sequence[str]) -> int:
    """Draw or check; copy the demo's picture where its folder is given."""
    if odd := missing():
        print(f"docs/images/architecture.svg and the package differ in {', '.join(odd)}: correct docs/pictures.py")
        return 1
    drawings = {"architecture.svg": architecture(), "imports.svg": imports.drawing()}
    old = [n for n, d in drawings.items() if not (f := IMAGES / n).is_file() or f.read_text(encoding="utf-8") != d]
    if "--check" in arguments:
        if old:
            print(f"not up to date: {', '.join(old)}; run python docs/pictures.py")
        return 1 if old else 0
    for name in old:
        (IMAGES / name).write_text(drawings[name], encoding="utf-8")
    for demo in arguments:
        (median,) = Path(demo, "pictures").glob("median_*.png")
        shutil.copyfile(median, IMAGES / "demo.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
