"""The linear head: one 1x1 convolution on the last feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_fm.heads.base import FeatureMaps, Head


class LinearHead(Head):
    """Concatenation, batch norm, channel dropout, 1x1 convolution; 52,239 parameters at 4 x 768 channels, 15 classes.

    Args:
        features: channels of each feature map; any grid.
        num_classes: output channels.
        maps: number of feature maps.
        dropout: share of channels dropped in training.
    """

    keys_to_classifier = ("conv_seg",)

    def __init__(self, features: FeatureMaps, num_classes: int, *, maps: int = 4, dropout: float = 0.1) -> None:
        super().__init__(features, num_classes)
        self.maps = maps
        self.batch_norm = nn.BatchNorm2d(maps * features.channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(maps * features.channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.conv_seg(self.dropout(self.batch_norm(torch.cat(list(features), dim=1))))]
