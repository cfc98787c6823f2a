"""A second backbone beside the first, as the ladder adapter trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nnunet_fm.backbones.base import PAIR, Backbone
from nnunet_fm.networks.slices import imagenet_normalise, resize_square


class Branch(nn.Module):
    """A second backbone beside another one: it gives a map for each of the other's, from the same relative depth.

    Args:
        backbone: this branch's.
        blocks: the blocks of the other backbone that the head takes.
        beside: the other backbone.
        normalise: whether images are in [0, 1] and get ImageNet's mean and standard deviation here.

    Attributes:
        channels: channels of its maps.
    """

    def __init__(self, backbone: Backbone, blocks: Sequence[int], beside: Backbone, *, normalise: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalise = normalise
        self.channels = backbone.embed_dim
        if len(blocks) == PAIR:
            self.blocks = backbone.blocks_for(PAIR)
        else:
            # halves go up: Python's round() would send three blocks of 24 to one of 12, and one to the next
            own, theirs = backbone.depth, beside.depth
            self.blocks = tuple(max((2 * (b + 1) * own + theirs) // (2 * theirs), 1) - 1 for b in blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Square images ``(B, 3, Y, X)`` -> maps ``(B, channels, h, w)``, last block first."""
        edge = self.backbone.grid[0] * self.backbone.patch_size
        x = resize_square(x, edge)
        if self.normalise:
            x = imagenet_normalise(x)
        distinct = sorted(set(self.blocks))
        maps = dict(zip(distinct, self.backbone.features(x, distinct), strict=True))
        return [maps[block] for block in self.blocks]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict of the backbone under this module's names."""
        return {f"backbone.{name}": tensor for name, tensor in self.backbone.from_official(state_dict).items()}
