"""What every 2D backbone declares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class Backbone(nn.Module):
    """A 2D encoder that gives the feature maps of its blocks.

    Attributes:
        embed_dim: channels of each feature map.
        patch_size: edge of a patch in pixels.
        depth: number of blocks.
        grid: ``(h, w)`` of the feature maps.
        key_to_patch_embed: the submodule that turns pixels into tokens.
        keys_to_in_proj: the layers whose weights depend on the image's channels.
        key_to_lpe: the learned position embedding, if there is one.
    """

    embed_dim: int
    patch_size: int
    depth: int
    grid: tuple[int, int]
    key_to_patch_embed: str
    keys_to_in_proj: tuple[str, ...]
    key_to_lpe: str | None = None

    @property
    def default_blocks(self) -> tuple[int, ...]:
        """Blocks in the order in which heads take them: the last one first."""
        return tuple(reversed(range(self.depth)))

    @abstractmethod
    def features(self, x: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tensor]:
        """Feature maps of normalised images.

        Args:
            x: ``(B, 3, Y, X)`` of the size the backbone was built for.
            blocks: indices of blocks, each once.
            norm: apply the final norm to every map.

        Returns:
            One ``(B, embed_dim, h, w)`` per entry of `blocks`, in that order, without class and register tokens.
        """

    @abstractmethod
    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict under this module's names and in its shapes.

        Names that belong to no layer here are passed on as they are, so that a strict load lists them.
        """
