"""Two views of every training image with the same spatial augmentation; only the strong view's intensities change.

Pseudo-labels of the weak view are therefore labels of the strong view, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from torch import Tensor

from nnunet_fm.data.slice_augmentation import GreyLevels


class Double(ImageOnlyTransform):
    """Repeat the image: ``(C, …)`` -> ``(2 C, …)``, weak view first."""

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return torch.cat([img, img])


class OnStrongView(ImageOnlyTransform):
    """Apply a transform to the second half of the channels."""

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        weak, strong = img.chunk(2)
        return torch.cat([weak, self.transform(image=strong.clone())["image"]])


def in_two_views(pipeline: ComposeTransforms, channels: int) -> ComposeTransforms:
    """Training transforms that return two views of an image, ``(C, …)`` -> ``(2 C, …)``, and one segmentation.

    Args:
        pipeline: transforms of images with C channels. Spatial transforms treat all channels alike, so that both views
            move by the same draw; transforms of intensities are applied to the strong view only.
        channels: C.
    """
    return ComposeTransforms([Double(), *_in_two_views(pipeline.transforms, channels)])


def split_views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Weak and strong view ``(B, C, …)`` of a batch ``(B, 2 C, …)``."""
    weak, strong = images.chunk(2, dim=1)
    return weak, strong


def _in_two_views(transforms: Sequence[BasicTransform], channels: int) -> list[BasicTransform]:
    converted: list[BasicTransform] = []
    for transform in transforms:
        if isinstance(transform, GreyLevels):
            inner = _in_two_views(transform.transforms, channels)
            converted.append(GreyLevels(inner, _of_both(transform.symmetric_channels, channels)))
        elif isinstance(transform, MaskImageTransform):
            both = _of_both(transform.apply_to_channels, channels)
            converted.append(MaskImageTransform(both, transform.channel_idx_in_seg, transform.set_outside_to))
        elif _changes_intensities_only(transform):
            converted.append(OnStrongView(transform))
        else:
            converted.append(transform)
    return converted


def _changes_intensities_only(transform: BasicTransform) -> bool:
    if isinstance(transform, RandomTransform):
        return _changes_intensities_only(transform.transform)
    if isinstance(transform, OneOfTransform):
        return all(map(_changes_intensities_only, transform.list_of_transforms))
    if isinstance(transform, ComposeTransforms):
        return all(map(_changes_intensities_only, transform.transforms))
    return isinstance(transform, ImageOnlyTransform)


def _of_both(indices: Sequence[int], channels: int) -> list[int]:
    return [*indices, *(index + channels for index in indices)]
