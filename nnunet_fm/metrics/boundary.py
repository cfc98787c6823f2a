"""Where the codes of a label map change: the only places where any class can have a surface, as a sparse list.

One pass over the voxels serves all classes, so that a class whose stray voxels lie all over the volume costs no
more than a compact one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.metrics.label_codes import Codes

_SLAB = 1 << 22
"""Voxels that are looked at together, for the memory."""


@dataclass(frozen=True)
class Boundary:
    """Places of a label map with neighbours of different codes.

    Args:
        places: flat indices into an array of ``shape``, rising, (N,).
        codes: of the neighbours at each place, (N, K).
        shape: of the label map with a margin of one voxel on every side.
    """

    places: NDArray[np.int64]
    codes: Codes
    shape: tuple[int, ...]


def corners(codes: Codes, outside: int) -> Boundary:
    """Corners between voxels that are not all of one code; K is 8, in 2D 4, the last axis fastest.

    Args:
        codes: (Z, Y, X) or (Y, X).
        outside: code of what lies outside of the array.
    """
    return _boundary(codes, list(product((0, 1), repeat=codes.ndim)), outside)


def voxels(codes: Codes, outside: int) -> Boundary:
    """Voxels with a face neighbour of another code; K is 7, in 2D 5: first the voxel itself.

    Args:
        codes: (Z, Y, X) or (Y, X).
        outside: code of what lies outside of the array.
    """
    centre = np.ones(codes.ndim, int)
    steps = np.concatenate([np.eye(codes.ndim, dtype=int), -np.eye(codes.ndim, dtype=int)])
    return _boundary(codes, [tuple(centre), *map(tuple, centre + steps)], outside)


def _boundary(codes: Codes, window: Sequence[tuple[int, ...]], outside: int) -> Boundary:
    """Places where the codes of a window differ; its offsets are not negative."""
    shape = tuple(edge + 2 for edge in codes.shape)
    halo = int(np.max(window))
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    offsets = np.asarray(window) @ strides
    places, found = [], []
    for start, stop in _slabs(shape, halo):
        slab = np.full((stop - start, *shape[1:]), outside, codes.dtype)
        first, last = max(start, 1), min(stop, shape[0] - 1)
        inside = (slice(first - start, last - start),) + (slice(1, -1),) * (codes.ndim - 1)
        slab[inside] = codes[first - 1 : last - 1]
        views = [
            slab[tuple(slice(o, edge - halo + o) for o, edge in zip(at, slab.shape, strict=True))] for at in window
        ]
        differs = np.zeros(views[0].shape, bool)
        for view in views[1:]:
            differs |= view != views[0]
        here = np.stack(np.nonzero(differs), 1) @ strides
        places.append(here + start * strides[0])
        found.append(slab.ravel()[here[:, None] + offsets])
    return Boundary(np.concatenate(places), np.concatenate(found), shape)


def _slabs(shape: Sequence[int], halo: int) -> Iterator[tuple[int, int]]:
    """First row and row after the last one; slabs overlap by the halo."""
    step = max(1, _SLAB // int(np.prod(shape[1:])))
    for start in range(0, shape[0] - halo, step):
        yield start, min(start + step + halo, shape[0])
