"""Resampling of label maps that plans name: exactly nnU-Net's default result, at the cost of a single label.

Linear interpolation of a label's indicator looks at the two nearest voxels along each axis. Where all of these carry
one label (nearly everywhere) the result is that label; only at surfaces do scores have to be computed. They are
computed for all labels at once, in the order and precision of the stock functions, because a sampling point halfway
between two voxels is a tie that the last bit decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from numpy.typing import NDArray
from scipy import ndimage

Array = TypeVar("Array", NDArray[np.generic], torch.Tensor)
Index = NDArray[np.intp]


def fm_resample_seg_to_shape(
    data: Array,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = True,
    order: int = 1,
    order_z: int = 0,
    force_separate_z: bool | None = None,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> Array:
    """Resample label maps ``(C, Z, Y, X)`` to ``new_shape``; equals nnU-Net's `resample_data_or_seg_to_shape`.

    Orders 0 and 1 (nnU-Net's default) with the nearest slice along a separate thick axis take a time that does not
    grow with the number of labels, and need no memory besides input and output. Other orders go to the stock
    function. At order 1 the label of highest score wins and the nearest voxel settles ties: the rule of
    batchgenerators 0.25.4, kept whichever version is installed. Returns the input's type and dtype; an unchanged
    shape returns ``data`` itself.

    Args:
        current_spacing: mm (z, y, x), decides with ``new_spacing`` whether the thick axis is resampled separately.
        is_seg: always true; taken because plans pass it.
        order: order of the spline, in plane only where the thick axis is separate.
        order_z: order along the separate axis; 0 takes the nearest slice.
        force_separate_z: ``None`` leaves the choice to the spacings.
        separate_z_anisotropy_threshold: ratio of largest to smallest spacing above which the axis is separate.

    Raises:
        ValueError: if ``data`` has not four axes, ``new_shape`` not three, or ``is_seg`` is false.
    """
    new: tuple[int, ...] = tuple(int(edge) for edge in new_shape)
    if data.ndim != 4 or len(new) != 3:
        raise ValueError(f"expected data (C, Z, Y, X) and three new edges, got {tuple(data.shape)} and {new}")
    if not is_seg:
        raise ValueError("fm_resample_seg_to_shape resamples label maps; for images the plan names another function")
    if tuple(data.shape[1:]) == new:
        return data
    if isinstance(data, torch.Tensor):
        as_numpy = fm_resample_seg_to_shape(
            data.numpy(force=True), new, current_spacing, new_spacing, True, order, order_z, force_separate_z,
            separate_z_anisotropy_threshold,
        )  # fmt: skip
        return torch.from_numpy(as_numpy).to(data.device)
    separate, thick = determine_do_sep_z_and_axis(
        force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold
    )
    if order > 1 or (separate and order_z > 0):
        stock: NDArray[np.generic] = resample_data_or_seg_to_shape(
            data, new, current_spacing, new_spacing, True, order, order_z, force_separate_z,
            separate_z_anisotropy_threshold,
        )  # fmt: skip
        return stock
    taps = [
        _nearest_slice(old, size) if separate and axis == thick else _resize(old, size, order)
        for axis, (old, size) in enumerate(zip(data.shape[1:], new, strict=True))
    ]
    out = np.empty((data.shape[0], *new), dtype=data.dtype)
    for labels, result in zip(data, out, strict=True):
        _interpolate(np.ascontiguousarray(labels), taps, result)
    return out


@dataclass(frozen=True)
class _Taps:
    """The voxels of one axis that each new voxel is made of: two with weights that sum to 1, and the nearest."""

    lower: Index
    upper: Index
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]
    nearest: Index

    @classmethod
    def single(cls, nearest: Index) -> _Taps:
        return cls(nearest, nearest, (np.ones(len(nearest)), np.zeros(len(nearest))), nearest)


def _nearest_slice(old: int, new: int) -> _Taps:
    """Weights of nnU-Net's resampling along the separate axis."""
    positions = old / new * (np.arange(new) + 0.5) - 0.5
    slices = ndimage.map_coordinates(np.arange(old), positions[None], order=0, mode="nearest")
    return _Taps.single(slices.astype(np.intp))


def _resize(old: int, new: int, order: int) -> _Taps:
    """Weights of skimage's ``resize`` along an axis with mode "edge", equal to the last bit."""
    if old == new:
        return _Taps.single(np.arange(old))
    zoom, grid = new / old, {"grid_mode": True}
    nearest = ndimage.zoom(np.arange(old), zoom, order=0, mode="nearest", **grid).astype(np.intp)
    if order == 0:
        return _Taps.single(nearest)
    # Taken from scipy, as its last bit may depend on the processor. Beyond the edge stand further copies of the edge's
    # voxel, with a weight of their own; this mode leaves them out, so that the rest of 1 is theirs.
    matrix = ndimage.zoom(np.eye(old), (zoom, 1), order=1, mode="grid-constant", **grid)
    rows = np.arange(new)
    lower = (matrix > 0).argmax(axis=1)
    weight = matrix[rows, lower]
    before = (matrix.sum(axis=1) < 1) & (2 * rows < new)
    lower[before] = -1
    weight[before] = 1 - weight[before]
    return _Taps(lower.clip(0), (lower + 1).clip(0, old - 1), (weight, 1 - weight), nearest)


def _interpolate(labels: NDArray[np.generic], taps: Sequence[_Taps], out: NDArray[np.generic]) -> None:
    """Fill ``out`` (Z', Y', X') from ``labels`` (Z, Y, X), plane by plane."""
    along_z, along_y, along_x = taps
    pair: tuple[int, int] | None = None
    for z in range(len(out)):
        if pair != (along_z.lower[z], along_z.upper[z]):
            pair = along_z.lower[z], along_z.upper[z]
            lowest, highest = _range(labels[pair[0]], labels[pair[1]], along_y, along_x)
            mixed_y, mixed_x = np.nonzero(lowest != highest)
        out[z] = lowest
        if len(mixed_y):
            out[z, mixed_y, mixed_x] = _vote(labels, taps, z, mixed_y, mixed_x)


def _range(
    lower: NDArray[np.generic], upper: NDArray[np.generic], along_y: _Taps, along_x: _Taps
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Smallest and largest label, (Y', X'), among the voxels that each new voxel of a plane is made of."""
    bounds = []
    for choose in (np.minimum, np.maximum):
        plane = lower if lower is upper else choose(lower, upper)
        plane = choose(plane[along_y.lower], plane[along_y.upper])
        bounds.append(choose(plane.take(along_x.lower, axis=1), plane.take(along_x.upper, axis=1)))
    return bounds[0], bounds[1]


def _vote(labels: NDArray[np.generic], taps: Sequence[_Taps], z: int, y: Index, x: Index) -> NDArray[np.generic]:
    """Label of highest score at the given new voxels; of equal ones the nearest voxel's, else the smallest."""
    at = (np.full(1, z), y, x)
    found, shares = [], []
    for corner in product((0, 1), repeat=3):  # the last axis fastest, as scipy adds them up
        weights = [tap.weights[side][i] for tap, side, i in zip(taps, corner, at, strict=True)]
        share = weights[0] * weights[1] * weights[2]
        if share.any():
            where = tuple((tap.upper if side else tap.lower)[i] for tap, side, i in zip(taps, corner, at, strict=True))
            found.append(labels[where])
            shares.append(share)
    nearest = labels[tuple(tap.nearest[i] for tap, i in zip(taps, at, strict=True))]
    best = _score(nearest, found, shares)
    winner = nearest.copy()
    by_nearest = np.ones(len(winner), dtype=bool)
    for candidate in found:
        score = _score(candidate, found, shares)
        better = (score > best) | ((score == best) & ~by_nearest & (candidate < winner))
        by_nearest &= ~(score > best)
        winner[better] = candidate[better]
        best = np.maximum(best, score)
    return winner


def _score(
    label: NDArray[np.generic], found: Sequence[NDArray[np.generic]], shares: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Sum of the shares of the voxels that carry a label."""
    total = np.zeros(len(label))
    for other, share in zip(found, shares, strict=True):
        total += np.where(other == label, share, 0.0)
    return total
