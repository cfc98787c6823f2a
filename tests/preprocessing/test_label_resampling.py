"""Our resampler of label maps gives exactly nnU-Net's default result, ties included."""

from __future__ import annotations

import inspect
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.resampling import default_resampling

from nnunet_fm.preprocessing.label_resampling import fm_resample_seg_to_shape
from nnunet_fm.preprocessing.resampling import fm_resample_data_to_shape

DATA = Path(__file__).parents[1] / "images"
CUBE = (1.0, 1.0, 1.0)
THICK = {0: (5.0, 1.0, 1.0), 1: (1.0, 5.0, 1.0), 2: (1.0, 1.0, 5.0)}


def assert_equals_stock(
    seg: np.ndarray, new: tuple[int, ...], *spacings: tuple[float, ...], order: int = 1, order_z: int = 0
) -> np.ndarray:
    before = seg.copy()
    ours = fm_resample_seg_to_shape(seg, new, *spacings, order=order, order_z=order_z)
    assert np.array_equal(seg, before), "the input was changed"
    theirs = default_resampling.resample_data_or_seg_to_shape(
        before, new, *spacings, is_seg=True, order=order, order_z=order_z, force_separate_z=None
    )
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs), f"{(ours != theirs).sum()} of {ours.size} voxels differ"
    return ours


def noise(shape: tuple[int, ...], labels: int = 5, seed: int = 0) -> np.ndarray:
    """A label drawn for each voxel, -1 among them: every voxel lies at a surface."""
    return np.random.default_rng(seed).integers(-1, labels, size=shape).astype(np.int16)


def real(name: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(DATA / f"{name}_labels.nii.gz"))[None].astype(np.int16)


@pytest.mark.parametrize("seed", range(150))
def test_random_maps(seed: int) -> None:
    """Axes of length one, growth and shrinkage, thick axes, noise and blocks, gaps between the labels, all types."""
    rng = np.random.default_rng(seed)
    old, new = (tuple(int(e) for e in rng.choice([1, 2, 3, 4, 5, 8, 11, 12, 18, 25], size=3)) for _ in range(2))
    spacings = [tuple(float(s) for s in rng.choice([0.5, 1.0, 1.3, 4.0], size=3)) for _ in range(2)]
    seg = noise((int(rng.integers(1, 3)), *old), int(rng.integers(0, 9)), seed) * rng.choice([1, 7])
    if rng.random() < 0.5:
        seg = seg.repeat(3, 2).repeat(3, 3)[:, :, : old[1], : old[2]]
    dtype = rng.choice([np.int8, np.int16, np.int32, np.float32])
    assert_equals_stock(seg.astype(dtype), new, *spacings, order=int(rng.random() < 0.8))


@pytest.mark.parametrize("order_z", (0, 1))
@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("spacing", [CUBE, *THICK.values()])
def test_every_order_and_axis(order: int, order_z: int, spacing: tuple[float, ...]) -> None:
    seg = noise((1, 7, 8, 6), 3).repeat(2, 2)
    assert_equals_stock(seg, (10, 11, 9), spacing, CUBE, order=order, order_z=order_z)
    assert_equals_stock(seg, (4, 9, 12), CUBE, spacing, order=order, order_z=order_z)


@pytest.mark.parametrize("name", ("ct_spine", "mr"))
@pytest.mark.parametrize("factor", (0.5, 0.533, 0.8, 1.25, 2.0))
def test_real_maps(name: str, factor: float) -> None:
    seg = real(name)
    new = tuple(round(factor * edge) for edge in seg.shape[1:])
    ours = assert_equals_stock(seg, new, CUBE, CUBE)
    assert len(np.unique(ours)) == len(np.unique(seg))
    for axis, spacing in THICK.items():
        along = tuple(edge if i == axis else n for i, (edge, n) in enumerate(zip(seg.shape[1:], new, strict=True)))
        assert_equals_stock(seg, new, spacing, CUBE)
        assert_equals_stock(seg, along, spacing, spacing)  # as a 2D plan: slices stay
    assert_equals_stock(seg[:, 9:10], (1, *new[1:]), (999.0, 1.0, 1.0), (999.0, 2.0, 2.0))


def test_ties_go_to_the_nearest_voxel_and_else_to_the_smallest_label() -> None:
    """Halving puts each new voxel amid eight: stock's rules for equal scores decide all of them."""
    checkers = (np.indices((8, 12, 10)).sum(axis=0) % 2)[None].astype(np.int8)
    assert_equals_stock(checkers, (4, 6, 5), CUBE, CUBE)
    assert_equals_stock(noise((1, 16, 16, 16), 3), (8, 8, 8), CUBE, CUBE)
    outvoted = np.array([3, 1, 1, 1, 2, 2, 2, 3], np.int8).reshape(1, 2, 2, 2)
    assert assert_equals_stock(outvoted, (1, 1, 1), CUBE, CUBE).item() == 1


def test_edges_are_continued() -> None:
    """Beyond the first and the last voxel stock adds two shares of the same one, which moves a tie by a last bit."""
    seg = np.array([1, 2, 2, 1], np.int8).reshape(1, 2, 2, 1)
    for edge in range(2, 40):
        assert_equals_stock(seg, (4, edge, 11), CUBE, CUBE)


def test_the_function_for_images_passes_label_maps_on() -> None:
    seg, args = noise((1, 6, 9, 7)), ((8, 12, 5), CUBE, CUBE)
    ours = fm_resample_data_to_shape(seg, *args, is_seg=True, order=1)
    assert np.array_equal(ours, fm_resample_seg_to_shape(seg, *args))


def test_tensors_come_back_as_tensors() -> None:
    seg, args = noise((2, 6, 9, 7)), ((8, 12, 5), CUBE, CUBE)
    out = fm_resample_seg_to_shape(torch.from_numpy(seg), *args)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.int16
    assert np.array_equal(out.numpy(), fm_resample_seg_to_shape(seg, *args))


def test_unchanged_shape_returns_the_input() -> None:
    seg = noise((1, 4, 5, 6))
    assert fm_resample_seg_to_shape(seg, (4, 5, 6), THICK[0], CUBE) is seg


def test_memory_is_that_of_the_result_and_of_a_few_planes() -> None:
    seg = real("mr").repeat(3, 1)
    new = (80, 120, 150)
    tracemalloc.start()
    out = fm_resample_seg_to_shape(seg, new, CUBE, CUBE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * out.nbytes


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(C, Z, Y, X\)"):
        fm_resample_seg_to_shape(noise((4, 5, 6)), (4, 5, 7), CUBE, CUBE)
    with pytest.raises(ValueError, match="label maps"):
        fm_resample_seg_to_shape(noise((1, 4, 5, 6)), (4, 5, 7), CUBE, CUBE, is_seg=False)


def test_signature_takes_what_stock_plans_pass() -> None:
    ours = inspect.signature(fm_resample_seg_to_shape).parameters
    assert list(ours) == list(inspect.signature(default_resampling.resample_data_or_seg_to_shape).parameters)
