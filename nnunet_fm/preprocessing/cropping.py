"""Cropping to the nonzero region: nnU-Net's result, without a search through holes that lie inside."""

from __future__ import annotations

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import bounding_box_to_slice, get_bbox_from_mask
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Slices = tuple[slice, slice, slice]

SPARSE = 0.02
"""Share of the volume up to which outside voxels are followed one by one; beyond it all components are labelled."""


def nonzero_region(data: NDArray[np.generic]) -> tuple[Mask, list[list[int]], Slices]:
    """The region of ``(C, Z, Y, X)`` that is nonzero in any channel, holes filled.

    A zero voxel is outside if other zero voxels, face by face, link it with the border of the volume, else in a hole.

    Returns:
        the region's mask within its bounding box, the box (first and behind last index of each axis), its slices.
        For an image of zeros only the box is the whole volume.
    """
    zero = np.zeros([edge + 2 for edge in data.shape[1:]], dtype=bool)  # with a rim, so that all voxels have neighbours
    inner = zero[1:-1, 1:-1, 1:-1]
    np.equal(data[0], 0, out=inner)
    for channel in data[1:]:
        inner &= channel == 0
    outside = _followed_from_border(zero)
    if outside is None:
        outside = _labelled(inner)
    mask = np.logical_not(outside, out=outside)
    box = get_bbox_from_mask(mask)
    slices = bounding_box_to_slice(box)
    return mask[slices], box, slices


def _followed_from_border(zero: Mask) -> Mask | None:
    """Zero voxels linked with the border, without the rim of ``zero``; ``None`` if they are more than `SPARSE`.

    ``zero`` is overwritten if a mask is returned.
    """
    flat = zero.reshape(-1)
    steps = [sign * stride for stride in zero.strides for sign in (-1, 1)]
    found = [_take_faces(zero)]
    count = 0
    while len(found[-1]):
        count += len(found[-1])
        if count > SPARSE * zero.size:
            flat[np.concatenate(found)] = True
            return None
        reached = []
        for step in steps:
            neighbours = found[-1] + step
            neighbours = neighbours[flat[neighbours]]
            flat[neighbours] = False
            reached.append(neighbours)
        found.append(np.concatenate(reached))
    zero[...] = False
    flat[np.concatenate(found)] = True
    return zero[1:-1, 1:-1, 1:-1]


def _take_faces(zero: Mask) -> NDArray[np.intp]:
    """Flat indices of the zero voxels on the volume's six faces, one voxel inside the rim; they are unset."""
    found = []
    for axis, edge in enumerate(zero.shape):
        for position in (1, edge - 2):
            face = np.moveaxis(zero, axis, 0)[position]
            in_plane = np.nonzero(face)
            face[...] = False
            found.append(np.ravel_multi_index(np.insert(in_plane, axis, position, axis=0), zero.shape))
    return np.concatenate(found)


def _labelled(zero: Mask) -> Mask:
    """Zero voxels of the components that touch the volume's border."""
    components, number = ndimage.label(np.ascontiguousarray(zero))
    touching = np.zeros(number + 1, dtype=bool)
    for axis in range(3):
        touching[components.take((0, -1), axis=axis)] = True
    touching[0] = False
    outside: Mask = touching[components]
    return outside
