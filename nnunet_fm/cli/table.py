"""Tables for people, of commands that print JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows of the same keys; columns as wide as their content: the same in a terminal, a pipe and a log."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in widths}, {key: "-" * width for key, width in widths.items()}, *rows):
        print("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip())
