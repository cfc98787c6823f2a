"""Spacing, orientation of axes and patch of a plan, from the fingerprint and the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnunet_fm.models.build import legal_patch
from nnunet_fm.models.card import ModelCard

THICK_RATIO = 1.25
"""The coarse value of a target spacing goes to the axis whose median spacing exceeds the next by more than this."""

MIN_RESAMPLED_EDGE = 32
"""A target spacing may not leave fewer voxels than this along an axis that it makes coarser."""


ENLARGED = 2.0
"""Factor of the number of voxels from which a plan says that it resamples images to more of them."""


@dataclass(frozen=True)
class Choice:
    """A planned value, where it comes from (see `nnunet_fm.planfile.schema.PlanKey`), and why."""

    value: list[float]
    origin: str
    reason: str = ""


def orient_spacing(target: Sequence[float], median: Sequence[float]) -> list[float]:
    """Give the coarsest target value to the thick axis of the data, in mm, order (z, y, x).

    The thick axis is the one of largest median spacing if that exceeds the next by more than `THICK_RATIO`,
    otherwise z. The other values keep their order.
    """
    order = np.argsort(median)[::-1]
    thick = int(order[0]) if median[order[0]] > THICK_RATIO * median[order[1]] else 0
    coarse = int(np.argmax(target))
    rest = [float(t) for i, t in enumerate(target) if i != coarse]
    return [*rest[:thick], float(target[coarse]), *rest[thick:]]


def median_shape(
    shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]], target: Sequence[float]
) -> list[int]:
    """Median image shape in voxels once every image has the target spacing (mm), order (z, y, x)."""
    resampled = [compute_new_shape(shape, spacing, target) for shape, spacing in zip(shapes, spacings, strict=True)]
    return [round(edge) for edge in np.median(np.vstack(resampled), axis=0)]


def choose_spacing(
    target: Sequence[float],
    native: Sequence[float],
    shapes: Sequence[Sequence[int]],
    spacings: Sequence[Sequence[float]],
    origin: str,
) -> Choice:
    """Target spacing of a 3D plan: the card's, unless that would destroy the data.

    Args:
        target: the card's spacing in mm (z, y, x), not yet oriented.
        native: the spacing that the data themselves suggest (nnU-Net's rule), in mm.
        shapes: image shapes after cropping to nonzero, one per case.
        spacings: their spacings in mm.
        origin: where ``target`` comes from.
    """
    wanted = orient_spacing(target, np.median(np.vstack(spacings), axis=0).tolist())
    here = median_shape(shapes, spacings, native)
    there = median_shape(shapes, spacings, wanted)
    lost = [axis for axis in range(3) if there[axis] < here[axis] and there[axis] < MIN_RESAMPLED_EDGE]
    if not lost:
        return Choice(wanted, origin)
    reason = (
        f"{_mm(wanted)} would leave a median image of {_voxels(there)} voxels (native: {_voxels(here)}), "
        f"fewer than {MIN_RESAMPLED_EDGE} along axis {', '.join(str(a) for a in lost)}: "
        f"kept the data's own {_mm(native)}"
    )
    return Choice([float(s) for s in native], "data", reason)


def enlargement(spacings: Sequence[Sequence[float]], target: Sequence[float]) -> str | None:
    """How many more voxels images have at the target spacing (mm), in words; None up to `ENLARGED` times.

    Args:
        spacings: of images in mm.
        target: of all three axes, in the same order.
    """
    times = np.median(np.prod(np.array(spacings) / np.array(target), axis=1))
    if times < ENLARGED:
        return None
    native = np.median(np.vstack(spacings), axis=0).tolist()
    return (
        f"the target spacing {_mm(target)} makes {times:.1f} times as many voxels of an image of {_mm(native)}, with "
        "no more detail: preprocessing, training and prediction cost as much more (--spacing native keeps their own)"
    )


def wanted_patch(card: ModelCard, patch: Sequence[int], image: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """The patch of the card, no larger than the median image needs, rounded up to what the network takes.

    Args:
        card: the model.
        patch: wanted edges in voxels.
        image: median image shape in voxels at the target spacing, same axes.
        spacing: target spacing in mm, same axes.
    """
    edges = [min(p, i) for p, i in zip(patch, image, strict=True)]
    return legal_patch(card, edges, spacing)[0]


def nnunet_patch(image: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """nnU-Net's first guess of a patch: 256³ (2048² in 2D) voxels of isotropic extent in mm, clipped to the image."""
    inverse = 1 / np.asarray(spacing)
    volume = 256**3 if len(spacing) == 3 else 2048**2
    scale = (volume / np.prod(inverse)) ** (1 / len(spacing))
    return [min(round(e), i) for e, i in zip(inverse * scale, image, strict=True)]


def shrink_patch(
    card: ModelCard, patch: Sequence[int], image: Sequence[int], spacing: Sequence[float]
) -> tuple[int, ...] | None:
    """The next smaller legal patch: one step less along the axis that is largest relative to the image.

    Returns:
        The smaller patch, or None if every axis has reached the smallest legal edge.
    """
    relative = np.argsort([-p / i for p, i in zip(patch, image, strict=True)], kind="stable")
    for axis in relative:
        for edge in range(patch[axis] - 1, card.network.min_edge - 1, -1):
            smaller = [edge if a == axis else p for a, p in enumerate(patch)]
            if legal_patch(card, smaller, spacing)[0] == smaller:
                return tuple(smaller)
    return None


def _mm(spacing: Sequence[float]) -> str:
    return "×".join(f"{s:g}" for s in spacing) + " mm"


def _voxels(shape: Sequence[int]) -> str:
    return "×".join(str(s) for s in shape)
