"""Classes and ignore label of a ``dataset.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.dataset_json import IGNORE, canonical
from nnunet_fm.io.untrusted import read_object

Labels = Mapping[str, int | Sequence[int]]
"""Class name -> label, or the labels of a region, as in ``dataset.json``."""

BACKGROUND = "background"
"""Name of the label 0."""


def foreground(labels: Labels) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Split ``labels`` of ``dataset.json`` into foreground classes (name -> labels) and the ignore label."""
    as_tuples = {name: (value,) if isinstance(value, int) else tuple(value) for name, value in labels.items()}
    ignore = as_tuples.pop(IGNORE, (None,))[0]
    return {name: values for name, values in as_tuples.items() if set(values) != {0}}, ignore


def scored_classes(labels: Labels, include_background: bool = False) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Return `foreground`, preceded by the class ``background`` (label 0) with ``include_background``."""
    classes, ignore = foreground(labels)
    return ({BACKGROUND: (0,)} if include_background else {}) | classes, ignore


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a ``dataset.json`` with usable ``labels``, as `canonical` writes it.

    Raises:
        ValueError: if it is no JSON object, or its labels are not name -> number or numbers.
    """
    try:
        content = canonical(read_object(path))
        labels = content["labels"]
        usable = bool(labels) and all(_is_label(value) for value in labels.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        usable = False
    if not usable:
        raise InvalidValueError(
            f"{path}: 'labels' must map each class's name to its number, or a region's to a list of them",
            code="labels-table",
        )
    return content


def _is_label(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_label(v) and not isinstance(v, list) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
