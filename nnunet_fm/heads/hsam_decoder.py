"""H-SAM's decoders (Cheng et al., arXiv 2403.18271): tokens attend to the image first; a second stage refines masks."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.heads.sam_decoder import (
    DEPTH,
    HEADS,
    MLP_WIDTH,
    WIDTH,
    ChannelNorm,
    Decoded,
    Embedded,
    FusedAttention,
    TwoWay,
    TwoWayBlock,
    apply_each,
    to_map,
    upscaling,
)
from nnunet_fm.published_quirks import GRIDS_WITH_PRIOR

KERNEL_WIDTH = WIDTH // 16
KERNEL_DEPTH = 5
MAX_PATCH_HEADS = 8


class CrossFirstBlock(TwoWayBlock):
    """SAM's block in another order: tokens attend to the image before they attend to each other."""

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, T, C)``, image ``(B, N, C)`` and their positions -> tokens and image."""
        seen = self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
        queries = self_attend(self, self.norm2(queries + seen), query_pe)
        seen = self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries)
        return queries, self.norm4(keys + seen)


def self_attend(block: TwoWayBlock, queries: Tensor, query_pe: Tensor) -> Tensor:
    """Self-attention and MLP of a block's tokens ``(B, T, C)``."""
    if block.skip_first_layer_pe:
        queries = block.self_attn(queries, queries, queries)
    else:
        q = queries + query_pe
        queries = queries + block.self_attn(q, q, queries)
    queries = block.norm1(queries)
    return block.norm3(queries + block.mlp(queries))


def cross_first_transformer() -> TwoWay:
    """The transformer of H-SAM's first stage, which is SAM's mask decoder otherwise."""
    return TwoWay(CrossFirstBlock(first=index == 0) for index in range(DEPTH))


class MaskedAttention(FusedAttention):
    """Attention at full width whose weights are multiplied by prior masks after the softmax.

    The three norms are idle; they have official names and sizes for any grid.
    """

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS)
        self.norm1 = nn.LayerNorm(196)
        self.norm2 = nn.LayerNorm(9)
        self.norm3 = nn.LayerNorm(1024)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, prior: Tensor | None = None) -> Tensor:
        """Queries ``(B, M, C)``, keys and values ``(B, N, C)``, masks ``(B, M, N)`` or None: ``(B, M, C)``."""
        if prior is None:
            return super().forward(q, k, v)
        q, k, v = self.heads(q, k, v)
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return self.out_proj(self._recombine_heads((weights * prior[:, None]) @ v))


