"""SAM's mask decoder (Kirillov et al., arXiv 2304.02643) for whole batches: one set of tokens meets B images."""

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
"""Channels of the embedding that the neck gives and all attention works in."""
HEADS = 8
DEPTH = 2
MLP_WIDTH = 2048
DOWNSAMPLE = 2
"""SAM's cross attentions work in a space of so many times fewer channels."""


class Embedded(NamedTuple):
    """What a decoder is given of B images.

    Attributes:
        image: ``(B, C, h, w)``, from the neck.
        prompt: ``(1, C, 1, 1)``, the prompt encoder's answer to no prompt, added everywhere.
        positions: ``(1, C, h, w)``.
    """

    image: Tensor
    prompt: Tensor
    positions: Tensor


class Decoded(NamedTuple):
    """What a decoder makes of B images.

    Attributes:
        tokens: ``(B, T, C)``, one for each mask.
        image: ``(B, C, h, w)``.
        upscaled: ``(B, C', h', w')``, the map that a token's kernel is multiplied with.
    """

    tokens: Tensor
    image: Tensor
    upscaled: Tensor


class ChannelNorm(LayerNorm2d):
    """SAM's norm over the channels of ``(B, C, h, w)`` in one fused call; fastest where channels lie innermost."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class FusedAttention(Attention):
    """SAM's attention without a stored attention matrix."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries ``(B, M, C)`` look at keys and values ``(B, N, C)``: ``(B, M, C)``."""
        out = F.scaled_dot_product_attention(*self.heads(q, k, v))
        return self.out_proj(self._recombine_heads(out))

    def heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values projected and cut into heads, ``(B, heads, M or N, channels)`` each."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        return (
            self._separate_heads(q, self.num_heads),
            self._separate_heads(k, self.num_heads),
            self._separate_heads(v, self.num_heads),
        )


class TwoWayBlock(TwoWayAttentionBlock):
    """Tokens attend to each other, then to the image, pass an MLP, and the image attends to them.

    Args:
        first: in the first block tokens attend to each other without their embedding as position, and no residual.
    """

    def __init__(self, *, first: bool) -> None:
        super().__init__(WIDTH, HEADS, MLP_WIDTH, skip_first_layer_pe=first)
        self.self_attn = FusedAttention(WIDTH, HEADS)
        self.cross_attn_token_to_image = FusedAttention(WIDTH, HEADS, DOWNSAMPLE)
        self.cross_attn_image_to_token = FusedAttention(WIDTH, HEADS, DOWNSAMPLE)


class TwoWay(TwoWayTransformer):
    """SAM's transformer between tokens and image.

    Args:
        blocks: the blocks in its official place.
    """

    def __init__(self, blocks: Iterable[nn.Module] | None = None) -> None:
        super().__init__(depth=0, embedding_dim=WIDTH, num_heads=HEADS, mlp_dim=MLP_WIDTH)
        self.layers = nn.ModuleList(blocks or (TwoWayBlock(first=index == 0) for index in range(DEPTH)))
        self.depth = len(self.layers)
        self.final_attn_token_to_image = FusedAttention(WIDTH, HEADS, DOWNSAMPLE)


class BatchedMaskDecoder(MaskDecoder):
    """SAM's mask decoder, where the official one takes a single image.

    Parameters have their official names. The predicted IoU is of no use in semantic segmentation, so its layers are
    there but never run.

    Args:
        masks: number of masks beside the first, which officially is for unambiguous prompts.
        transformer: between tokens and image.
    """

    def __init__(self, masks: int, transformer: TwoWayTransformer) -> None:
        super().__init__(transformer_dim=WIDTH, transformer=transformer, num_multimask_outputs=masks)
        self.output_upscaling = nn.Sequential(*upscaling(WIDTH, WIDTH // 4, WIDTH // 8), nn.GELU())

    def forward(self, embedded: Embedded) -> Decoded:
        """Tokens and the map ``(B, C / 8, 4 h, 4 w)`` that they are for."""
        tokens = self.all_tokens().expand(len(embedded.image), -1, -1)
        image = embedded.image + embedded.prompt
        tokens, image_tokens = self.transformer(image, embedded.positions, tokens)
        image = to_map(image_tokens, image.shape[2:])
        return Decoded(tokens[:, 1:], image, self.output_upscaling(image))

    def all_tokens(self) -> Tensor:
        """``(1 + T, C)``: the token of the IoU, then one for each mask."""
        return torch.cat((self.iou_token.weight, self.mask_tokens.weight))

    def kernels(self, tokens: Tensor, which: slice = slice(None)) -> Tensor:
        """What mask tokens ``(B, T, C)`` are multiplied with the map as, ``(B, T', C / 8)``, for T' of them."""
        return apply_each(list(self.kernel_networks())[which], tokens[:, which])

    def kernel_networks(self) -> Iterable[nn.Module]:
        """One network for each token."""
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
    """Each of T networks to its own of the tokens ``(B, T, C)``: ``(B, T, C')``."""
    return torch.stack([network(token) for network, token in zip(networks, tokens.unbind(1), strict=True)], dim=1)


def dot(kernels: Tensor, maps: Tensor) -> Tensor:
    """Kernels ``(B, T, C)`` times maps ``(B, C, h, w)``: ``(B, T, h, w)``."""
    return (kernels @ maps.flatten(2)).unflatten(2, maps.shape[2:])


def to_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """``(B, h * w, C)`` -> ``(B, C, h, w)`` with channels innermost in memory, the fastest for what follows."""
    return tokens.transpose(1, 2).unflatten(2, grid)
