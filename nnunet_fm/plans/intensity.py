"""Choice of each channel's normalisation, as names of nnU-Net's and our classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)

from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.models.card import Intensity
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.intensities import doubt_of_foreground, fault_of_foreground

SCHEMES = {
    "zscore": "ZScoreNormalization",
    "ct": "CTNormalization",
    "window": "CTNormalization",
    "percentile": "FMPercentileNormalization",
    "minmax": "ScaleIntensity",
    "foreground": "AdvancedNormalization",
}
"""Card vocabulary -> class name; ``window`` is CTNormalization with edited numbers (see `window_properties`)."""

STOCK = {
    "ScaleIntensity": "RescaleTo01Normalization",  # the same mathematics
    "AdvancedNormalization": "ZScoreNormalization",
    "FMPercentileNormalization": "ZScoreNormalization",
    "FMSymmetricPercentileNormalization": "ZScoreNormalization",
}
"""Class of ours -> the nearest class of stock nnU-Net."""

MASKED = frozenset({"ZScoreNormalization", "FMPercentileNormalization"})
"""Classes that use nnU-Net's nonzero mask."""

SCALED = "_0_to_1"
"""End of the name of a channel that a converter has clipped to percentiles and scaled to [0, 1]."""

USER_SCHEMES = frozenset(channel_name_to_normalization_mapping) - {"ct"}
"""Channel names of dataset.json that choose a scheme of nnU-Net: ``zscore``, …"""


@dataclass(frozen=True)
class Normalization:
    """Normalisation of all channels.

    Attributes:
        schemes: class name of each channel.
        use_mask: whether each channel is normalised inside the nonzero mask.
        properties: intensity statistics of each channel, by its number.
        reasons: subject -> sentence about a portable plan's differences from the card.
    """

    schemes: list[str]
    use_mask: list[bool]
    properties: dict[str, dict[str, float]]
    reasons: dict[str, str] = field(default_factory=dict)


def window_properties(
    properties: Mapping[str, float], window: tuple[float, float], scaled: tuple[float, float] = (0.0, 1.0)
) -> dict[str, float]:
    """Statistics with which nnU-Net's CTNormalization clips to a window in HU and maps it to the range ``scaled``."""
    low, high = window
    std = (high - low) / (scaled[1] - scaled[0])
    return {**properties, "percentile_00_5": low, "percentile_99_5": high, "mean": low - scaled[0] * std, "std": std}


def check_foreground(dataset_json: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str | None:
    """Sentences on channels whose foreground intensities do not fit their names; None if all fit.

    Raises:
        PlanError: for intensities that are NaN, infinite or too large.
    """
    doubts = []
    for index, name in enumerate(channel_names(dataset_json)):
        numbers = fingerprint["foreground_intensity_properties_per_channel"][str(index)]
        if fault := fault_of_foreground(numbers):
            raise PlanError(
                f"channel {index} '{name}': {fault}. Rescale these images, and extract the fingerprint anew",
                code="intensities-invalid",
            )
        if doubt := doubt_of_foreground(name, numbers):
            doubts.append(f"channel {index} {doubt}")
    return "; ".join(doubts) or None


def normalization(
    intensity: Intensity,
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    *,
    portable: bool,
    model: str,
) -> Normalization:
    """Choose the normalisation of each channel from the card, the channel names and the fingerprint.

    A channel called ``CT`` gets the card's CT scheme, a channel with the name of a scheme of nnU-Net gets that scheme,
    and every other channel the card's scheme for other modalities. Percentiles are not taken twice (`SCALED`). Like in
    nnU-Net, z-scores are taken inside the nonzero mask if cropping removed more than a quarter of the image. A
    ``portable`` plan gets the nearest schemes of stock nnU-Net.
    """
    cropped = fingerprint["median_relative_size_after_cropping"] < 0.75
    schemes, use_mask, properties, replaced = [], [], {}, []
    for index, name in enumerate(channel_names(dataset_json)):
        numbers = dict(fingerprint["foreground_intensity_properties_per_channel"][str(index)])
        if name.casefold() in USER_SCHEMES:
            scheme = get_normalization_scheme(name).__name__
        else:
            wanted = intensity.ct if name.casefold() == "ct" else intensity.other
            if wanted == "percentile" and intensity.range == (0.0, 1.0) and name.endswith(SCALED):
                wanted = "minmax"  # percentiles of clipped values would clip once more
            scheme = SCHEMES[wanted]
            if wanted == "percentile" and intensity.range == (-1.0, 1.0):
                scheme = "FMSymmetricPercentileNormalization"
            if wanted == "window" and intensity.window is not None:
                numbers = window_properties(numbers, intensity.window, intensity.range)
        if portable and scheme in STOCK:
            replaced.append(f"channel '{name}' gets {STOCK[scheme]} instead of {scheme}")
            scheme = STOCK[scheme]
        schemes.append(scheme)
        use_mask.append(bool(cropped) and scheme in MASKED)
        properties[str(index)] = numbers
    reasons = {}
    if replaced:
        reasons["intensities"] = f"stock nnU-Net lacks a normalisation of '{model}': {'; '.join(replaced)}"
    return Normalization(schemes, use_mask, properties, reasons)
