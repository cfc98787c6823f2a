"""Bring the feature maps of all stages of a convolutional backbone to the shape of the last one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.backbones.base import Backbone


class Align(nn.Module):
    """Bring a feature map to the channels and grid of the last stage: 1x1 convolution, norm, area mean."""

    def __init__(self, channels: int, to_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, to_channels, 1)
        self.norm = nn.BatchNorm2d(to_channels)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.norm(self.conv(x)), size=self.grid, mode="area")


def alignment(backbone: Backbone, blocks: Sequence[int]) -> nn.ModuleDict:
    """An `Align` for each block whose feature map differs in shape from the last one, by its index in ``blocks``."""
    own = (backbone.embed_dim, backbone.grid)
    shapes = [backbone.map_shape(block) for block in blocks]
    return nn.ModuleDict({str(i): Align(c, *own) for i, (c, grid) in enumerate(shapes) if (c, grid) != own})
