"""Lists of names in sentences."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

SHOWN = 3
"""Names that a sentence lists; it counts the others."""


def listed(names: Collection[str], separator: str = ", ", most: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(islice(names, most)) + more
