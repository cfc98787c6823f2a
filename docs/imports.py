"""Draw which folder of the package imports which, as a matrix: docs/images/imports.svg, written by docs/pictures.py."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nnunet_fm"
CELL, LEFT, TOP = 30, 160, 140
STYLE = """
text { font: 13px ui-monospace, monospace; fill: #1b2a2f }
.count { text-anchor: middle; font-size: 12px }
.name { text-anchor: end }
.page { fill: #ffffff } .row { fill: #f3f6f7 } .self { fill: #cfd8dc } .legal { fill: #b2dfdb } .wrong { fill: #ef9a9a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf0 }
  .page { fill: #12191c } .row { fill: #1c262a } .self { fill: #455a64 }
  .legal { fill: #10605a } .wrong { fill: #b71c1c }
}
"""


def layers() -> list[list[str]]:
    """Folders and modules of the import contract in pyproject.toml, a list for each layer, the top one first."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[[tool.importlinter.contracts]]")[1]
    found = re.search(r"^layers = \[(.*?)^\]", contract, re.DOTALL | re.MULTILINE)
    assert found is not None, "pyproject.toml has no layers"
    return [layer.split(" | ") for layer in re.findall(r'"([^"]+)"', found[1])]


def imported(file: Path) -> Iterator[str]:
    """Names of the folders and modules of this package that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("nnunet_fm."))


def counts() -> Counter[tuple[str, str]]:
    """(importing, imported) folder or module -> number of files that import it."""
    found: Counter[tuple[str, str]] = Counter()
    for file in sorted(PACKAGE.rglob("*.py")):
        if not (file.parent / "__init__.py").is_file():
            continue  # a start file of nnU-Net's that lies here without being a module of the package
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.update((own, other) for other in set(imported(file)) if other != own)
    return found


def drawing() -> str:
    """The matrix as SVG: a row imports the columns; legal imports lie right of the diagonal."""
    order = [(name, number) for number, layer in enumerate(layers()) for name in layer]
    found = counts()
    size = CELL * len(order)
    width, height = LEFT + size + 20, TOP + size + 20
    drawn = [f'<rect class="page" x="0" y="0" width="{width}" height="{height}" rx="8"/>']
    for row, (name, level) in enumerate(order):
        x, y = LEFT + row * CELL, TOP + row * CELL
        if level % 2:
            drawn.append(f'<rect class="row" x="0" y="{y}" width="{width}" height="{CELL}"/>')
        drawn.append(f'<text class="name" x="{LEFT - 10}" y="{y + 20}">{name}</text>')
        drawn.append(f'<text transform="translate({x + 19} {TOP - 10}) rotate(-60)">{name}</text>')
    for row, (name, level) in enumerate(order):
        for column, (other, below) in enumerate(order):
            number = found[name, other]
            if number or row == column:
                x, y = LEFT + column * CELL, TOP + row * CELL
                kind = "self" if row == column else "legal" if below > level else "wrong"
                drawn.append(f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}"/>')
                drawn += [f'<text class="count" x="{x + 15}" y="{y + 20}">{number}</text>'] if number else []
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Which folder imports which: a row imports the columns, the number counts its files that do">'
    )
    return "\n".join([head, f"<style>{STYLE}</style>", *drawn, "</svg>", ""])
