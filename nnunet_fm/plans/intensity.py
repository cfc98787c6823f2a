"""Which normalisation each channel of a plan gets, in names that nnU-Net looks up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunet_fm.models.card import Intensity
from nnunet_fm.models.plan_key import PlanError

SCHEMES = {
    "zscore": "ZScoreNormalization",
    "ct": "CTNormalization",
    "window": "CTNormalization",
    "percentile": "FMPercentileNormalization",
    "minmax": "RescaleTo01Normalization",
}
"""Card vocabulary -> class name; ``window`` is CTNormalization with edited numbers (see `window_properties`)."""

USER_SCHEMES = ("nonorm", "rescale_to_0_1", "rgb_to_0_1")
"""Channel names of dataset.json with which the user has already chosen a scheme."""


@dataclass(frozen=True)
class Normalization:
    """Normalisation of all channels: class names, mask flags and the intensity numbers they read."""

    schemes: list[str]
    use_mask: list[bool]
    properties: dict[str, dict[str, float]]


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the input channels in their order, under nnU-Net's present key or its former one."""
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def window_properties(properties: Mapping[str, float], window: tuple[float, float]) -> dict[str, float]:
    """Numbers with which nnU-Net's CTNormalization clips to a window in HU and scales it to [0, 1]."""
    low, high = window
    return {**properties, "percentile_00_5": low, "percentile_99_5": high, "mean": low, "std": high - low}


def normalization(
    intensity: Intensity,
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    *,
    portable: bool,
    model: str,
) -> Normalization:
    """Normalisation per channel from the card, the channel names and the fingerprint.

    A channel called ``CT`` takes the card's CT scheme, one whose name asks for a scheme of nnU-Net's gets that,
    every other takes the card's scheme for other modalities. As in nnU-Net, z-scores are taken inside the nonzero
    mask where cropping removed more than a quarter of the image.

    Raises:
        PlanError: if ``portable`` is asked for and the card needs a scheme that stock nnU-Net lacks.
    """
    cropped = fingerprint["median_relative_size_after_cropping"] < 0.75
    schemes, use_mask, properties = [], [], {}
    for index, name in enumerate(channel_names(dataset_json)):
        numbers = dict(fingerprint["foreground_intensity_properties_per_channel"][str(index)])
        if name.casefold() in USER_SCHEMES:
            scheme = get_normalization_scheme(name).__name__
        else:
            wanted = intensity.ct if name.casefold() == "ct" else intensity.other
            scheme = SCHEMES[wanted]
            if wanted == "window" and intensity.window is not None:
                numbers = window_properties(numbers, intensity.window)
        if portable and scheme.startswith("FM"):
            raise PlanError(
                f"'{model}' normalises channel '{name}' with {scheme}, which stock nnU-Net does not have: "
                f"plan with --variant nnunet, or without --portable"
            )
        schemes.append(scheme)
        # CTNormalization and RescaleTo01 ignore the mask; the other two read it.
        use_mask.append(bool(cropped) and scheme in ("ZScoreNormalization", "FMPercentileNormalization"))
        properties[str(index)] = numbers
    return Normalization(schemes, use_mask, properties)
