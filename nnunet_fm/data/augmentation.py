"""Augmentation presets over batchgeneratorsv2 transforms; a recipe names one."""

from __future__ import annotations

from collections.abc import Iterator

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

SPATIAL_PRESETS = frozenset({"nnunet"})
"""Presets that rotate and scale, and therefore need patches larger than the network's to cut from."""


def light_transforms() -> list[BasicTransform]:
    """Noise and brightness only: for short trainings, where little is gained by more and a processor has no time."""
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    brightness = MultiplicativeBrightnessTransform(
        multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1
    )
    return [RandomTransform(noise, apply_probability=0.15), RandomTransform(brightness, apply_probability=0.15)]


def without_timing(transform: BasicTransform) -> BasicTransform:
    """Make every blur choose its method by size instead of by a timing, so that a seeded run can be repeated."""
    for part in _walk(transform):
        if isinstance(part, GaussianBlurTransform):
            part.benchmark = False
    return transform


def with_preset(preset: str, stock: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's training transforms with the augmenting ones replaced by a preset.

    What is no augmentation (label handling, masks, regions, deep-supervision targets) is kept, in its order.

    Args:
        preset: ``nnunet`` keeps all, ``light`` and ``none`` replace rotations, noise, blur, contrast, gamma, mirroring.
        stock: the training transforms that nnU-Net builds.
    """
    if preset == "nnunet":
        return stock
    kept = [t for t in stock.transforms if not _augments(t)]
    return ComposeTransforms([*(light_transforms() if preset == "light" else []), *kept])


def _augments(transform: BasicTransform) -> bool:
    name = type(transform).__name__
    if name == "RandomTransform":
        inner = type(transform.transform).__module__
        return ".nnunet." not in inner  # cascade transforms of nnU-Net are wrapped, too, and are kept
    return name in ("SpatialTransform", "MirrorTransform", "Convert3DTo2DTransform", "Convert2DTo3DTransform")


def _walk(transform: BasicTransform) -> Iterator[BasicTransform]:
    yield transform
    for inner in getattr(transform, "transforms", []) or []:
        yield from _walk(inner)
    if getattr(transform, "transform", None) is not None:
        yield from _walk(transform.transform)
