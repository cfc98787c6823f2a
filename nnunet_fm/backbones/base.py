"""What every 2D backbone declares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from nnunet_fm.errors import InvalidValueError

Norm = Literal["all", "last", "none"]
"""Which maps get the backbone's final norm: all, that of the last block only, or none."""

Refine = Callable[[int, Tensor], Tensor]
"""``(index of the block, tokens (B, N, C)) -> tokens``: what an adapter makes of the tokens that leave a block."""

PAIR = 2
"""Heads that take two maps want the last block's and an early one's."""


class Backbone(nn.Module):
    """A 2D encoder that gives the feature maps of its blocks.

    Attributes:
        embed_dim: channels of the last block's map.
        patch_size: edge in pixels that an element of the last map stands for.
        native_size: edge in pixels of the images that the positions of the official file are for.
        depth: number of blocks.
        grid: ``(h, w)`` of the last map.
        early_block: the block whose map heads of two maps want beside the last one's.
        key_to_patch_embed: the submodule that turns pixels into tokens.
        keys_to_in_proj: the layers whose weights depend on the image's channels.
        key_to_lpe: the learned position embedding, if there is one.
        norm: which maps get the final norm where the caller does not say.
        takes_neck: whether the official encoder ends in a neck (SAM's), which then is a part of it.
        neck: applied to the last block's map in place of the final norm, where a network has put one here.
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
        """Takes ``image_size``, the edge in pixels or ``(Y, X)``, and the family's own arguments."""
        super().__init__()
        self.neck = None  # in a class attribute's shadow a submodule would not be found

    @classmethod
    def image_multiple(cls, **arguments: Any) -> int:
        """The number of which an image's edges must be multiples, from the constructor's arguments."""
        return cls.patch_size

    @property
    def default_blocks(self) -> tuple[int, ...]:
        """Blocks in the order in which heads take them: the last one first."""
        return tuple(reversed(range(self.depth)))

    def blocks_for(self, maps: int) -> tuple[int, ...]:
        """Blocks whose maps a head of so many maps takes: the last ones, last first; for two, the last and the early.

        Raises:
            ValueError: for more maps than blocks.
        """
        if maps == PAIR:
            return (self.depth - 1, self.early_block)
        if maps > self.depth:
            raise InvalidValueError(
                f"the head takes the maps of {maps} blocks, but the backbone has {self.depth}", code="head-maps"
            )
        return self.default_blocks[:maps]

    def map_shape(self, block: int) -> tuple[int, tuple[int, int]]:
        """Channels and ``(h, w)`` of a block's map, without a neck."""
        return self.embed_dim, self.grid

    @abstractmethod
    def features(
        self, x: Tensor, blocks: Sequence[int], *, norm: Norm | None = None, refine: Refine | None = None
    ) -> list[Tensor]:
        """Feature maps of normalised images.

        Args:
            x: ``(B, 3, Y, X)`` of the size the backbone was built for.
            blocks: indices of blocks, each once.
            norm: which maps get the final norm; None for the family's own way.
            refine: called after every block; its result goes into the next one. It sees all tokens but the class
                token (with registers, the registers as well, as the official Rein does), row by row.

        Returns:
            One ``(B, channels, h, w)`` per entry of `blocks`, in that order, without class and register tokens.
        """

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of such a backbone for images of another size, under its own names, fitted to this one's."""
        return dict(state_dict)

    @abstractmethod
    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict under this module's names and in its shapes.

        Names that belong to no layer here are passed on as they are, so that a strict load lists them. Tensors that
        stay as they are must be passed on as the same objects, not as copies: the load report counts others as adapted.
        """
