"""Read the values of nnU-Net's ``training_log_*.txt``."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

_LINE = re.compile(r"^(?:\S+ \S+: )?\s*(Epoch time:|Epoch|train_loss|val_loss|Pseudo dice) (.+?)(?: s)? *$")
_DICE = re.compile(r"nan|\d+(?:\.\d+)?(?:e-?\d+)?(?=[\),\]])")
_COLUMNS = {"train_loss": "train_loss", "val_loss": "val_loss", "Epoch time:": "seconds"}


def newest_log(fold: Path) -> Path | None:
    """Newest log in a fold's folder, by modification time: dates in the names are not padded for sorting."""
    return max(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime_ns, default=None)


def parse_log(text: str) -> pd.DataFrame:
    """One row per finished epoch: ``epoch``, ``train_loss``, ``val_loss``, ``dice`` (mean pseudo Dice), ``seconds``.

    Args:
        text: a log, complete or not.
    """
    rows: list[dict[str, float]] = []
    row: dict[str, float] = {}
    for line in text.rpartition("\n")[0].splitlines():  # the last line may be incomplete
        found = _LINE.match(line)
        if not found:
            continue
        key, value = found.groups()
        if key == "Epoch":
            if value.isdigit():
                row = {"epoch": int(value)}
        elif key == "Pseudo dice":
            per_class = pd.Series([float(v) for v in _DICE.findall(value)], dtype=float)
            row["dice"] = float(per_class.mean())
        elif row:
            row[_COLUMNS[key]] = float(value)
            if key == "Epoch time:":
                rows.append(row)
                row = {}
    return pd.DataFrame(rows, columns=["epoch", "train_loss", "val_loss", "dice", "seconds"])
