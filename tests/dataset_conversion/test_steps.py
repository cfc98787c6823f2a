"""Steps of conversion: bias field, intensities, pixel size."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_fm.dataset_conversion import steps
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.io.volume import Grid, Volume
from tests.helpers.convert_tester import rotation_z


def test_n4_removes_a_bias_field() -> None:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    inside = (z**2 + y**2 + x**2) < 0.8
    field = np.exp(0.5 * x + 0.3 * y)
    array = (inside * 100 * field + np.random.default_rng(0).normal(0, 1, inside.shape)).astype(np.float32)
    corrected = steps.n4(Volume(array, Grid((24, 24, 24), (4.0, 4.0, 4.0)))).array

    def variation(image: np.ndarray) -> float:
        return float(image[inside].std() / image[inside].mean())

    assert variation(array) > 0.2 and variation(corrected) < 0.4 * variation(array)


def test_intensities() -> None:
    array = np.random.default_rng(0).normal(500, 100, (10, 20, 30)).astype(np.float64)
    grid = Grid((30, 20, 10), (1.0, 1.0, 1.0))
    percentile = steps.normalise(Volume(array, grid), "percentile").array
    low, high = np.percentile(array, (1, 99))
    assert np.allclose(percentile, np.clip((array - low) / (high - low), 0, 1), atol=1e-5)
    assert percentile.dtype == np.float32
    score = steps.normalise(Volume(array, grid), "zscore").array
    assert np.allclose(score, (array - array.min()) / (array.max() - array.min()), atol=1e-5)
    for how in ("percentile", "zscore"):
        assert not steps.normalise(Volume(np.full((2, 2, 2), 7), Grid((2, 2, 2), (1.0, 1.0, 1.0))), how).array.any()  # type: ignore[arg-type]


def test_slices_get_the_pixel_size_and_edge_about_the_same_centre() -> None:
    grid = Grid((40, 30, 20), (1.0, 1.0, 4.0), (5.0, 6.0, 7.0), rotation_z(0.3))
    label = np.zeros(grid.shape, np.uint8)
    label[8:12, 10:20, 15:25] = 1  # a box about the centre, 10 x 10 mm in the plane
    for axis, expected in ((0, Grid((64, 64, 20), (0.5, 0.5, 4.0))), (1, Grid((64, 30, 64), (0.5, 1.0, 0.5)))):
        volume = steps.thesis_plane(Volume(label, grid), axis, Thesis("percentile", 64, 0.5), label=True)
        assert (volume.grid.size, volume.grid.spacing) == (expected.size, expected.spacing)
        middle = (np.array([volume.grid.size]) - 1) / 2
        assert np.allclose(grid.indices_of(middle, volume.grid), (np.array(grid.size) - 1) / 2)
        millimetres = np.count_nonzero(volume.array) * np.prod(volume.grid.spacing)
        assert millimetres == pytest.approx(4 * 10 * 10 * 4, rel=0.1)
    stretched = steps.plane_grid(grid, 0, 10, None)
    assert stretched.spacing == (4.0, 3.0, 4.0) and stretched.size == (10, 10, 20)
