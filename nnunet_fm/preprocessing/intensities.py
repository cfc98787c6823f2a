"""Intensities that a network cannot use, or that are not those it was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.errors import FMError

SAMPLE = 100_000
"""Voxels that are looked at before all are."""
TOO_LARGE = 1e15
"""Absolute value whose square, summed over an image, is beyond float32."""
AIR = -500
"""HU below which only air and lung are; other modalities have no such values."""
SHIFTED = 500
"""Mean of labelled structures above which CT was stored without its shift of 1024 HU."""


class OverflowingImageError(FMError, ValueError):
    """A channel's intensities are too large to be normalised."""

    code = "intensities-too-large"


def is_constant(image: NDArray[np.number]) -> bool:
    """Whether all voxels of an image have one value."""
    voxels = image.reshape(-1)
    sample = voxels[:: max(1, voxels.size // SAMPLE)]
    return bool(sample.min() == sample.max() and voxels.min() == voxels.max())


def why_constant(raw: NDArray[np.number], channel: int) -> str:
    """Reason why a channel has one value after its normalisation.

    Args:
        raw: the channel before it.
        channel: its number.

    Raises:
        OverflowingImageError: if float32 cannot hold the sums over its intensities.
    """
    low, high = float(raw.min()), float(raw.max())
    if TOO_LARGE < max(abs(low), abs(high)) < math.inf:
        raise OverflowingImageError(
            f"channel {channel} has intensities from {low:g} to {high:g}, too large to be normalised: rescale the image"
        )
    if low == high:
        return f"channel {channel} has the value {low:g} everywhere"
    return f"channel {channel} is the same everywhere after normalisation, which clips its {low:g} to {high:g}"


def unlike_training(name: str, numbers: Mapping[str, Any], image: NDArray[np.number]) -> str | None:
    """Reason to think that a channel is of another modality than the training images; None without one.

    A sample of its voxels is looked at: those of another modality are many.

    Args:
        name: of the model's channel.
        numbers: intensities of the labelled structures in training, of the plan.
        image: the channel as it was read.
    """
    trained = numbers.get("min")
    if not isinstance(trained, (int, float)):
        return None
    voxels = image.reshape(-1)
    low = float(voxels[:: max(1, voxels.size // SAMPLE)].min())
    if name.casefold() != "ct":
        return (
            f"intensities down to {low:g} look like HU of CT, but the model was trained on '{name}' from {trained:g} on"
            if low < AIR < trained
            else None
        )
    if low >= 0 > trained and float(voxels.min()) >= 0:
        return "no intensity is below 0, but the model was trained on CT in HU, where air is -1000"
    return None


def fault_of_foreground(numbers: Mapping[str, Any]) -> str | None:
    """Fault of a channel's intensities in the labelled structures; None where all is well."""
    if wrong := [key for key, value in numbers.items() if isinstance(value, (int, float)) and not math.isfinite(value)]:
        return f"{wrong[0]} is {numbers[wrong[0]]}: intensities are NaN, infinite or too large to be summed up"
    large = [float(numbers[key]) for key in ("min", "max") if abs(numbers.get(key, 0)) > TOO_LARGE]
    return f"intensities such as {large[0]:g} are too large to be summed up" if large else None


def doubt_of_foreground(name: str, numbers: Mapping[str, Any]) -> str | None:
    """Reason to doubt the name of a channel; None without one."""
    low, high, mean = (numbers.get(key) for key in ("min", "max", "mean"))
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and isinstance(mean, (int, float))):
        return None
    if low == high:
        return f"has the value {low:g} in all labelled voxels"
    if name.casefold() == "ct" and low >= 0 and (mean > SHIFTED or high <= 255):
        return f"is called CT, but its labelled voxels have {low:g} to {high:g}: no HU"
    lowest = numbers.get("percentile_00_5", 0)
    if name.casefold() != "ct" and isinstance(lowest, (int, float)) and lowest < AIR:
        return f"is called '{name}', but has labelled voxels of {lowest:g}, as CT in HU: if it is CT, call it 'CT'"
    return None
