"""Slices of any size and number of channels for 2D backbones: to three channels, to a square, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation per channel of RGB images in [0, 1], from ImageNet."""

RGB = 3


def channel_stem(input_channels: int) -> nn.Conv2d | None:
    """A learned 1x1 convolution to three channels, initially the mean of all; None for one or three channels."""
    if input_channels in (1, RGB):
        return None
    stem = nn.Conv2d(input_channels, RGB, 1)
    nn.init.constant_(stem.weight, 1 / input_channels)
    nn.init.zeros_(stem.bias)  # type: ignore[arg-type]
    return stem


def to_rgb(x: Tensor, stem: nn.Module | None) -> Tensor:
    """``(B, C, Y, X)`` to ``(B, 3, Y, X)``: one channel is repeated, three stay, others go through `stem`."""
    return x.expand(-1, RGB, -1, -1) if stem is None else stem(x)


def imagenet_normalise(x: Tensor) -> Tensor:
    """Standardise ``(B, 3, Y, X)`` in [0, 1] with the statistics of ImageNet."""
    mean, std = (x.new_tensor(v).view(1, RGB, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def scale_to_unit(x: Tensor) -> Tensor:
    """Scale every image of ``(B, 3, Y, X)`` from its own minimum and maximum to [0, 1]; a constant one becomes 0."""
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-8)


def to_square(x: Tensor, size: int) -> Tensor:
    """Pad ``(B, C, Y, X)`` at its end to a square and resize that to ``(B, C, size, size)``.

    Downsampling averages areas, because bilinear sampling would skip pixels; upsampling is bilinear.
    """
    height, width = x.shape[2:]
    side = max(height, width)
    if height != width:
        x = F.pad(x, (0, side - width, 0, side - height), mode="replicate")
    return resize_square(x, size)


def resize_square(x: Tensor, size: int) -> Tensor:
    """Resize ``(B, C, side, side)`` to ``(B, C, size, size)``, see `to_square`."""
    side = x.shape[-1]
    if side > size:
        return F.interpolate(x, size=(size, size), mode="area")
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False) if side < size else x


def from_square(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `to_square`: bilinear resize of ``(B, K, h, h)`` and crop to ``(B, K, Y, X)``, in float32.

    Args:
        logits: logits of the whole square, at any resolution.
        size: ``(Y, X)`` of the slice before `to_square`.
    """
    height, width = size
    side = max(height, width)
    logits = logits.to(torch.float32)
    if logits.shape[2:] != (side, side):
        logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
    return logits[..., :height, :width]
