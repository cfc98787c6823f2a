"""The page of faults: written from outcomes, and read back to compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.faults.registry import FAULTS, STAGES, Outcome

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
LONGEST = 420
"""Signs of a message that the page shows."""
HEAD = """# Reliability

What happens when something breaks. A suite breaks each of these things on purpose, with signals, limits, permissions
and damaged files, checks that what was there before is there still, and writes this page: `python -m tests.faults` in a
checkout; `pytest tests/faults` (`-m slow` for those of some seconds) fails where a fault ends otherwise than
this page says. `…` stands for a path or a number.

A full disk is a limit on the size of files, which ends writing half-way as a full disk does. *Killed* is SIGKILL, which
no program can answer. The messages are those of commands of this package, which end with exit code 1, and of stock
commands that run its trainers.

{count} faults.
"""


def text(outcomes: Mapping[str, Outcome]) -> str:
    """The page; a table for each stage."""
    parts = [HEAD.format(count=len(outcomes))]
    for stage in STAGES:
        rows = [(FAULTS[name], outcome) for name, outcome in outcomes.items() if FAULTS[name].stage == stage]
        if not rows:
            continue
        parts.append(f"## {stage}\n\n| fault | what happens | what is kept | message |\n|---|---|---|---|")
        for broken, outcome in rows:
            words = outcome.message if len(outcome.message) <= LONGEST else f"{outcome.message[:LONGEST]} …"
            message = f"`{_cell(words).replace('`', chr(39))}`" if words else ""
            cells = (broken.broken, outcome.happened, outcome.kept)
            parts[-1] += f"\n| {' | '.join(map(_cell, cells))} | {message} |"
        parts[-1] += "\n"
    return "\n".join(parts)


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def rows() -> dict[str, str]:
    """Rows of the page as it is: what is broken -> the whole line."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {
        re.split(r"(?<!\\) \| ", line[2:])[0]: line for line in lines if line.startswith("| ") and line[2:7] != "fault"
    }


def row(name: str, outcome: Outcome) -> str:
    """The line of one fault."""
    return next(
        line for line in text({name: outcome}).splitlines() if line.startswith(f"| {_cell(FAULTS[name].broken)}")
    )
