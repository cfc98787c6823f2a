"""A small trained backbone beside the frozen one (ladder side tuning for SAM, Chai et al., arXiv 2306.12737)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters import DEFAULT_BRANCH
from nnunet_fm.adapters.base import Adaptable, with_backbone
from nnunet_fm.adapters.freeze import freeze


class Ladder(nn.Module):
    """Mix each feature map of a backbone with one of a second branch, by a learned gate.

    Args:
        branch: module from images ``(B, 3, Y, X)`` to a feature map ``(B, channels, h, w)`` for each of the backbone's.
        branch_channels: channels of each feature map of the branch.
        big_channels: channels of each feature map of the backbone; if they differ, a 1x1 convolution and a batch norm
            convert those of the branch.
    """

    def __init__(self, branch: nn.Module, branch_channels: Sequence[int], big_channels: Sequence[int]) -> None:
        super().__init__()
        self.branch = branch
        self.necks_y2_ch = nn.ModuleList(map(_neck, branch_channels, big_channels))
        self.alpha = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in big_channels)

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Images and the backbone's feature maps -> mixed feature maps in the shapes of the backbone's."""
        return self.mix(maps, self.branch(x))

    def mix(self, big: Sequence[Tensor], small: Sequence[Tensor]) -> list[Tensor]:
        """Mix feature maps ``(B, big_channels, h, w)`` and ``(B, branch_channels, h', w')`` pair by pair."""
        mixed = []
        for ours, theirs, neck, alpha in zip(big, small, self.necks_y2_ch, self.alpha, strict=True):
            gate = torch.sigmoid(alpha)
            mixed.append(gate * ours + (1 - gate) * _resize(neck(theirs), ours.shape[-2:]))
        return mixed

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert an official state dict of the branch's backbone; gates and necks start anew."""
        converted: dict[str, Tensor] = self.branch.from_official(state_dict)  # type: ignore[operator]
        return {f"branch.{name}": tensor for name, tensor in converted.items()}


def _neck(channels: int, to_channels: int) -> nn.Module:
    if channels == to_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, to_channels, 1), nn.BatchNorm2d(to_channels))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, C, h', w')`` to ``(B, C, h, w)``: downsampling averages areas, upsampling is bilinear."""
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] > size[0]:
        return F.interpolate(x, size=tuple(size), mode="area")
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def ladder(network: Adaptable, *, branch: str = DEFAULT_BRANCH) -> None:
    """Freeze the backbone, and train the head, a second backbone, and the gates that mix the feature maps of both.

    A neck that officially belongs to the backbone (SAM's) moves there from the head, and is frozen with it.

    Args:
        network: changed in place.
        branch: name of the second backbone.

    Raises:
        ValueError: for a network without a backbone and a head, or an unknown branch.
    """
    target = with_backbone(network, "ladder")
    if target.backbone.takes_neck and target.head.neck is not None:
        target.neck_to_backbone()
    freeze(target)
    second = target.second_branch(branch)
    channels = _channels(target.backbone, len(target.blocks))
    target.ladder = Ladder(second, [second.channels] * len(channels), channels)


def _channels(backbone: Any, maps: int) -> list[int]:
    """Channels of each feature map of a backbone that may have a neck, last block first."""
    channels = [int(backbone.embed_dim)] * maps
    if backbone.neck is not None:
        channels[0] = int(backbone.neck[0].out_channels)
    return channels
