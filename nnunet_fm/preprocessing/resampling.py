"""Resampling that plans name: nnU-Net's default result, computed as one matrix product per axis.

Spline interpolation on a regular grid is linear in the image and separable, so that resampling one axis is the
product with a fixed matrix. The matrix is what ``scipy.ndimage`` makes of the unit vectors, hence boundary handling
and spline prefilter are those of the stock functions `skimage.transform.resize` and `scipy.ndimage.map_coordinates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from numpy.typing import NDArray
from scipy import ndimage
from threadpoolctl import threadpool_limits

from nnunet_fm.preprocessing.label_resampling import fm_resample_seg_to_shape

__all__ = ["fm_resample_data_to_shape", "fm_resample_seg_to_shape"]

Array = TypeVar("Array", NDArray[np.generic], torch.Tensor)
Matrix = NDArray[np.float32]

NEGLIGIBLE = 1e-8
"""Matrix entries below this are skipped: a cubic spline's influence falls by 3.7 per voxel, to 1e-8 after 14."""
ROWS = 48
"""Output planes computed at once; few enough to skip most of the zeros, enough for an efficient product."""


def fm_resample_data_to_shape(
    data: Array,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = False,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = None,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> Array:
    """Resample ``(C, Z, Y, X)`` to ``new_shape`` ``(Z', Y', X')``; equals nnU-Net's `resample_data_or_seg_to_shape`.

    Computes in float32, one channel at a time, on one thread (preprocessing runs one process per case), and returns
    the input's type and dtype. Besides input and output it needs at most two float32 copies of the larger of one
    input and one output channel. Label maps go to `fm_resample_seg_to_shape`. An unchanged shape returns ``data``.

    Args:
        current_spacing: mm (z, y, x), decides with ``new_spacing`` whether the thick axis is resampled separately.
        order: spline order, in plane only where the thick axis is separate.
        order_z: spline order along the separate axis; 0 takes the nearest slice.
        force_separate_z: ``None`` leaves the choice to the spacings.
        separate_z_anisotropy_threshold: ratio of largest to smallest spacing above which the axis is separate.

    Raises:
        ValueError: if ``data`` has not four axes or ``new_shape`` not three.
    """
    new: tuple[int, ...] = tuple(int(edge) for edge in new_shape)
    if data.ndim != 4 or len(new) != 3:
        raise ValueError(f"expected data (C, Z, Y, X) and three new edges, got {tuple(data.shape)} and {new}")
    if tuple(data.shape[1:]) == new:
        return data
    if is_seg:
        return fm_resample_seg_to_shape(
            data, new, current_spacing, new_spacing, True, order, order_z, force_separate_z,
            separate_z_anisotropy_threshold,
        )  # fmt: skip
    if isinstance(data, torch.Tensor):
        as_numpy = fm_resample_data_to_shape(
            data.numpy(force=True), new, current_spacing, new_spacing, False, order, order_z, force_separate_z,
            separate_z_anisotropy_threshold,
        )  # fmt: skip
        return torch.from_numpy(as_numpy).to(data.device)
    separate, thick = determine_do_sep_z_and_axis(
        force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold
    )
    out = np.empty((data.shape[0], *new), dtype=data.dtype)
    with threadpool_limits(limits=1, user_api="blas"):
        for channel, result in zip(data, out, strict=True):
            image = channel.astype(np.float32, copy=False)
            result[...] = _separate(image, new, order, int(thick), order_z) if separate else _resize(image, new, order)
    return out


def _resize(image: Matrix, new: tuple[int, ...], order: int, keep: int | None = None) -> Matrix:
    """Resize all axes but ``keep``, and clip to the input's range: of the image, or of each plane across ``keep``."""
    over = None if keep is None else tuple(axis for axis in range(image.ndim) if axis != keep)
    lower = image.min(axis=over, keepdims=True)
    upper = image.max(axis=over, keepdims=True)
    axes = [axis for axis in range(image.ndim) if axis != keep and image.shape[axis] != new[axis]]
    for axis in sorted(axes, key=lambda a: new[a] / image.shape[a]):  # shrinking axes first: fewer voxels for the rest
        image = _apply(_zoom_matrix(image.shape[axis], new[axis], order), image, axis)
    if axes:
        np.clip(image, lower, upper, out=image)
    return image


def _separate(image: Matrix, new: tuple[int, ...], order: int, thick: int, order_z: int) -> Matrix:
    """Resize in plane, slice by slice, then along the thick axis with a spline of its own order."""
    old = image.shape[thick]
    image = _resize(image, new, order, keep=thick)
    if old == new[thick]:
        return image
    positions = old / new[thick] * (np.arange(new[thick]) + 0.5) - 0.5
    if order_z == 0:
        slices = ndimage.map_coordinates(np.arange(old), positions[None], order=0, mode="nearest")
        nearest: Matrix = image.take(slices, axis=thick)
        return nearest
    grid = np.meshgrid(positions, np.arange(old), indexing="ij")
    matrix = ndimage.map_coordinates(np.eye(old), grid, order=order_z, mode="nearest").astype(np.float32)
    return _apply(matrix, image, thick)


def _zoom_matrix(old: int, new: int, order: int) -> Matrix:
    """Matrix ``(new, old)`` that resizes one axis as skimage does with mode "edge"."""
    matrix: NDArray[np.float64] = ndimage.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True)
    return matrix.astype(np.float32)


def _apply(matrix: Matrix, image: Matrix, axis: int) -> Matrix:
    """Multiply one axis of ``image`` by ``matrix`` ``(new, old)``, block by block along its band of nonzero entries."""
    out = np.empty((*image.shape[:axis], len(matrix), *image.shape[axis + 1 :]), dtype=np.float32)
    last = axis == image.ndim - 1
    # (before, axis, behind); the last axis stands last, as a product with columns of length one would be slow
    flat = (-1, image.shape[axis]) if last else (int(np.prod(image.shape[:axis])), image.shape[axis], -1)
    source, target = image.reshape(flat), out.reshape(flat[0], len(matrix), *flat[2:])
    for start in range(0, len(matrix), ROWS):
        rows = matrix[start : start + ROWS]
        (band,) = np.nonzero(np.abs(rows).max(axis=0) > NEGLIGIBLE)
        columns = slice(int(band[0]), int(band[-1]) + 1)
        block = slice(start, start + len(rows))
        if last:
            np.matmul(source[:, columns], rows[:, columns].T, out=target[:, block])
        else:
            np.matmul(rows[:, columns], source[:, columns], out=target[:, block])
    return out
