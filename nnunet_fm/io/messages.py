"""Lists of names, and faults of files, in sentences."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
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
