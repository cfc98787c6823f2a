"""All messages with which this package refuses something, gathered from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "nnunet_fm"
SHORTEST = 25
PLACEHOLDER = "…"
PARTS = {
    "dataset_conversion": "Converting datasets",
    "plans": "Planning",
    "preprocessing": "Raw datasets and preprocessing",
    "planfile": "Plan files and trained folders",
    "models": "Names and cards",
    "weights": "Official weights and checkpoints",
    "networks": "Networks",
    "backbones": "Backbones",
    "heads": "Decode heads",
    "adapters": "Adapters",
    "data": "Data",
    "trainers": "Training",
    "losses": "Losses",
    "adaptation": "Adaptation",
    "inference": "Predicting",
    "metrics": "Evaluation",
    "reporting": "Reports",
    "records": "Records",
    "studies": "Studies",
    "cli": "Flags",
    "checks": "Checks of the machine",
    "hook": "The hook",
    "io": "Files",
    "cpu": "Limits of the machine",
    "host": "The version of nnU-Net",
    "moved": "Former paths",
    "insides": "Insides of other packages",
    "published_quirks": "Quirks of published code",
}
"""Folder or module of the package -> heading."""


def messages() -> dict[str, list[str]]:
    """Heading -> messages, each once, what varies as ``…``."""
    found: dict[str, list[str]] = {heading: [] for heading in PARTS.values()}
    for file in sorted(PACKAGE.rglob("*.py")):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in PARTS:
            texts = _raised(ast.parse(file.read_text(encoding="utf-8")))
            found[PARTS[part]] += [text for text in texts if len(text) >= SHORTEST]
    return {heading: list(dict.fromkeys(texts)) for heading, texts in found.items() if texts}


def _raised(tree: ast.AST) -> Iterator[str]:
    """Texts in what is raised."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                text = template(argument)
                if text.strip(PLACEHOLDER + " "):
                    yield text


def template(node: ast.expr) -> str:
    """A text as it stands in the source, with ``…`` for all that is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else PLACEHOLDER
    if isinstance(node, ast.JoinedStr):
        text = "".join(template(part) for part in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = template(node.left) + template(node.right)
    else:
        text = PLACEHOLDER
    return re.sub(rf"{PLACEHOLDER}(\s*{PLACEHOLDER})+", PLACEHOLDER, text)


def as_markdown() -> str:
    """One section per part of the package, one line per message."""
    lines = []
    for heading, texts in messages().items():
        lines += [f"### {heading}", ""]
        lines += [f"* {_escaped(text)}" for text in sorted(texts, key=str.casefold)]
        lines.append("")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Markdown that shows the text as it is; code stays code."""
    parts = " ".join(text.split()).split("`")
    return "`".join(p if number % 2 else re.sub(r"([\\*_<>\[\]#|])", r"\\\1", p) for number, p in enumerate(parts))
