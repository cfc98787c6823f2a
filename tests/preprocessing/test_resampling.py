"""Our resampler gives nnU-Net's default result in every branch."""

from __future__ import annotations

import inspect
import tracemalloc

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling import default_resampling

from nnunet_fm.preprocessing.resampling import fm_resample_data_to_shape

TOLERANCE = 1e-4  # of the data's standard deviation
CUBE = (1.0, 1.0, 1.0)
THICK = {0: (5.0, 1.0, 1.0), 1: (1.0, 5.0, 1.0), 2: (1.0, 1.0, 5.0)}


def image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """White noise on a ramp: every frequency, and edges that differ."""
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return noise + np.linspace(-3, 3, shape[-1], dtype=np.float32)


def stock(data: np.ndarray, *args: object, **kwargs: object) -> np.ndarray:
    kwargs.setdefault("force_separate_z", None)
    return default_resampling.resample_data_or_seg_to_shape(data.copy(), *args, **kwargs)


def difference(data: np.ndarray, *args: object, **kwargs: object) -> float:
    before = data.copy()
    ours = fm_resample_data_to_shape(data, *args, **kwargs)
    theirs = stock(data, *args, **kwargs)
    assert np.array_equal(data, before), "the input was changed"
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float(np.abs(ours - theirs).max() / (data.std() or 1.0))  # one voxel has no deviation


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("new", [(7, 30, 11), (23, 9, 40), (14, 13, 28), (1, 26, 13)])
def test_isotropic_equals_stock(order: int, new: tuple[int, ...]) -> None:
    assert difference(image((2, 14, 26, 20)), new, CUBE, CUBE, order=order) < TOLERANCE


@pytest.mark.parametrize("order_z", range(4))
@pytest.mark.parametrize("axis", THICK)
@pytest.mark.parametrize("new", [(9, 12, 21), (4, 25, 8), (12, 7, 30), (6, 30, 31)])
def test_separate_axis_equals_stock(order_z: int, axis: int, new: tuple[int, ...]) -> None:
    data = image((2, 6, 14, 10) if axis == 0 else (1, 14, 6, 10))
    assert difference(data, new, THICK[axis], CUBE, order_z=order_z) < TOLERANCE


def test_separate_axis_also_follows_the_new_spacing_and_the_force_flag() -> None:
    data = image((1, 20, 12, 12))
    assert difference(data, (5, 15, 15), CUBE, THICK[0]) < TOLERANCE
    assert difference(data, (5, 15, 15), THICK[0], CUBE, force_separate_z=False) < TOLERANCE
    assert difference(data, (5, 15, 15), (1.2, 1.0, 1.0), CUBE, force_separate_z=True) < TOLERANCE
    assert difference(data, (5, 15, 15), (2.0, 1.0, 1.0), CUBE, separate_z_anisotropy_threshold=1.5) < TOLERANCE


@pytest.mark.parametrize("seed", range(60))
def test_random_cases_equal_stock(seed: int) -> None:
    """Axes of length one, two-dimensional thickness, growth and shrinkage by up to six, any pair of orders."""
    rng = np.random.default_rng(seed)
    old, new = (tuple(int(e) for e in rng.choice([1, 2, 3, 5, 11, 18, 60], size=3)) for _ in range(2))
    spacings = [tuple(float(s) for s in rng.choice([0.5, 1.0, 1.3, 4.0], size=3)) for _ in range(2)]
    data = image((int(rng.integers(1, 3)), *old), seed)
    assert difference(data, new, *spacings, order=int(rng.integers(0, 4)), order_z=int(rng.integers(0, 4))) < TOLERANCE


@pytest.mark.parametrize("spacing", [CUBE, THICK[0]])
def test_2d_configuration_keeps_the_slices(spacing: tuple[float, ...]) -> None:
    data = image((1, 5, 40, 32))
    target = (spacing[0], 0.7, 0.7)
    assert difference(data, (5, 57, 46), spacing, target) < TOLERANCE
    ours = fm_resample_data_to_shape(data, (5, 57, 46), spacing, target)
    alone = fm_resample_data_to_shape(data[:, 2:3], (1, 57, 46), (9.0, 1.0, 1.0), (9.0, 0.7, 0.7))
    if spacing == THICK[0]:  # slices do not see one another
        assert np.abs(ours[:, 2:3] - alone).max() < 1e-5


def test_a_long_axis_uses_the_band_of_its_matrix() -> None:
    assert difference(image((1, 3, 4, 700)), (3, 4, 911), CUBE, CUBE) < TOLERANCE
    assert difference(image((1, 3, 700, 4)), (3, 300, 4), CUBE, CUBE) < TOLERANCE


def test_result_stays_in_the_range_of_the_input() -> None:
    step = np.zeros((2, 8, 8, 8), dtype=np.float32)
    step[0, 4:], step[1, 4:] = 1, 100
    out = fm_resample_data_to_shape(step, (19, 19, 19), CUBE, CUBE)
    assert out.min() == 0
    assert out[0].max() == 1
    assert out[1].max() == 100


def test_tensors_come_back_as_tensors() -> None:
    data = image((2, 6, 14, 10))
    out = fm_resample_data_to_shape(torch.from_numpy(data), (8, 20, 15), CUBE, CUBE)
    assert isinstance(out, torch.Tensor)
    assert np.array_equal(out.numpy(), fm_resample_data_to_shape(data, (8, 20, 15), CUBE, CUBE))
    half = fm_resample_data_to_shape(torch.from_numpy(data).half(), (8, 20, 15), CUBE, CUBE)
    assert half.dtype == torch.float16
    assert float((half.float() - out).abs().max()) < 0.02


def test_unchanged_shape_returns_the_input() -> None:
    data = image((1, 5, 6, 7))
    assert fm_resample_data_to_shape(data, np.array((5, 6, 7)), THICK[0], CUBE) is data
    tensor = torch.from_numpy(data)
    assert fm_resample_data_to_shape(tensor, (5, 6, 7), THICK[0], CUBE) is tensor


def test_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(C, Z, Y, X\)"):
        fm_resample_data_to_shape(image((5, 6, 7)), (5, 6, 8), CUBE, CUBE)


def test_memory_is_bounded_by_two_channels() -> None:
    data = np.zeros((4, 40, 60, 60), dtype=np.float32)
    out_channel = 50 * 75 * 75 * 4
    tracemalloc.start()
    fm_resample_data_to_shape(data, (50, 75, 75), CUBE, CUBE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (4 + 2) * out_channel * 1.1


def test_signature_takes_what_stock_plans_pass() -> None:
    ours = inspect.signature(fm_resample_data_to_shape).parameters
    assert list(ours) == list(inspect.signature(default_resampling.resample_data_or_seg_to_shape).parameters)
