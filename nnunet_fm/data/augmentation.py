"""Augmentation presets over batchgeneratorsv2 transforms; a recipe names one.

`nnunet_fm.data.presets` is the table of the presets that models were published with. Spatial transforms come first,
image and segmentation alike. Images are ``(C, Z, Y, X)`` or ``(C, Y, X)``; *in plane* means the last two axes, which
are the axial plane of a 3D plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from torch import Tensor

from nnunet_fm.data.affine import AffineTransform
from nnunet_fm.data.blur import BlurTransform
from nnunet_fm.data.presets import ELASTIC_SIGMA, GAMMA_WEIGHTS, PRESETS, SPATIAL_PRESETS, Step
from nnunet_fm.data.slice_augmentation import (
    Chance,
    ElasticTransform,
    GreyLevels,
    MotionTransform,
    PhotometricTransform,
)
from nnunet_fm.errors import InvalidValueError

_SPATIAL = ("rotation", "zoom", "flip", "rot90")


class FlipTransform(MirrorTransform):
    """Flip each axis with a probability; batchgeneratorsv2's mirroring knows only one half."""

    def __init__(self, allowed_axes: tuple[int, ...], probability: float) -> None:
        super().__init__(allowed_axes)
        self.probability = probability

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        return {"axes": [axis for axis in self.allowed_axes if torch.rand(1).item() < self.probability]}


class ShiftTransform(ImageOnlyTransform):
    """Add one offset, drawn uniformly, to all channels; batchgeneratorsv2 draws offsets from a Gaussian."""

    def __init__(self, offset: tuple[float, float]) -> None:
        super().__init__()
        self.offset = offset

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        return {"offset": np.random.uniform(*self.offset)}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img.add_(params["offset"])


class RescaleTransform(ImageOnlyTransform):
    """Multiply some channels and add to them."""

    def __init__(self, channels: Sequence[int], factor: float, offset: float) -> None:
        super().__init__()
        self.channels, self.factor, self.offset = tuple(channels), factor, offset

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        for channel in self.channels:
            img[channel].mul_(self.factor).add_(self.offset)
        return img


class InPlaneAngle:
    """Angle of a rotation in plane; batchgeneratorsv2 calls it once for each axis of rotation."""

    def __init__(self, angle: tuple[float, float]) -> None:
        self.angle = angle

    def __call__(self, image: Tensor, dim: int) -> float:
        in_plane = image.ndim == 3 or dim == 0  # a 2D image has one angle, whatever the axis
        return np.random.uniform(*self.angle) if in_plane else 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.angle})"


def _affine(steps: dict[str, Step], patch: Sequence[int]) -> BasicTransform:
    """Rotation and zoom in one interpolation; cuts the patch out of the larger one that was loaded."""
    nothing = Step("zoom", 0.0, (1.0, 1.0), "")
    rotation, zoom = steps.get("rotation", nothing), steps.get("zoom", nothing)
    return SpatialTransform(
        tuple(patch),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=rotation.probability,
        rotation=InPlaneAngle(rotation.strength),
        p_scaling=zoom.probability,
        scaling=zoom.strength,
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,  # nnU-Net's label of voxels outside the image
    )


def _rot90(step: Step, patch: Sequence[int]) -> BasicTransform:
    """Turn a patch in plane by quarters; by a half where its sizes in plane differ.

    Turns are kept where left and right must not be exchanged: they turn the patient, and mirror nothing.
    """
    axes = (len(patch) - 2, len(patch) - 1)
    turns = (1, 2, 3) if patch[-1] == patch[-2] else (2,)
    return RandomTransform(Rot90Transform(1, turns, set(axes)), step.probability)


def _noise(step: Step, patch: Sequence[int]) -> BasicTransform:
    noise = GaussianNoiseTransform(noise_variance=step.strength, synchronize_channels=True)  # means the deviation
    return RandomTransform(noise, step.probability)


def _smoothing(step: Step, patch: Sequence[int]) -> BasicTransform:
    return RandomTransform(GaussianBlurTransform(step.strength, synchronize_channels=True), step.probability)


def _scale(step: Step, patch: Sequence[int]) -> BasicTransform:
    return RandomTransform(MultiplicativeBrightnessTransform(step.strength, True), step.probability)


def _shift(step: Step, patch: Sequence[int]) -> BasicTransform:
    return RandomTransform(ShiftTransform(step.strength), step.probability)


def _contrast(step: Step, patch: Sequence[int]) -> BasicTransform:
    return RandomTransform(ContrastTransform(step.strength, True, True), step.probability)


def _low_resolution(step: Step, patch: Sequence[int]) -> BasicTransform:
    through_plane = (0,) if len(patch) == 3 else None
    return RandomTransform(SimulateLowResolutionTransform(step.strength, True, True, through_plane), step.probability)


def _gamma(step: Step, patch: Sequence[int]) -> BasicTransform:
    options = {
        "nothing": ComposeTransforms([]),
        "gamma": GammaTransform(step.strength, 0, True, 1, 0),
        "inverted gamma": GammaTransform(step.strength, 1, True, 1, 0),
    }
    return OneOfTransform([options[name] for name, weight in GAMMA_WEIGHTS.items() for _ in range(weight)])


