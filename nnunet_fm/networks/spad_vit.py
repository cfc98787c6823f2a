"""The vision transformer of SPAD-Nets: adaptive patch embedding, resampled positions, 3D rotary embedding, SwiGLU.

Luo et al., arXiv 2312.07630, after EVA-02 (Fang et al., arXiv 2303.11331). Parameter names are those of the official
code (function2-llx/PUMIT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.spad_convolution import SpatiallyAdaptiveConv3d

DEPTH_BASE, PLANE_BASE = 2333.0, 10000.0
"""Bases of the rotary frequencies along z, and along y and x."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines ``(tokens, head width / 2)``, one per adjacent pair of channels."""


def resample_positions(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample position embeddings ``(1, D, Z, Y, X)``: downsampling by averages, then trilinear upsampling."""
    downsampled = [min(old, new) for old, new in zip(positions.shape[2:], grid, strict=True)]
    if downsampled != list(positions.shape[2:]):
        positions = F.interpolate(positions, downsampled, mode="area")
    if downsampled != list(grid):
        positions = F.interpolate(positions, list(grid), mode="trilinear", align_corners=False)
    return positions


def rotary_table(grid: Sequence[int], head_width: int, device: torch.device) -> Rotation:
    """Rotation of the class token (none), then of every token of a grid ``(z, y, x)``.

    The angle of a channel pair is one for the depth plus one for the row (first half of the pairs) or the column.
    """
    pairs = head_width // 2
    steps = torch.arange(0, pairs, 2, dtype=torch.float32, device=device)
    in_plane, through = PLANE_BASE ** (-steps / pairs), DEPTH_BASE ** (-(steps + 1) / pairs)
    z, y, x = (torch.arange(size, dtype=torch.float32, device=device) for size in grid)
    rows = torch.outer(y, in_plane)[:, None].expand(-1, len(x), -1)
    columns = torch.outer(x, in_plane)[None].expand(len(y), -1, -1)
    angles = torch.outer(z, through.repeat(2))[:, None, None] + torch.cat((rows, columns), dim=2)
    angles = F.pad(angles.flatten(0, 2), (0, 0, 1, 0))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the channel pairs of ``(B, heads, tokens, width)``, in float32."""
    cos, sin = rotation
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class SpadAttention(nn.Module):
    """Self-attention with rotary embedding; queries and values have a bias, keys have none."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        # Biases get the type of the (autocast) products: a sum in float32 would double the memory of later tensors.
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, v = q + self.q_bias.to(q.dtype), v + self.v_bias.to(v.dtype)
        q, k = rotate(self._heads(q), rotation), rotate(self._heads(k), rotation)
        x = F.scaled_dot_product_attention(q, k, self._heads(v))
        return self.proj(x.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202) with a norm before the last layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width * 8 // 3
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class SpadBlock(nn.Module):
    """Attention and MLP, each after a norm and with a residual."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SpadAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """One token per patch."""

    def __init__(self, in_channels: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = SpatiallyAdaptiveConv3d(in_channels, width, patch_size, patch_size)

    def forward(self, x: Tensor, degree: int = 0) -> Tensor:
        return self.proj(x, degree)


class SpadViT(nn.Module):
    """Vision transformer for volumes of any size and anisotropy; tokens are counted z first, then y, then x.

    Args:
        in_channels: image channels.
        patch_size: ``(z, y, x)`` in voxels; pre-trained with (16, 16, 16).
        pos_embed_shape: grid of the stored position embeddings, which are resampled to the grid of the tokens.
        width: channels of a token, 768 in ViT-B.
        depth: number of blocks.
        num_heads: attention heads.

    Raises:
        ValueError: if the heads' width is no multiple of 4, which the rotary embedding needs.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        patch_size: tuple[int, int, int] = (16, 16, 16),
        pos_embed_shape: Sequence[int],
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        if width % (4 * num_heads):
            raise InvalidValueError(
                f"the width of the {num_heads} heads must be a multiple of 4, {width} in all is not",
                code="argument-value",
            )
        self.head_width = width // num_heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, width, *pos_embed_shape))
        self.patch_embed = PatchEmbed(in_channels, width, patch_size)
        self.blocks = nn.ModuleList(SpadBlock(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_blocks(self, x: Tensor, degree: int = 0) -> tuple[list[Tensor], torch.Size]:
        """Tokens after every block, without the final `norm`.

        Args:
            x: ``(B, C, Z, Y, X)``.
            degree: degree of anisotropy that the patch embedding adapts to.

        Returns:
            One tensor ``(B, 1 + z * y * x, D)`` per block, class token first, and the grid ``(z, y, x)``.
        """
        x = self.patch_embed(x, degree)
        grid = x.shape[2:]
        x = (x + resample_positions(self.pos_embed, grid)).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        # Computed in each forward pass, because a table from inference mode could not be used in training.
        rotation = rotary_table(grid, self.head_width, x.device)
        tokens = []
        for block in self.blocks:
            x = block(x, rotation)
            tokens.append(x)
        return tokens, grid
