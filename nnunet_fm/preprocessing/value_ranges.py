"""Channels of a plan whose values lie in a known range after normalisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nnunet_fm.models.build import UNIT_RANGE


def symmetric_channels(schemes: Sequence[str], properties: Mapping[str, Mapping[str, float]]) -> list[int]:
    """The channels of a plan whose values lie in [-1, 1], by their normalisation."""
    return _in_range(schemes, properties, (-1, 1), frozenset({"FMSymmetricPercentileNormalization"}))


def unit_channels(schemes: Sequence[str], properties: Mapping[str, Mapping[str, float]]) -> list[int]:
    """The channels of a plan whose values lie in [0, 1], by their normalisation."""
    return _in_range(schemes, properties, (0, 1), UNIT_RANGE)


def _in_range(
    schemes: Sequence[str],
    properties: Mapping[str, Mapping[str, float]],
    wanted: tuple[float, float],
    known: frozenset[str],
) -> list[int]:
    """Channels of a scheme that is known to scale to a range, or whose window is scaled to it."""
    return [
        index
        for index, scheme in enumerate(schemes)
        if scheme in known or (scheme == "CTNormalization" and _scales_to(properties[str(index)], wanted))
    ]


def _scales_to(numbers: Mapping[str, float], wanted: tuple[float, float]) -> bool:
    if numbers["std"] <= 0:
        return False
    scaled = ((numbers[bound] - numbers["mean"]) / numbers["std"] for bound in ("percentile_00_5", "percentile_99_5"))
    return all(math.isclose(value, edge, abs_tol=1e-6) for value, edge in zip(scaled, wanted, strict=True))
