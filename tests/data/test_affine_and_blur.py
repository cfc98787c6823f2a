"""Our rotation, scaling and blur beside batchgeneratorsv2's: the same draws, and the same results to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from torch.nn.functional import interpolate

from nnunet_fm.data.affine import AffineTransform, sample_labels
from nnunet_fm.data.augmentation import (
    InPlaneAngle,
    accelerated,
    initial_patch_size,
    preset_transforms,
    with_preset,
    without_timing,
)
from nnunet_fm.data.blur import BlurTransform

SEEDS = range(12)
ANGLE = math.pi / 6


def sample(
    shape: Sequence[int], labels: int = 4, channels: int = 1, maps: int = 1, spread: int = 1
) -> dict[str, Tensor]:
    """A smooth image with noise, and label maps of rugged regions with some voxels outside (-1)."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    coarse = [max(2, edge // 5) for edge in shape]
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    smooth = interpolate(torch.randn(1, channels + maps * labels, *coarse, generator=generator), size=shape, mode=mode)
    image = smooth[0, :channels] + 0.1 * torch.randn(channels, *shape, generator=generator)
    scores = smooth[0, channels:].reshape(maps, labels, *shape)
    segmentation = spread * scores.argmax(1).to(torch.int16)
    segmentation[..., :2] = -1
    return {"image": image, "segmentation": segmentation}


