"""SAM's mask decoder (Kirillov et al., arXiv 2304.02643) for batches: one set of tokens for B images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 256
"""Channels of the neck's embedding and of all attention."""
HEADS = 8
DEPTH = 2
MLP_WIDTH = 2048
DOWNSAMPLE = 2
"""Factor by which SAM's cross attentions reduce the channels."""


class Embedded(NamedTuple):
    """Input of a decoder for B images.

    Attributes:
        image: embedding from the neck, ``(B, C, h, w)``.
        prompt: embedding of an absent prompt, ``(1, C, 1, 1)``, added everywhere.
        positions: ``(1, C, h, w)``.
    """

    image: Tensor
    prompt: Tensor
    positions: Tensor


class Decoded(NamedTuple):
    """Output of a decoder for B images.

    Attributes:
        tokens: ``(B, T, C)``, one for each mask.
        image: ``(B, C, h, w)``.
        upscaled: feature map ``(B, C', h', w')`` to multiply with the kernel of each token.
    """

    tokens: Tensor
    image: Tensor
    upscaled: Tensor


class ChannelNorm(LayerNorm2d):
    """SAM's norm over the channels of ``(B, C, h, w)`` in one fused call; fastest for channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class FusedAttention(Attention):
    """SAM's attention without a stored attention matrix."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries ``(B, M, C)``, keys and values ``(B, N, C)`` -> ``(B, M, C)``."""
        out = F.scaled_dot_product_attention(*self.heads(q, k, v))
        return self.out_proj(self._recombine_heads(out))

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project queries, keys and values, and split them into heads: ``(B, heads, M or N, channels)`` each."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        return (
            self._separate_heads(q, self.num_heads),
            self._separate_heads(k, self.num_heads),
            self._separate_heads(v, self.num_heads),
        )


class TwoWayBlock(TwoWayAttentionBlock):
    """Self-attention of tokens, attention of tokens to the image, MLP, and attention of the image to tokens.

    Args:
        first: whether this is the first block, whose self-attention has neither positions nor a residual.
    """

    def __init__(self, *, first: bool) -> None:
        super().__init__(WIDTH, HEADS, MLP_WIDTH, skip_first_layer_pe=first)
        self.self_attn = FusedAttention(WIDTH, HEADS)
        self.cross_attn_token_to_image = FusedAttention(WIDTH, HEADS, DOWNSAMPLE)
        self.cross_attn_image_to_token = FusedAttention(WIDTH, HEADS, DOWNSAMPLE)


class TwoWay(TwoWayTransformer):
    """SAM's transformer between tokens and image.

    Args:
        blocks: blocks that replace the official ones.
    """

    def __init__(self, blocks: Iterable[nn.Module] | None = None) -> None:
        super().__init__(depth=0, embedding_dim=WIDTH, num_heads=HEADS, mlp_dim=MLP_WIDTH)
        self.layers = nn.ModuleList(blocks or (TwoWayBlock(first=index == 0) for index in range(DEPTH)))
        self.depth = len(self.layers)
        self.final_attn_token_to_image = FusedAttention(WIDTH, HEADS, DOWNSAMPLE)


class BatchedMaskDecoder(MaskDecoder):
    """SAM's mask decoder for a batch; the official one takes a single image.

    Parameters have their official names. The layers of the predicted IoU are idle.

    Args:
        masks: number of masks beside the first, which officially is for unambiguous prompts.
        transformer: transformer between tokens and image.
    """

    def __init__(self, masks: int, transformer: TwoWayTransformer) -> None:
        super().__init__(transformer_dim=WIDTH, transformer=transformer, num_multimask_outputs=masks)
        self.output_upscaling = nn.Sequential(*upscaling(WIDTH, WIDTH // 4, WIDTH // 8), nn.GELU())

    def forward(self, embedded: Embedded) -> Decoded:
        """Tokens, and the feature map ``(B, C / 8, 4 h, 4 w)`` for their kernels."""
        tokens = self.all_tokens().expand(len(embedded.image), -1, -1)
        image = embedded.image + embedded.prompt
        tokens, image_tokens = self.transformer(image, embedded.positions, tokens)
        image = to_map(image_tokens, image.shape[2:])
        return Decoded(tokens[:, 1:], image, self.output_upscaling(image))

    def all_tokens(self) -> Tensor:
        """Token of the IoU, then one for each mask, ``(1 + T, C)``."""
        return torch.cat((self.iou_token.weight, self.mask_tokens.weight))

    def kernels(self, tokens: Tensor, which: slice = slice(None)) -> Tensor:
        """Kernels ``(B, T', C / 8)`` of T' of the mask tokens ``(B, T, C)``."""
        return apply_each(list(self.kernel_networks())[which], tokens[:, which])

    def kernel_networks(self) -> Iterable[nn.Module]:
        """Networks from tokens to kernels, one for each token."""
        return self.output_hypernetworks_mlps


def upscaling(channels: int, middle: int, out: int) -> nn.Sequential:
    """Two transposed convolutions: ``(B, channels, h, w)`` -> ``(B, out, 4 h, 4 w)``."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, middle, 2, stride=2),
        ChannelNorm(middle),
        nn.GELU(),
        nn.ConvTranspose2d(middle, out, 2, stride=2),
    )


def apply_each(networks: Sequence[nn.Module], tokens: Tensor) -> Tensor:
    """Apply T networks to one token each: ``(B, T, C)`` -> ``(B, T, C')``."""
    return torch.stack([network(token) for network, token in zip(networks, tokens.unbind(1), strict=True)], dim=1)


def dot(kernels: Tensor, maps: Tensor) -> Tensor:
    """Multiply kernels ``(B, T, C)`` with feature maps ``(B, C, h, w)``: masks ``(B, T, h, w)``."""
    return (kernels @ maps.flatten(2)).unflatten(2, maps.shape[2:])


def to_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """``(B, h * w, C)`` -> ``(B, C, h, w)`` in channels-last memory, which is fastest for the next layers."""
    return tokens.transpose(1, 2).unflatten(2, grid)
