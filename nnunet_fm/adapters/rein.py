"""Learned tokens that refine the patch tokens after every block (Rein, Wei et al., arXiv 2312.04265)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters.base import Adaptable, with_backbone
from nnunet_fm.adapters.freeze import freeze
from nnunet_fm.errors import InvalidValueError


class Rein(nn.Module):
    """Learned tokens for each block, to which patch tokens attend; parameters have their official names.

    Args:
        depth: number of blocks.
        width: channels C of the patch tokens.
        patch_size: size in pixels of a patch, on which the range of the initial tokens depends.
        tokens: number of learned tokens per block.
        rank: None to learn the tokens themselves, a number to learn factors of this rank (Rein-LoRA).
        scale: initial value of the learned factor on the refinements of all blocks.
        query_link: whether to have the two idle layers of `queries`.
        query_width: channels of a query.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        patch_size: int,
        *,
        tokens: int = 100,
        rank: int | None = None,
        scale: float = 0.001,
        query_link: bool = True,
        query_width: int = 256,
    ) -> None:
        super().__init__()
        self.find_unused_parameters = query_link
        if rank is None:
            self.learnable_tokens = nn.Parameter(torch.empty(depth, tokens, width))
        else:
            self.learnable_tokens_a = nn.Parameter(torch.empty(depth, tokens, rank))
            self.learnable_tokens_b = nn.Parameter(torch.empty(depth, rank, width))
        bound = math.sqrt(6 / (3 * patch_size**2 + (width if rank is None else math.sqrt(rank * width))))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.mlp_token2feat = nn.Linear(width, width)
        self.mlp_delta_f = nn.Linear(width, width)
        if query_link:
            self.transform = nn.Linear(width, query_width)
            self.merge = nn.Linear(3 * query_width, query_width)

    def forward(self, block: int, x: Tensor) -> Tensor:
        """Refine the patch tokens ``(B, N, C)`` of a block.

        The first learned token gets attention but has no value, so that a patch can stay unchanged.
        """
        tokens = self.tokens(block)
        attention = F.softmax(x @ tokens.T / math.sqrt(x.shape[-1]), dim=-1)
        values = self.mlp_token2feat(tokens[1:])
        return x + self.scale * self.mlp_delta_f(attention[..., 1:] @ values + x)

    def tokens(self, block: int | slice) -> Tensor:
        """Learned tokens ``(tokens, C)`` of a block, or ``(blocks, tokens, C)`` of several."""
        if hasattr(self, "learnable_tokens"):
            return self.learnable_tokens[block]
        return self.learnable_tokens_a[block] @ self.learnable_tokens_b[block]

    def queries(self) -> Tensor:
        """Object queries ``(tokens, query_width)`` of the official model, for a Mask2Former decoder; unused here."""
        of_blocks = self.transform(self.tokens(slice(None)))
        pooled = torch.stack((of_blocks.amax(dim=0), of_blocks.mean(dim=0), of_blocks[-1]), dim=-1)
        return cast(Tensor, self.merge(pooled.flatten(1)))


def rein(
    network: Adaptable, *, tokens: int = 100, rank: int | None = None, scale: float = 0.001, query_link: bool = True
) -> None:
    """Freeze the backbone, and train the head and a refinement of the tokens after every block.

    The head gets feature maps without the backbone's final norm, like in the official code. ``query_link=False`` leaves
    out two idle layers, which published parameter counts include.

    Raises:
        ValueError: for a network without a backbone of blocks of one width.
    """
    target = with_backbone(network, "rein")
    backbone = target.backbone
    if any(backbone.map_shape(block)[0] != backbone.embed_dim for block in range(backbone.depth)):
        raise InvalidValueError(
            "the adapter 'rein' needs a backbone whose blocks all have one width", code="adapter-width"
        )
    freeze(target)
    target.feature_norm = "none"
    target.rein = Rein(
        backbone.depth,
        backbone.embed_dim,
        backbone.patch_size,
        tokens=tokens,
        rank=rank,
        scale=scale,
        query_link=query_link,
    )


def rein_lora(
    network: Adaptable, *, tokens: int = 100, rank: int = 16, scale: float = 0.001, query_link: bool = True
) -> None:
    """Apply `rein` with learned tokens that are products of two low-rank factors."""
    rein(network, tokens=tokens, rank=rank, scale=scale, query_link=query_link)