def both(stock: Any, own: Any, data: dict[str, Tensor], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results from one random state, which both leave alike."""
    results, states = [], []
    for transform in (stock, own):
        np.random.seed(seed)
        torch.manual_seed(seed)
        results.append(transform(**{key: value.clone() for key, value in data.items()}))
        states.append((np.random.uniform(), torch.rand(1).item()))
    assert states[0] == states[1]
    return results[0], results[1]


def spatial(patch: Sequence[int], **changes: Any) -> SpatialTransform:
    settings: dict[str, Any] = {
        "p_rotation": 0.6,
        "rotation": (-ANGLE, ANGLE),
        "p_scaling": 0.5,
        "scaling": (0.7, 1.4),
        "p_synchronize_scaling_across_axes": 1,
        "border_mode_seg": "constant",
        "padding_value_seg": -1,
    }
    return SpatialTransform(tuple(patch), 0, changes.pop("random_crop", False), **(settings | changes))


CASES: dict[str, tuple[Sequence[int], Sequence[int], dict[str, Any], dict[str, Any]]] = {
    # name: shape, patch, changes of the transform, changes of the sample
    "3D": ((46, 44, 40), (36, 35, 34), {}, {}),
    "3D, far outside": ((20, 24, 22), (40, 36, 30), {"scaling": (1.2, 1.6)}, {}),
    "3D, channels": ((30, 28, 33), (20, 24, 22), {}, {"channels": 3, "maps": 2}),
    "3D, two labels": ((30, 28, 33), (24, 24, 22), {}, {"labels": 2}),
    "3D, high labels": ((30, 28, 33), (24, 24, 22), {}, {"spread": 90}),
    "3D, scaled axis by axis": (
        (40, 40, 40), (28, 30, 36), {"p_rotation": 0, "p_scaling": 0.8, "p_synchronize_scaling_across_axes": 0}, {},
    ),
    "3D, in plane": ((14, 50, 50), (12, 36, 34), {"rotation": InPlaneAngle((-1.5, 1.5))}, {"channels": 2}),
    "3D, about one other axis": ((40, 20, 40), (30, 18, 28), {"rotation": lambda image, dim: 0.4 * (dim == 1)}, {}),
    "3D, anywhere": ((60, 50, 40), (24, 22, 20), {"random_crop": True}, {}),
    "3D, zeros outside": ((26, 24, 20), (26, 25, 24), {"border_mode_seg": "zeros"}, {}),
    "2D": ((80, 70), (64, 60), {"rotation": (-math.pi, math.pi)}, {"channels": 2}),
    "2D, slices as channels": ((90, 90), (64, 60), {"rotation": (-math.pi, math.pi)}, {"channels": 5, "maps": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rotation_and_scaling_are_stocks(name: str) -> None:
    shape, patch, changes, contents = CASES[name]
    stock = spatial(patch, **changes)
    own = AffineTransform.like(stock)
    assert isinstance(own, AffineTransform)
    data = sample(shape, **contents)
    steps = max(data["image"].diff(dim=axis).abs().max().item() for axis in range(1, data["image"].ndim))
    warped = differing = 0
    for seed in SEEDS:
        expected, found = both(stock, own, data, seed)
        assert found["image"].is_contiguous() and found["segmentation"].dtype == torch.int16
        assert (found["image"] - expected["image"]).abs().max() < 1e-3 * steps
        differing += int((found["segmentation"] != expected["segmentation"]).sum())
        np.random.seed(seed)
        warped += stock.get_parameters(image=data["image"])["affine"] is not None
    assert warped > 3 and differing <= 2e-5 * len(SEEDS) * expected["segmentation"].numel()


def test_a_sample_that_is_not_warped_is_cut_out() -> None:
    stock = spatial((10, 12, 14), p_rotation=0, p_scaling=0)
    expected, found = both(stock, AffineTransform.like(stock), sample((15, 18, 20)), 0)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("label", [-1, 0, 3])
def test_one_label_everywhere(label: int) -> None:
    data = {"image": torch.zeros(1, 12, 12, 12), "segmentation": torch.full((1, 12, 12, 12), label, dtype=torch.int16)}
    stock = spatial((14, 14, 14), p_rotation=1, p_scaling=1)
    for seed in range(4):
        expected, found = both(stock, AffineTransform.like(stock), data, seed)
        assert torch.equal(expected["segmentation"], found["segmentation"])


def test_half_way_between_voxels_the_nearest_settles_as_in_stock() -> None:
    """Points exactly between two voxels, everywhere: all boundaries are ties."""
    for shape in ((13, 14, 15), (14, 15, 12)):
        data = sample(shape, labels=3)
        patch = tuple(edge - 1 for edge in shape)
        for rotation in (0.0, math.pi):  # turned, rounding errors differ
            stock = spatial(patch, p_rotation=1, p_scaling=1, rotation=rotation, scaling=1)
            expected, found = both(stock, AffineTransform.like(stock), data, 0)
            if rotation == 0:
                assert torch.equal(expected["segmentation"], found["segmentation"])
            else:
                assert (expected["segmentation"] == found["segmentation"]).float().mean() > 0.9
    labels = torch.arange(6, dtype=torch.int16)[None, :, None].expand(1, 6, 6)
    points = [torch.tensor([[1.5], [2.5], [3.5], [4.5]]), torch.arange(4.0)[None]]  # nearest: the even one of the two
    assert sample_labels(labels, points, (4, 4), -1)[0, :, 0].tolist() == [2, 2, 4, 4]


def test_what_is_not_done_here_stays_stocks() -> None:
    for change in (
        {"p_elastic_deform": 0.1},
        {"mode_seg": "nearest"},
        {"seg_tiebreak": "lowest"},
        {"border_mode_seg": "border"},
        {"padding_mode_image": "border"},
        {"align_corners": True},
    ):
        stock = spatial((4, 4), **change)
        assert AffineTransform.like(stock) is stock


@pytest.mark.parametrize("shape", [(14, 17, 20), (30, 24)])
@pytest.mark.parametrize("synchronize", [False, True])
@pytest.mark.parametrize("sigma", [(0.5, 1.0), (0.8, 2.0)])
def test_blur_is_stocks(shape: tuple[int, ...], synchronize: bool, sigma: tuple[float, float]) -> None:
    stock = GaussianBlurTransform(sigma, synchronize_channels=synchronize, p_per_channel=0.5)
    own = BlurTransform.like(stock)
    changed = 0
    for seed in SEEDS:
        data = {"image": torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))}
        if synchronize and not (torch.manual_seed(seed), torch.rand(3) < 0.5)[1].any():
            continue  # stock's convolution refuses no channels
        expected, found = both(stock, own, data, seed)
        torch.testing.assert_close(found["image"], expected["image"], rtol=1e-5, atol=2e-6)
        untouched = (expected["image"] == data["image"]).flatten(1).all(1)
        assert torch.equal(found["image"][untouched], data["image"][untouched])
        changed += int((~untouched).sum())
    assert changed > 10


def nnunets(patch: Sequence[int], dummy_2d: bool, **changes: Any) -> ComposeTransforms:
    arguments: dict[str, Any] = {"use_mask_for_norm": [False], "foreground_labels": [1, 2, 3]} | changes
    scales = [[1.0] * len(patch), [0.5] * len(patch)]
    angle = math.pi if dummy_2d or len(patch) == 2 else ANGLE
    axes = tuple(range(len(patch)))
    return nnUNetTrainer.get_training_transforms(patch, (-angle, angle), scales, axes, dummy_2d, **arguments)


PIPELINES: dict[str, tuple[Sequence[int], Sequence[int], bool, dict[str, Any], dict[str, Any]]] = {
    # name: loaded, patch, dummy 2D, arguments, sample
    "3D": ((38, 36, 40), (28, 26, 24), False, {}, {"channels": 2}),
    "3D, anisotropic": ((8, 60, 56), (8, 40, 36), True, {}, {"channels": 2}),
    "2D": ((60, 64), (40, 48), False, {}, {"channels": 3}),
    "regions, ignore label, mask": (
        (30, 36, 34), (24, 26, 24), False,
        {"regions": [(1, 2), 2], "ignore_label": 3, "use_mask_for_norm": [True]}, {},
    ),
    "cascade": ((30, 36, 34), (24, 26, 24), False, {"is_cascaded": True}, {"maps": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_nnunets_pipeline_gives_the_same_samples(name: str) -> None:
    """All of nnU-Net's transforms, targets of deep supervision included, from the same seeds."""
    loaded, patch, dummy_2d, arguments, contents = PIPELINES[name]
    stock = without_timing(nnunets(patch, dummy_2d, **arguments))
    own = accelerated(nnunets(patch, dummy_2d, **arguments))
    kinds = [type(getattr(part, "transform", part)) for part in own.transforms]
    assert {AffineTransform, BlurTransform} <= set(kinds) and not {SpatialTransform, GaussianBlurTransform} & set(kinds)
    data = sample(loaded, **contents)
    data["segmentation"][data["segmentation"] < 0] = -1 if name != "cascade" else 0
    far = voxels = labels = 0
    for seed in SEEDS:
        expected, found = both(stock, own, data, seed)
        scale = expected["image"].std()
        far += int(((found["image"] - expected["image"]).abs() > 5e-3 * scale).sum())
        voxels += expected["image"].numel()
        assert [target.shape for target in found["segmentation"]] == [t.shape for t in expected["segmentation"]]
        labels += sum(int((a != b).sum()) for a, b in zip(found["segmentation"], expected["segmentation"], strict=True))
    assert far <= 1e-5 * voxels and labels <= 2e-5 * voxels


@pytest.mark.parametrize(
    ("preset", "patch"), [("suprem", (8, 20, 24)), ("spad_official", (6, 24, 20)), ("spad", (24, 30))]
)
def test_presets_give_the_same_samples(preset: str, patch: tuple[int, ...]) -> None:
    data = sample(initial_patch_size(preset, patch))
    stock, own = (ComposeTransforms(preset_transforms(preset, patch)) for _ in range(2))
    own = accelerated(own)
    differing = 0
    for seed in SEEDS:
        expected, found = both(stock, own, data, seed)
        torch.testing.assert_close(found["image"], expected["image"], rtol=1e-3, atol=1e-3)
        differing += int((found["segmentation"] != expected["segmentation"]).sum())
    assert differing <= 3e-5 * len(SEEDS) * expected["segmentation"].numel()


def test_a_training_uses_them_and_the_stock_trainer_does_not() -> None:
    from nnunet_fm.trainers.stock import fm_trainer_stock

    stock = fm_trainer_stock.get_training_transforms(
        (8, 8, 8), (-ANGLE, ANGLE), None, (0, 1, 2), False, use_mask_for_norm=[False]
    )
    assert type(stock.transforms[0]) is SpatialTransform
    assert type(with_preset("nnunet", stock, (8, 8, 8)).transforms[0]) is SpatialTransform
    assert type(accelerated(stock).transforms[0]) is AffineTransform
