"""Sparse list of the places where a label map changes, the only places where a class can have a surface.

One pass over the voxels serves all classes, so that a class with scattered voxels costs no more than a compact one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.metrics.label_codes import Codes

_SLAB = 1 << 22
"""Number of voxels that are processed together, to limit the memory."""


@dataclass(frozen=True)
class Boundary:
    """Places of a label map with neighbours of different codes.

    Args:
        places: sorted flat indices into an array of ``shape``, (N,).
        codes: codes of the neighbours at each place, (N, K).
        shape: shape of the label map with a margin of one voxel on every side.
    """

    places: NDArray[np.int64]
    codes: Codes
    shape: tuple[int, ...]


def corners(codes: Codes, outside: int) -> Boundary:
    """Find corners between voxels of different codes; K is 8 (2D: 4), the last axis fastest.

    Args:
        codes: (Z, Y, X) or (Y, X).
        outside: code of the outside of the array.
    """
    return _boundary(codes, list(product((0, 1), repeat=codes.ndim)), outside)


def voxels(codes: Codes, outside: int) -> Boundary:
    """Find voxels with a face neighbour of another code; K is 7 (2D: 5), the voxel itself first.

    Args:
        codes: (Z, Y, X) or (Y, X).
        outside: code of the outside of the array.
    """
    centre = np.ones(codes.ndim, int)
    steps = np.concatenate([np.eye(codes.ndim, dtype=int), -np.eye(codes.ndim, dtype=int)])
    return _boundary(codes, [tuple(centre), *map(tuple, centre + steps)], outside)


def _boundary(codes: Codes, window: Sequence[tuple[int, ...]], outside: int) -> Boundary:
    """Find places where the codes within a window of non-negative offsets differ."""
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
    """Start and end row of each slab; slabs overlap by the halo."""
    step = max(1, _SLAB // int(np.prod(shape[1:])))
    for start in range(0, shape[0] - halo, step):
        yield start, min(start + step + halo, shape[0])
