"""Base class of all 2D backbones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from nnunet_fm.errors import InvalidValueError

Norm = Literal["all", "last", "none"]
"""Which feature maps get the backbone's final norm: all, only that of the last block, or none."""

Refine = Callable[[int, Tensor], Tensor]
"""``(index of the block, tokens (B, N, C)) -> tokens``: refinement of a block's tokens by an adapter."""

PAIR = 2
"""Heads of two feature maps take those of the last block and of `Backbone.early_block`."""


class Backbone(nn.Module):
    """A 2D encoder that returns the feature maps of its blocks.

    Attributes:
        embed_dim: channels of the last block's feature map.
        patch_size: size in pixels of an element of the last feature map.
        native_size: image size in pixels for which the official file has positions.
        depth: number of blocks.
        grid: ``(h, w)`` of the last feature map.
        early_block: block whose feature map heads take beside the last one, if they take two.
        key_to_patch_embed: name of the submodule that embeds patches.
        keys_to_in_proj: names of the layers whose weights depend on the image's channels.
        key_to_lpe: name of the learned position embedding; None without one.
        norm: which feature maps get the final norm by default.
        takes_neck: whether the official encoder ends in a neck, like SAM's.
        neck: module applied to the last feature map instead of the final norm, if a network has set one.
    """

    embed_dim: int
    patch_size: int
    native_size: int = 224
    depth: int
    grid: tuple[int, int]
    early_block: int = 0
    key_to_patch_embed: str
    keys_to_in_proj: tuple[str, ...]
    key_to_lpe: str | None = None
    norm: Norm = "none"
    takes_neck: bool = False
    neck: nn.Module | None

    def __init__(self, **arguments: Any) -> None:
        """Arguments are ``image_size``, in pixels or ``(Y, X)``, and those of the family."""
        super().__init__()
        self.neck = None  # not in the class: a class attribute would hide a submodule registered later

    @classmethod
    def image_multiple(cls, **arguments: Any) -> int:
        """Number of which the image size must be a multiple, for these constructor arguments."""
        return cls.patch_size

    @property
    def default_blocks(self) -> tuple[int, ...]:
        """Blocks in the order in which heads take their feature maps, last first."""
        return tuple(reversed(range(self.depth)))

    def blocks_for(self, maps: int) -> tuple[int, ...]:
        """Blocks for a head of ``maps`` feature maps: the last ones, last first; for two, the last and `early_block`.

        Raises:
            ValueError: for more feature maps than blocks.
        """
        if maps == PAIR:
            return (self.depth - 1, self.early_block)
        if maps > self.depth:
            raise InvalidValueError(
                f"the head takes the maps of {maps} blocks, but the backbone has {self.depth}", code="head-maps"
            )
        return self.default_blocks[:maps]

    def map_shape(self, block: int) -> tuple[int, tuple[int, int]]:
        """Channels and ``(h, w)`` of a block's feature map, before a neck."""
        return self.embed_dim, self.grid

    @abstractmethod
    def features(
        self, x: Tensor, blocks: Sequence[int], *, norm: Norm | None = None, refine: Refine | None = None
    ) -> list[Tensor]:
        """Feature maps of normalised images.

        Args:
            x: ``(B, 3, Y, X)`` of the size the backbone was built for.
            blocks: indices of blocks, each once.
            norm: which feature maps get the final norm; None for the family's default.
            refine: function ``(block, tokens) -> tokens`` that is applied after every block to all tokens but the class
                token. Like the official Rein it also gets register tokens.

        Returns:
            One ``(B, channels, h, w)`` per entry of `blocks`, in that order, without class and register tokens.
        """

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit weights of the same backbone for another image size to this one."""
        return dict(state_dict)

    @abstractmethod
    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert an official state dict to this module's names and shapes.

        Names without a layer are kept, so that loading reports them. Unchanged tensors must stay the same objects: the
        load report counts copies as adapted.
        """
