"""The U-Net head: groups of feature maps are the levels of a U-Net's expanding path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_fm.heads.base import FeatureMaps, Head
from nnunet_fm.heads.blocks import ConvChain, UpBlock, level_widths, upsampling


class UNetHead(Head):
    """Upsample the last group of feature maps, joined at each level with an earlier group upsampled by itself.

    39,101,847 parameters at 10 x 768 channels and 15 classes, 7,873,125 at a width of 240. Logits are
    ``factor ** blocks`` times the grid.

    Args:
        features: channels of each feature map; any grid.
        num_classes: output channels.
        group: feature maps per level; the head takes those of ``blocks + 1`` levels.
        width: channels of the deepest level; more where the last one would have fewer than classes.
        blocks: number of levels above the deepest.
        factor: from level to level, by which the grid grows and the width shrinks.
        steps: how often a recurrent convolution is applied; 1 for plain convolutions.
        dropout: share of channels dropped in training.
    """

    keys_to_classifier: tuple[str, ...] = ("conv_seg",)

    def __init__(
        self,
        features: FeatureMaps,
        num_classes: int,
        *,
        group: int = 2,
        width: int = 576,
        blocks: int = 4,
        factor: int = 2,
        steps: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(features, num_classes)
        self.maps = group * (blocks + 1)
        self.group = group
        widths = level_widths(width, blocks, factor, num_classes)
        if widths[0] > width:
            self.keys_to_classifier = ("conv_seg", "in_ch_reducer", "unet_init_conv", "ups")
        channels = group * features.channels
        self.in_ch_reducer = nn.ModuleList(nn.Conv2d(channels, widths[0], 1) for _ in range(blocks + 1))
        self.unet_init_conv = ConvChain(widths[0], widths[0], steps)
        self.ups = nn.ModuleList(_Level(widths[: block + 1], factor, steps) for block in range(blocks))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x = self.unet_init_conv(self._level(features, 0))
        for index, up in enumerate(self.ups, start=1):
            x = up(x, self._level(features, index))
        return [self.conv_seg(self.dropout(x))]

    def _level(self, features: Sequence[Tensor], index: int) -> Tensor:
        """One feature map ``(B, width, h, w)`` of a level's group; level 0 is the deepest."""
        group = features[index * self.group : (index + 1) * self.group]
        return self.in_ch_reducer[index](torch.cat(list(group), dim=1))


class _Level(nn.Module):
    """Join the upsampled feature map of the level below with a skip, which has one up block for each level.

    Args:
        widths: channels of the levels below, deepest first.
        factor: as for `UNetHead`.
        steps: as for `UNetHead`.
    """

    def __init__(self, widths: Sequence[int], factor: int, steps: int) -> None:
        super().__init__()
        self.up = upsampling(widths[-1], factor)
        self.up_cat = nn.Sequential(*(UpBlock(channels, factor, steps) for channels in widths))
        out_channels = widths[-1] // factor
        self.conv_xn = ConvChain(2 * out_channels, out_channels, steps)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(B, widths[-1], h, w)`` and ``(B, widths[0], h', w')`` -> ``(B, widths[-1] / factor, …)``."""
        return self.conv_xn(torch.cat((self.up_cat(skip), self.up(x)), dim=1))
