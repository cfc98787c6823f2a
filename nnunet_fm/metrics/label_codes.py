"""Encode labels as consecutive codes: one byte per voxel, and tables no longer than the list of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Coding:
    """Codes of labels.

    Args:
        labels: a label's code is its position, 0 for the background; labels that are not listed share the last code.
        members: class -> codes of its labels.
        ignored: code of the ignore label.
    """

    labels: list[int]
    members: dict[str, list[int]]
    ignored: int | None

    @classmethod
    def of(cls, classes: Mapping[str, Sequence[int]], ignore: int | None) -> Coding:
        """Coding of classes (name -> labels) and an ignore label."""
        used = {0} | {label for values in classes.values() for label in values} | {0 if ignore is None else ignore}
        labels = sorted(used)
        members = {name: [labels.index(label) for label in values] for name, values in classes.items()}
        return cls(labels, members, None if ignore is None else labels.index(ignore))

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.labels) + 1

    def encode(self, array: NDArray[Any]) -> tuple[Codes, set[int]]:
        """Encode a map of integers; returns codes of the same shape, and the labels that are not listed."""
        top, other = self.labels[-1], len(self.labels)
        table = np.full(top + 3, other, np.uint8 if other < 256 else np.uint16)  # below 0, 0 to top, above top
        table[np.asarray(self.labels) + 1] = np.arange(other)
        codes = np.empty(array.shape, table.dtype)
        unknown: set[int] = set()
        for plane, coded in zip(array, codes, strict=True):  # plane by plane, so that temporary arrays stay small
            np.take(table, np.clip(plane.astype(np.intp), -1, top + 1) + 1, out=coded)
            strange = coded == other
            if strange.any():
                unknown.update(np.unique(plane[strange]).tolist())
        return codes, unknown
