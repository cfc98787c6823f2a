"""The all-MLP head of SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203), for feature maps of one grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_fm.heads.base import FeatureMaps, Head
from nnunet_fm.heads.blocks import ConvNormReLU


class SegFormerHead(Head):
    """A 1x1 convolution for each map, one for their concatenation, channel dropout, 1x1 convolution to logits.

    4,737,807 parameters at 4 x 768 channels and 15 classes.

    Args:
        features: channels of each feature map; any grid.
        num_classes: output channels.
        maps: number of feature maps.
        channels: width of the convolutions; None for that of the feature maps.
        dropout: share of channels dropped in training.
    """

    keys_to_classifier = ("conv_seg",)

    def __init__(
        self,
        features: FeatureMaps,
        num_classes: int,
        *,
        maps: int = 4,
        channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(features, num_classes)
        self.maps = maps
        channels = channels or features.channels
        self.convs = nn.ModuleList(ConvNormReLU(features.channels, channels, 1) for _ in range(maps))
        self.fusion_conv = ConvNormReLU(maps * channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x = torch.cat([conv(feature) for conv, feature in zip(self.convs, features, strict=True)], dim=1)
        return [self.conv_seg(self.dropout(self.fusion_conv(x)))]