def _slices(steps: Sequence[Step], symmetric_channels: Sequence[int]) -> BasicTransform:
    chances = {step.kind: Chance(step.probability, step.strength) for step in steps}
    return GreyLevels(
        [
            ElasticTransform(chances["elastic"], ELASTIC_SIGMA),
            MotionTransform(chances["translation"], chances["tilt"], chances["resizing"]),
            PhotometricTransform(
                {
                    "brightness": chances["brightness"],
                    "contrast": chances["grey contrast"],
                    "saturation": chances["saturation"],
                    "hue": chances["hue"],
                }
            ),
        ],
        symmetric_channels,
    )


_BUILD: dict[str, Callable[[Step, Sequence[int]], BasicTransform]] = {
    "rot90": _rot90,
    "noise": _noise,
    "smoothing": _smoothing,
    "scale": _scale,
    "shift": _shift,
    "contrast": _contrast,
    "low_resolution": _low_resolution,
    "gamma": _gamma,
}


def preset_transforms(
    preset: str,
    patch_size: Sequence[int],
    symmetric_channels: Sequence[int] = (),
    mirror_axes: Sequence[int] | None = None,
) -> list[BasicTransform]:
    """The transforms of a preset of the table, in their order.

    Args:
        preset: a key of `PRESETS`.
        patch_size: the network's patch, one edge per axis.
        symmetric_channels: channels whose values lie in [-1, 1]. The published strengths are for [0, 1], so these
            channels are brought there and back.
        mirror_axes: axes of the patch that flips may mirror; None: all.

    Raises:
        ValueError: for ``slices`` on a patch that is not 2D.
    """
    steps = PRESETS[preset]
    if preset == "slices":
        if len(patch_size) != 2:
            raise InvalidValueError(
                f"augmentation 'slices' is for 2D patches, not for {len(patch_size)}D ones", code="recipe-dimension"
            )
        return [_slices(steps, symmetric_channels)]
    affine: dict[str, Step] = {step.kind: step for step in steps if step.kind in ("rotation", "zoom")}
    axes = tuple(range(len(patch_size)) if mirror_axes is None else mirror_axes)
    spatial = [
        FlipTransform(axes, s.probability) if s.kind == "flip" else _BUILD[s.kind](s, patch_size)
        for s in steps
        if s.kind in _SPATIAL and s.kind not in affine
    ]
    intensity = [_BUILD[s.kind](s, patch_size) for s in steps if s.kind not in _SPATIAL]
    if affine:
        spatial.insert(0, _affine(affine, patch_size))
    if intensity and symmetric_channels:
        to_unit, back = (RescaleTransform(symmetric_channels, *numbers) for numbers in ((0.5, 0.5), (2, -1)))
        intensity = [to_unit, *intensity, back]
    return [*spatial, *intensity]


def initial_patch_size(preset: str, patch_size: Sequence[int]) -> list[int]:
    """Edges of the patch to load for a preset of the table: larger than the network's where it rotates or zooms.

    In plane a rotation by any angle finds voxels everywhere. As in nnU-Net, what a zoom by more than 1 / 0.85 sees
    beyond the loaded patch is filled with zeros, since loading all of it would take twice the time.
    """
    if preset not in SPATIAL_PRESETS:
        return list(patch_size)
    diagonal = math.hypot(*patch_size[-2:])
    return [math.ceil(edge / 0.85) for edge in (*patch_size[:-2], diagonal, diagonal)]


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


def accelerated(transform: BasicTransform) -> BasicTransform:
    """Put our rotation, scaling and blur in place of batchgeneratorsv2's: same draws, equal results, less time."""
    if type(transform) is SpatialTransform:
        return AffineTransform.like(transform)
    if type(transform) is GaussianBlurTransform:
        return BlurTransform.like(transform)
    if isinstance(transform, ComposeTransforms):
        transform.transforms = [accelerated(part) for part in transform.transforms]
    elif isinstance(transform, RandomTransform):
        transform.transform = accelerated(transform.transform)
    return transform


def with_preset(
    preset: str,
    stock: ComposeTransforms,
    patch_size: Sequence[int],
    symmetric_channels: Sequence[int] = (),
    mirror_axes: Sequence[int] | None = None,
) -> ComposeTransforms:
    """nnU-Net's training transforms with the augmenting ones replaced by a preset.

    What is no augmentation (label handling, masks, regions, deep-supervision targets) is kept, in its order.

    Args:
        preset: ``nnunet`` keeps all; ``light`` and those of `PRESETS` replace rotations, noise, blur, contrast,
            gamma, mirroring.
        stock: the training transforms that nnU-Net builds, of ``nnunet`` with the axes that it may mirror.
        patch_size, symmetric_channels, mirror_axes: see `preset_transforms`.
    """
    if preset == "nnunet":
        return stock
    kept = [t for t in stock.transforms if not _augments(t)]
    if preset == "light":
        own = light_transforms()
    else:
        own = preset_transforms(preset, patch_size, symmetric_channels, mirror_axes)
    return ComposeTransforms([*own, *kept])


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
