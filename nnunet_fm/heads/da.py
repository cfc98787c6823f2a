"""The dual attention head of DANet (Fu et al., CVPR 2019, arXiv 1809.02983)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.heads.base import FeatureMaps, Head
from nnunet_fm.heads.blocks import ConvNormReLU


class DAHead(Head):
    """Attention among positions and attention among channels, summed; names as in MMSegmentation.

    24,351,791 parameters at 4 x 768 channels and 15 classes, 6,944,687 with 120 channels. The count includes a
    classifier per branch, which is idle here: it is for an auxiliary loss.

    Args:
        features: channels of each feature map; any grid.
        num_classes: output channels.
        maps: number of feature maps.
        channels: width of both branches.
        pam_channels: width of the queries and keys of positions; None for `channels`.
        dropout: share of channels dropped in training.
    """

    keys_to_classifier = ("conv_seg", "pam_conv_seg", "cam_conv_seg")
    find_unused_parameters = True

    def __init__(
        self,
        features: FeatureMaps,
        num_classes: int,
        *,
        maps: int = 4,
        channels: int = 384,
        pam_channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(features, num_classes)
        self.maps = maps
        self.pam_in_conv = ConvNormReLU(maps * features.channels, channels, 3)
        self.pam = _PositionAttention(channels, pam_channels or channels)
        self.pam_out_conv = ConvNormReLU(channels, channels, 3)
        self.pam_conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.cam_in_conv = ConvNormReLU(maps * features.channels, channels, 3)
        self.cam = _ChannelAttention()
        self.cam_out_conv = ConvNormReLU(channels, channels, 3)
        self.cam_conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        positions, channels = self.branches(features)
        return [self.conv_seg(self.dropout(positions + channels))]

    def branches(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Outputs of the position branch and of the channel branch, ``(B, channels, h, w)`` each."""
        x = torch.cat(list(features), dim=1)
        positions = self.pam_out_conv(self.pam(self.pam_in_conv(x)))
        return positions, self.cam_out_conv(self.cam(self.cam_in_conv(x)))


class _Scale(nn.Module):
    """One learned factor, zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _PositionAttention(nn.Module):
    """Attention among all positions, with unscaled logits: ``(B, C, h, w)`` -> same shape."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query_project = nn.Conv2d(channels, key_channels, 1)
        self.key_project = nn.Conv2d(channels, key_channels, 1)
        self.value_project = nn.Conv2d(channels, channels, 1)
        self.gamma = _Scale()

    def forward(self, x: Tensor) -> Tensor:
        projections = (self.query_project, self.key_project, self.value_project)
        query, key, value = (project(x).flatten(2).transpose(1, 2) for project in projections)
        return self.gamma(_attend(query, key, value).transpose(1, 2).view_as(x)) + x


class _ChannelAttention(nn.Module):
    """Attention of every channel to the least similar channels: ``(B, C, h, w)`` -> same shape.

    The paper's softmax of (largest similarity of the row - similarity) equals the softmax of the negative similarity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = _Scale()

    def forward(self, x: Tensor) -> Tensor:
        channels = x.flatten(2)
        return self.gamma(_attend(-channels, channels, channels).view_as(x)) + x


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Unscaled attention, ``(B, N, d)`` -> ``(B, N, d)``; a fused kernel, where it exists, stores no N x N matrix."""
    query, key, value = (t.contiguous().unsqueeze(1) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)
