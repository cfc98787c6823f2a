"""The normalisers follow nnU-Net's interface and bring images into [0, 1]."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ImageNormalization

from nnunet_fm.data.normalization import FMPercentileNormalization
from nnunet_fm.plans.intensity import window_properties

NUMBERS = {"percentile_00_5": -900.0, "percentile_99_5": 900.0, "mean": 40.0, "std": 80.0}


def percentile(use_mask: bool = False) -> ImageNormalization:
    return FMPercentileNormalization(use_mask_for_norm=use_mask, intensityproperties={})


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
def test_constant_image_becomes_zero(value: float) -> None:
    image = np.full((2, 5, 5), value, dtype=np.float32)
    assert not np.any(percentile().run(image.copy()))
    assert not np.any(percentile(use_mask=True).run(image.copy(), np.zeros(image.shape, int)))


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


@pytest.mark.parametrize("normaliser", [percentile(), percentile(use_mask=True)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_voxels_are_refused(normaliser: ImageNormalization, bad: float) -> None:
    image = np.zeros((2, 3, 4), dtype=np.float32)
    image[1, 1, 1:3] = bad
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) holds 2 voxels that are NaN or infinite"):
        normaliser.run(image, np.zeros(image.shape, int))
