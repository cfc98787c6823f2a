"""Commands whose list options take several values at once, like nnU-Net's: ``--spacing 2 1.5 1.5``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


def normalise(flag: str) -> str:
    """Make flags with underscores (nnU-Net's habit) and with hyphens equal."""
    return flag.replace("_", "-")


class VariadicCommand(TyperCommand):
    """A command that repeats the name of a list option before each further value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {normalise(name) for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        expanded: list[str] = []
        current: str | None = None
        values = 0
        for word in args:
            if word.startswith("-") and not word[1:2].isdigit():
                current, values = (word if normalise(word) in lists else None), 0
            elif current is not None:
                if values:
                    expanded.append(current)
                values += 1
            expanded.append(word)
        return super().parse_args(ctx, expanded)
