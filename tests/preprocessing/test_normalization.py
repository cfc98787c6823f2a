"""The normalisers follow nnU-Net's interface; plans name them per channel, portable ones the nearest of nnU-Net's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monai.transforms import ScaleIntensity as MonaiScaleIntensity
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    ImageNormalization,
    RescaleTo01Normalization,
)

from nnunet_fm.models.build import UNIT_RANGE
from nnunet_fm.models.card import Intensity
from nnunet_fm.plans.intensity import Normalization, normalization, window_properties
from nnunet_fm.preprocessing.normalization import (
    AdvancedNormalization,
    FMPercentileNormalization,
    FMSymmetricPercentileNormalization,
    ScaleIntensity,
)
from nnunet_fm.preprocessing.value_ranges import symmetric_channels
from tests.helpers.errors import fails

NUMBERS = {"percentile_00_5": -900.0, "percentile_99_5": 900.0, "mean": 40.0, "std": 80.0}


def percentile(use_mask: bool = False) -> ImageNormalization:
    return FMPercentileNormalization(use_mask_for_norm=use_mask, intensityproperties={})


def of(kind: type[ImageNormalization], use_mask: bool = False) -> ImageNormalization:
    return kind(use_mask_for_norm=use_mask, intensityproperties={})


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(300, 100, size=(6, 30, 30)).astype(np.float32)


def test_percentiles_map_to_zero_and_one(image: np.ndarray) -> None:
    out = percentile().run(image.copy(), np.zeros(image.shape, int))
    p1, p99 = np.percentile(image, [1, 99])
    assert out.dtype == np.float32
    assert np.allclose(out, np.clip((image - p1) / (p99 - p1), 0, 1), atol=1e-5)
    assert out.min() == 0
    assert out.max() == 1
    assert 0.015 < np.mean((out == 0) | (out == 1)) < 0.025


def test_percentiles_of_the_nonzero_region(image: np.ndarray) -> None:
    seg = np.zeros(image.shape, int)
    seg[:, :20] = -1
    image[seg < 0] = 1e6  # must neither count nor survive
    out = percentile(use_mask=True).run(image, seg)
    p1, p99 = np.percentile(image[seg >= 0], [1, 99])
    assert np.all(out[seg < 0] == 0)
    assert np.allclose(out[seg >= 0], np.clip((image[seg >= 0] - p1) / (p99 - p1), 0, 1), atol=1e-5)
    assert not np.any(percentile(use_mask=True).run(image, np.full(image.shape, -1)))
    with pytest.raises(ValueError, match="no segmentation"):
        percentile(use_mask=True).run(image)


@pytest.mark.parametrize("value", [0.0, -1024.0, 3e4])
@pytest.mark.parametrize("nonzero", [0, -1])
def test_constant_images_become_the_floor(value: float, nonzero: int) -> None:
    image = np.full((2, 5, 5), value, dtype=np.float32)
    seg = np.full(image.shape, nonzero)
    assert not np.any(percentile().run(image.copy()))
    assert not np.any(percentile(use_mask=True).run(image.copy(), seg))
    assert not np.any(of(ScaleIntensity).run(image.copy(), seg))
    assert not np.any(of(AdvancedNormalization).run(image.copy(), seg))
    assert np.all(of(FMSymmetricPercentileNormalization).run(image.copy(), seg) == -1)


def test_an_almost_empty_image_keeps_its_content() -> None:
    image = np.zeros((10, 20, 20), dtype=np.float32)
    image[5, 5, 5:8] = (10, 20, 40)
    assert percentile().run(image)[5, 5, 5:8].tolist() == [0.25, 0.5, 1.0]


def test_integers_and_large_offsets() -> None:
    image = np.arange(10_000, 20_001, dtype=np.int16).reshape(1, 1, -1)
    out = percentile().run(image)
    assert out.dtype == np.float32
    assert np.allclose(out[0, 0, [0, 5000, 10_000]], [0, 0.5, 1], atol=1e-4)


def test_stock_ct_normalisation_with_edited_numbers_is_a_window() -> None:
    normaliser = CTNormalization(use_mask_for_norm=False, intensityproperties=window_properties(NUMBERS, (-175, 250)))
    hu = np.array([[[-1024, -175, 37.5, 250, 3000]]], dtype=np.float32)
    assert normaliser.run(hu).ravel().tolist() == [0, 0, 0.5, 1, 1]


def test_the_symmetric_range_is_the_unit_range_stretched(image: np.ndarray) -> None:
    seg = np.zeros(image.shape, int)
    seg[:, :20] = -1
    for use_mask in (False, True):
        unit = percentile(use_mask).run(image.copy(), seg)
        symmetric = of(FMSymmetricPercentileNormalization, use_mask).run(image.copy(), seg)
        assert symmetric.dtype == np.float32 and symmetric.min() == -1 and symmetric.max() == 1
        assert np.allclose(symmetric, 2 * unit - 1, atol=1e-6)


def test_minimum_and_maximum_map_to_zero_and_one(image: np.ndarray) -> None:
    before = image.copy()
    out = of(ScaleIntensity).run(image)
    assert np.array_equal(image, before) and out.dtype == np.float32 and (out.min(), out.max()) == (0, 1)
    assert np.allclose(out, MonaiScaleIntensity()(before).numpy(), atol=1e-6)
    assert np.allclose(out, of(RescaleTo01Normalization).run(image), atol=1e-6)  # what portable plans name
    assert of(ScaleIntensity).run(np.array([[[-3, 0, 1]]], dtype=np.int16)).ravel().tolist() == [0, 0.75, 1]


def test_statistics_of_the_foreground_scale_the_whole_image() -> None:
    rng = np.random.default_rng(1)
    image = np.zeros((10, 40, 40), dtype=np.float32)  # MR: empty background
    image[2:8, 10:30, 10:30] = rng.normal(400, 50, (6, 20, 20))
    image[5, 20, 20] = 1e5
    inside = image[image > 0]
    clipped = np.clip(inside, *np.percentile(inside, [0.5, 99.5]))
    out = of(AdvancedNormalization).run(image.copy())
    assert out.dtype == np.float32
    assert abs(out[image > 0].mean()) < 1e-4 and abs(out[image > 0].std() - 1) < 1e-4
    assert np.allclose(out[0], (clipped.min() - clipped.mean()) / clipped.std(), atol=1e-4)  # not 0: clipped, too
    assert out[5, 20, 20] == out.max() < 4
    # CT: above the darkest voxels; what lies outside nnU-Net's nonzero region does not count
    shifted = image - 1024
    assert np.allclose(of(AdvancedNormalization).run(shifted), out, atol=1e-3)
    seg = np.zeros(image.shape, int)
    seg[:, :20] = -1
    half = of(AdvancedNormalization, use_mask=True).run(image.copy(), seg)
    assert abs(half[(image > 0) & (seg == 0)].mean()) < 1e-4 < abs(half[image > 0].mean())


def test_few_values_keep_their_order() -> None:
    mask = np.zeros((4, 8, 8), dtype=np.uint8)
    mask[1, 2:4, 2:4] = 1  # the foreground holds one value
    out = of(AdvancedNormalization).run(mask)
    assert abs(out.mean()) < 1e-5 and out[1, 2, 2] == out.max() > 0 > out.min() == out[0, 0, 0]
    lone = np.zeros((10, 30, 30), dtype=np.float32)
    lone[5, 5, 5] = 7  # percentiles coincide as well
    assert of(AdvancedNormalization).run(lone)[5, 5, 5] > 0


@pytest.mark.parametrize(
    "normaliser",
    [
        percentile(),
        percentile(use_mask=True),
        of(FMSymmetricPercentileNormalization),
        of(ScaleIntensity),
        of(AdvancedNormalization),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_voxels_are_refused(normaliser: ImageNormalization, bad: float) -> None:
    image = np.zeros((2, 3, 4), dtype=np.float32)
    image[1, 1, 1:3] = bad
    with fails("image-not-finite", "2", "3", "4"):
        normaliser.run(image, np.zeros(image.shape, int))


CHANNELS = ("CT", "PET", "MRI", "nonorm")


def plan(
    intensity: dict[str, Any], portable: bool = False, cropped: float = 1.0, channels: tuple[str, ...] = CHANNELS
) -> Normalization:
    return normalization(
        Intensity(**intensity),
        {"channel_names": {str(i): name for i, name in enumerate(channels)}},
        {
            "median_relative_size_after_cropping": cropped,
            "foreground_intensity_properties_per_channel": {str(i): dict(NUMBERS) for i in range(len(channels))},
        },
        portable=portable,
        model="a_model",
    )


PLANS = [
    ({"ct": "zscore"}, "ZScoreNormalization", "ZScoreNormalization"),
    ({"ct": "ct"}, "CTNormalization", "ZScoreNormalization"),
    ({"ct": "window", "window": (-175, 250), "other": "percentile"}, "CTNormalization", "FMPercentileNormalization"),
    (
        {"ct": "window", "window": (-175, 250), "other": "percentile", "range": (-1, 1)},
        "CTNormalization",
        "FMSymmetricPercentileNormalization",
    ),
    ({"ct": "minmax", "other": "minmax"}, "ScaleIntensity", "ScaleIntensity"),
    ({"ct": "foreground", "other": "foreground"}, "AdvancedNormalization", "AdvancedNormalization"),
    ({"ct": "percentile", "other": "percentile"}, "FMPercentileNormalization", "FMPercentileNormalization"),
]


@pytest.mark.parametrize(("intensity", "ct", "other"), PLANS)
def test_each_channel_gets_its_scheme(intensity: dict[str, Any], ct: str, other: str) -> None:
    planned = plan(intensity, cropped=0.5)
    assert planned.schemes == [ct, other, other, "NoNormalization"] and not planned.reasons
    read_the_mask = {"ZScoreNormalization", "FMPercentileNormalization"}
    assert planned.use_mask == [scheme in read_the_mask for scheme in planned.schemes]
    assert plan(intensity).use_mask == [False] * 4


@pytest.mark.parametrize("scaled", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_window_is_scaled_to_the_range_that_the_weights_saw(scaled: tuple[float, float]) -> None:
    planned = plan({"ct": "window", "window": (-175, 250), "other": "percentile", "range": scaled})
    normaliser = CTNormalization(use_mask_for_norm=False, intensityproperties=planned.properties["0"])
    hu = np.array([[[-1024, -175, 37.5, 250, 3000]]], dtype=np.float32)
    low, high = scaled
    assert np.allclose(normaliser.run(hu).ravel(), [low, low, (low + high) / 2, high, high], atol=1e-6)
    assert planned.properties["1"] == NUMBERS
    assert symmetric_channels(planned.schemes, planned.properties) == ([0, 1, 2] if low else [])


def test_no_other_scheme_is_taken_for_symmetric() -> None:
    planned = plan({"ct": "ct", "other": "foreground"})
    assert symmetric_channels(planned.schemes, planned.properties) == []
    flat = {"0": {**NUMBERS, "std": 0.0}}
    assert symmetric_channels(["CTNormalization"], flat) == []


@pytest.mark.parametrize(("intensity", "ct", "other"), PLANS)
def test_portable_plans_fall_back_and_say_so(intensity: dict[str, Any], ct: str, other: str) -> None:
    nearest = {"ScaleIntensity": "RescaleTo01Normalization"}
    ours = {"ScaleIntensity", "AdvancedNormalization", *(s for s in (ct, other) if s.startswith("FM"))}
    expected = [nearest.get(s, "ZScoreNormalization") if s in ours else s for s in (ct, other, other)]
    planned = plan(intensity, portable=True, cropped=0.5)
    assert planned.schemes == [*expected, "NoNormalization"]
    assert planned.use_mask == [scheme == "ZScoreNormalization" for scheme in planned.schemes]
    said = planned.reasons.get("intensities", "")
    for channel, scheme, instead in zip(CHANNELS, (ct, other, other), expected, strict=False):
        assert (f"channel '{channel}' gets {instead} instead of {scheme}" in said) == (scheme in ours)
    assert ("'a_model'" in said) == bool({ct, other} & ours)


def test_a_network_is_told_which_schemes_give_the_unit_range(image: np.ndarray) -> None:
    for kind in (FMPercentileNormalization, ScaleIntensity, RescaleTo01Normalization):
        out = of(kind).run(image.copy())
        assert kind.__name__ in UNIT_RANGE and (out.min(), out.max()) == (0, 1)
    assert not {"FMSymmetricPercentileNormalization", "AdvancedNormalization"} & UNIT_RANGE


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("zscore", "ZScoreNormalization"),
        ("ZScore", "ZScoreNormalization"),
        ("noNorm", "NoNormalization"),
        ("rescale_to_0_1", "RescaleTo01Normalization"),
        ("rgb_to_0_1", "RGBTo01Normalization"),
    ],
)
def test_a_channel_that_is_called_as_a_normalisation_gets_it(name: str, scheme: str) -> None:
    """Whatever the model's own normalisation is; nnU-Net's names of normalisations are the user's choice."""
    for other in ("percentile", "minmax", "foreground"):
        assert plan({"ct": "ct", "other": other}, channels=("CT", name)).schemes == ["CTNormalization", scheme]


def test_windows_follow_the_numbers_of_channels() -> None:
    """A file that lists channel 1 first does not swap them."""
    fingerprint = {
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": {**NUMBERS, "mean": 1.0}, "1": {**NUMBERS, "mean": 2.0}},
    }
    made = normalization(
        Intensity(ct="ct", other="minmax"),
        {"channel_names": {"1": "PET", "0": "CT"}},
        fingerprint,
        portable=False,
        model="any",
    )
    assert made.schemes == ["CTNormalization", "ScaleIntensity"]
    assert [made.properties[number]["mean"] for number in ("0", "1")] == [1.0, 2.0]
