"""The ResNet head: residual blocks of recurrent convolutions that upsample the last feature maps step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_fm.heads.base import FeatureMaps, Head
from nnunet_fm.heads.blocks import UpBlock, level_widths


class ResNetHead(Head):
    """Concatenation, 1x1 convolution to `width`, up blocks, channel dropout, 1x1 convolution to logits.

    39,208,143 parameters at 4 x 768 channels and 15 classes. Logits are ``factor ** blocks`` times the grid.

    Args:
        features: channels of each feature map; any grid.
        num_classes: output channels.
        maps: number of feature maps.
        width: channels after the first convolution; more where the last block would have fewer than classes.
        blocks: number of up blocks.
        factor: of each up block, by which the grid grows and the width shrinks.
        steps: how often a recurrent convolution is applied; 1 for plain convolutions.
        dropout: share of channels dropped in training.
    """

    keys_to_classifier: tuple[str, ...] = ("conv_seg",)

    def __init__(
        self,
        features: FeatureMaps,
        num_classes: int,
        *,
        maps: int = 4,
        width: int = 1536,
        blocks: int = 4,
        factor: int = 2,
        steps: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(features, num_classes)
        self.maps = maps
        widths = level_widths(width, blocks, factor, num_classes)
        if widths[0] > width:
            self.keys_to_classifier = ("conv_seg", "in_ch_reducer", "ups")
        self.in_ch_reducer = nn.Conv2d(maps * features.channels, widths[0], 1)
        self.ups = nn.ModuleList(UpBlock(channels, factor, steps) for channels in widths[:-1])
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x = self.in_ch_reducer(torch.cat(list(features), dim=1))
        for up in self.ups:
            x = up(x)
        return [self.conv_seg(self.dropout(x))]
