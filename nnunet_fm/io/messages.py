"""Lists of names, and faults of files, in sentences."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

SHOWN = 3
"""Names that a sentence lists; it counts the others."""


def listed(names: Collection[str], separator: str = ", ", most: int = SHOWN) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(islice(names, most)) + more


def validation_faults(error: ValidationError, prefix: str = "") -> str:
    """All faults that pydantic found, each with the path of its field, such as ``recipe.loss``.

    Args:
        error: from a model's validation.
        prefix: what precedes each path, such as ``recipe.``.
    """
    return "; ".join(f"{prefix}{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())


def space_left(folder: Path) -> str:
    """Words for the free space of a folder's disk: ``the disk has 3.2 GB left``."""
    return f"the disk has {shutil.disk_usage(folder).free / 1e9:.1f} GB left"


def duration(seconds: float) -> str:
    """A time for people: ``45 s``, ``55 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
