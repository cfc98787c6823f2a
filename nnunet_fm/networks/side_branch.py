"""A second backbone beside the first, for the adapter ``ladder``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nnunet_fm.backbones.base import PAIR, Backbone
from nnunet_fm.networks.slices import imagenet_normalise, resize_square


class Branch(nn.Module):
    """A second backbone with a feature map for each of the first one's, from the same relative depth.

    Args:
        backbone: the second backbone.
        blocks: blocks of the first backbone whose feature maps the head takes.
        beside: the first backbone.
        normalise: whether images are in [0, 1], and are standardised here by ImageNet's statistics.

    Attributes:
        channels: channels of the feature maps.
    """

    def __init__(self, backbone: Backbone, blocks: Sequence[int], beside: Backbone, *, normalise: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalise = normalise
        self.channels = backbone.embed_dim
        if len(blocks) == PAIR:
            self.blocks = backbone.blocks_for(PAIR)
        else:
            # Round halves up. Python's round() goes to even, so that blocks would be spread unevenly.
            own, theirs = backbone.depth, beside.depth
            self.blocks = tuple(max((2 * (b + 1) * own + theirs) // (2 * theirs), 1) - 1 for b in blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Square images ``(B, 3, Y, X)`` -> feature maps ``(B, channels, h, w)``, last block first."""
        x = resize_square(x, self.backbone.grid[0] * self.backbone.patch_size)
        if self.normalise:
            x = imagenet_normalise(x)
        distinct = sorted(set(self.blocks))
        maps = dict(zip(distinct, self.backbone.features(x, distinct), strict=True))
        return [maps[block] for block in self.blocks]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict of the backbone under this module's names."""
        return {f"backbone.{name}": tensor for name, tensor in self.backbone.from_official(state_dict).items()}