class MaskedBlock(TwoWayBlock):
    """A block in the order of `CrossFirstBlock` with prior masks on the attention between tokens and image.

    Args:
        first: see `TwoWayBlock`.
        every_grid: whether the masks act on tokens for any grid, not only for `GRIDS_WITH_PRIOR`.
    """

    def __init__(self, *, first: bool, every_grid: bool) -> None:
        super().__init__(first=first)
        self.cross_attn_token_to_image = MaskedAttention()
        self.cross_attn_image_to_token = MaskedAttention()
        self.dropout = nn.Dropout(0.2)
        self.every_grid = every_grid

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `CrossFirstBlock.forward`; prior masks are ``(B, T, N)``."""
        visible = prior if self.every_grid or prior.shape[2] in GRIDS_WITH_PRIOR else None
        seen = self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys, visible)
        queries = self_attend(self, self.norm2(queries + self.dropout(seen)), query_pe)
        seen = self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries, prior.transpose(1, 2))
        return queries, self.norm4(keys + seen)


class MaskedTwoWay(TwoWay):
    """SAM's transformer with blocks that use prior masks."""

    def __init__(self, *, every_grid: bool) -> None:
        super().__init__(MaskedBlock(first=index == 0, every_grid=every_grid) for index in range(DEPTH))

    def forward(self, image: Tensor, positions: Tensor, tokens: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(B, C, h, w)``, positions ``(1, C, h, w)``, tokens ``(B, T, C)``, masks ``(B, T, h, w)``.

        Returns:
            Tokens ``(B, T, C)`` and image ``(B, h * w, C)``.
        """
        keys, key_pe = (x.flatten(2).transpose(1, 2) for x in (image, positions))
        queries, prior = tokens, prior.flatten(2)
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe, prior)
        seen = self.final_attn_token_to_image(q=queries + tokens, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + seen), keys


class RefiningDecoder(nn.Module):
    """H-SAM's second stage: decode the image again with the masks of the first as priors, at four times their size.

    Parameters have their official names. In the published code an attention map over the image becomes one everywhere,
    by a softmax over its single channel, and doubles the embedding. The layers that compute this map (`self_attn` to
    `med_sel`) are idle unless repaired.

    Args:
        masks: number of masks T.
        patches: number of patches N, the width of those layers.
        repaired: whether to depart from the published code: softmax over the patches, prior masks on every grid.
    """

    def __init__(self, masks: int, patches: int, *, repaired: bool = False) -> None:
        super().__init__()
        self.repaired = repaired
        self.transformer2 = MaskedTwoWay(every_grid=repaired)
        self.mask_tokens = nn.Embedding(masks, WIDTH)
        self.output_upscaling = nn.Sequential(*upscaling(WIDTH, WIDTH // 4, WIDTH // 8), nn.GELU())
        self.skip_connect = nn.Sequential(
            *upscaling(WIDTH // 4, WIDTH // 8, KERNEL_WIDTH), ChannelNorm(KERNEL_WIDTH), nn.GELU()
        )
        self.output_hypernetworks_mlps2 = nn.ModuleList(
            MLP(WIDTH, WIDTH, KERNEL_WIDTH, KERNEL_DEPTH) for _ in range(masks)
        )
        self.iou_prediction_head = MLP(WIDTH, WIDTH, masks, 3)
        heads = max(n for n in range(1, MAX_PATCH_HEADS + 1) if patches % n == 0)
        self.self_attn = FusedAttention(patches, heads)
        self.norm1 = nn.LayerNorm(patches)
        self.self_attn2 = FusedAttention(patches, heads)
        self.norm2 = nn.LayerNorm(patches)
        self.mlp = MLPBlock(patches, MLP_WIDTH)
        self.med_sel = nn.Sequential(nn.Linear(masks, 1), nn.ReLU())

    def forward(self, embedded: Embedded, masks: Tensor, first: Decoded) -> Decoded:
        """Tokens, and the feature map ``(B, C / 16, 16 h, 16 w)`` for their kernels.

        Args:
            embedded: input of the first stage.
            masks: masks of the first stage, ``(B, T, 4 h, 4 w)``.
            first: output of the first stage.
        """
        grid = embedded.image.shape[2:]
        prior = F.interpolate(masks, size=grid, mode="bilinear", align_corners=False).softmax(dim=1)
        image = embedded.image + embedded.prompt
        image = image * (1 + self.attention_map(first)) if self.repaired else image * 2
        tokens = self.mask_tokens.weight.expand(len(image), -1, -1)
        tokens, image_tokens = self.transformer2(image, embedded.positions, tokens, prior)
        image = to_map(image_tokens, grid)
        upscaled = self.skip_connect(torch.cat((self.output_upscaling(image), first.upscaled), dim=1))
        return Decoded(tokens, image, upscaled)

    def attention_map(self, first: Decoded) -> Tensor:
        """Agreement of the first stage's tokens with the image, sums to one over the image: ``(B, 1, h, w)``."""
        x = first.tokens @ first.image.flatten(2)
        x = self.norm1(self.self_attn(x, x, x))
        x = self.norm2(self.self_attn2(x, x, x))
        x = self.norm2(x + self.mlp(x))
        x = self.med_sel(x.transpose(1, 2)).softmax(dim=1)
        return to_map(x, first.image.shape[2:])

    def kernels(self, tokens: Tensor, which: slice = slice(None)) -> Tensor:
        """Kernels ``(B, T', C / 16)`` of T' of the tokens ``(B, T, C)``."""
        return apply_each(list(self.output_hypernetworks_mlps2)[which], tokens[:, which])
