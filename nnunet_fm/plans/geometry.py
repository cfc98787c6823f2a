"""Axes, spacing and patch of a plan, from the headers, the fingerprint and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnunet_fm.io.untrusted import RECORD_ENTRIES, ForeignFileError, read_json
from nnunet_fm.models.build import legal_patch
from nnunet_fm.models.card import ModelCard
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.plans.plan import Decision

AXES = {"z": 0, "y": 1, "x": 2, "0": 0, "1": 1, "2": 2}
"""Name of an image axis -> index into (z, y, x)."""

PLANES = {"axial": "SI", "coronal": "AP", "sagittal": "LR"}
"""Name of a plane -> the two directions in the patient of the axis across it."""

THICK_RATIO = 1.25
"""Ratio of the two largest median spacings above which the axis of the largest gets the coarse target spacing."""

MIN_RESAMPLED_SIZE = 32
"""Fewest voxels along an axis that a target spacing makes coarser."""


UPSAMPLED = 2.0
"""Smallest factor on the number of voxels for which a plan has a note on upsampling."""


def slice_axis(given: object, orientations: Mapping[str, int]) -> int:
    """The axis across the slices as an index into (z, y, x).

    Args:
        given: an index, the name of an axis, or that of a plane of the patient.
        orientations: axis codes of the training images (see `dataset_orientations`) with counts.

    Raises:
        ValueError: for anything else, or a plane that is not the same axis in all images.
    """
    word = str(given).lower()
    if word in AXES:
        return AXES[word]
    if word not in PLANES:
        raise ValueError(f"is {given!r}, legal are 0, 1, 2 (index into z, y, x), {_words(AXES)}, {_words(PLANES)}")
    # Axis codes name x, y, z.
    found = {2 - next(i for i, letter in enumerate(codes) if letter in PLANES[word]) for codes in orientations}
    if len(found) != 1:
        seen = ", ".join(f"{count} {codes}" for codes, count in orientations.items())
        why = f"differ in their axes ({seen})" if found else "have no direction"
        raise ValueError(f"is {given!r}, but the training images {why}: legal are 0, 1, 2 or {_words(AXES)}")
    return found.pop()


def read_conversion(file: Path) -> dict[str, Any]:
    """Read the file that a converter has written beside the raw data; empty without the file.

    Raises:
        PlanError: if the file is no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = read_json(file, RECORD_ENTRIES)
    except ForeignFileError as error:
        raise PlanError(str(error), code=error.code) from None
    if not isinstance(content, dict):
        raise PlanError(f'{file} holds no JSON object such as {{"slice_axis": "y"}}', code="conversion-form")
    return content


def converter_slice_axis(file: Path, orientations: Mapping[str, int]) -> int | None:
    """The slice axis that a converter has written beside the raw data; None without the file or such an entry.

    Raises:
        PlanError: if the file is no JSON object, or names no legal axis.
    """
    given = read_conversion(file).get("slice_axis")
    try:
        return None if given is None else slice_axis(given, orientations)
    except ValueError as error:
        raise PlanError(f"{file}: slice_axis {error}", code="slice-axis") from None


def orient_spacing(target: Sequence[float], median: Sequence[float]) -> list[float]:
    """Assign the coarsest target spacing to the thick axis of the data, in mm, order (z, y, x).

    The thick axis is that of the largest median spacing if it exceeds the next by more than `THICK_RATIO`, otherwise z.
    The other values keep their order.
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
    return [round(size) for size in np.median(np.vstack(resampled), axis=0)]


def card_spacing(
    target: Sequence[float],
    native: Sequence[float],
    shapes: Sequence[Sequence[int]],
    spacings: Sequence[Sequence[float]],
    origin: str,
) -> Decision[list[float]]:
    """Choose the target spacing of a 3D plan: the card's, unless that leaves less than `MIN_RESAMPLED_SIZE` voxels.

    Args:
        target: the card's spacing in mm (z, y, x), not yet oriented.
        native: spacing in mm by nnU-Net's rule.
        shapes: image shapes after cropping to nonzero, one per case.
        spacings: their spacings in mm.
        origin: where ``target`` comes from.
    """
    wanted = orient_spacing(target, np.median(np.vstack(spacings), axis=0).tolist())
    here = median_shape(shapes, spacings, native)
    there = median_shape(shapes, spacings, wanted)
    lost = [axis for axis in range(3) if there[axis] < here[axis] and there[axis] < MIN_RESAMPLED_SIZE]
    if not lost:
        return Decision(wanted, origin)
    reason = (
        f"{_mm(wanted)} would leave a median image of {_voxels(there)} voxels (native: {_voxels(here)}), "
        f"fewer than {MIN_RESAMPLED_SIZE} along axis {', '.join(str(a) for a in lost)}: "
        f"kept the data's own {_mm(native)}"
    )
    return Decision([float(s) for s in native], "data", {"spacing": reason})


def upsampling_note(spacings: Sequence[Sequence[float]], target: Sequence[float]) -> str | None:
    """A sentence on the factor on the number of voxels at the target spacing; None below `UPSAMPLED`.

    Args:
        spacings: spacings of images in mm.
        target: target spacing of all three axes in mm, in the same order.
    """
    times = np.median(np.prod(np.array(spacings) / np.array(target), axis=1))
    if times < UPSAMPLED:
        return None
    native = np.median(np.vstack(spacings), axis=0).tolist()
    return (
        f"the target spacing {_mm(target)} makes {times:.1f} times as many voxels of an image of {_mm(native)}, with "
        "no more detail: preprocessing, training and prediction cost as much more (--spacing native keeps their own)"
    )


def wanted_patch(card: ModelCard, patch: Sequence[int], image: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Limit a patch to the median image, and round it up to a legal size.

    Args:
        card: the model.
        patch: wanted size in voxels.
        image: median image shape in voxels at the target spacing, same axes.
        spacing: target spacing in mm, same axes.
    """
    return legal_patch(card, [min(p, i) for p, i in zip(patch, image, strict=True)], spacing)[0]


def nnunet_patch(image: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """nnU-Net's first guess of a patch: 256³ (2048² in 2D) voxels of isotropic extent in mm, clipped to the image."""
    inverse = 1 / np.asarray(spacing)
    volume = 256**3 if len(spacing) == 3 else 2048**2
    scale = (volume / np.prod(inverse)) ** (1 / len(spacing))
    return [min(round(e), i) for e, i in zip(inverse * scale, image, strict=True)]


def shrink_patch(
    card: ModelCard, patch: Sequence[int], image: Sequence[int], spacing: Sequence[float]
) -> tuple[int, ...] | None:
    """The next smaller legal patch, one step less along the axis that is largest relative to the image.

    Returns:
        The smaller patch; None if every axis has the smallest legal size.
    """
    relative = np.argsort([-p / i for p, i in zip(patch, image, strict=True)], kind="stable")
    for axis in relative:
        for size in range(patch[axis] - 1, card.network.min_edge - 1, -1):
            smaller = [size if a == axis else p for a, p in enumerate(patch)]
            if legal_patch(card, smaller, spacing)[0] == smaller:
                return tuple(smaller)
    return None


def _mm(spacing: Sequence[float]) -> str:
    return "×".join(f"{s:g}" for s in spacing) + " mm"


def _voxels(shape: Sequence[int]) -> str:
    return "×".join(str(s) for s in shape)


def _words(table: Mapping[str, object]) -> str:
    return ", ".join(word for word in table if word.isalpha())
