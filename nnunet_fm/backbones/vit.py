"""Base of backbones on timm's plain vision transformer: positions for any grid, and the loop over the blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.backbones.base import Backbone, Norm, Refine


def resample_positions(patches: Tensor, grid: tuple[int, int], *, antialias: bool, offset: float) -> Tensor:
    """Resample position embeddings of a square grid bicubically, like the official code at run time.

    Args:
        patches: ``(1, n * n, D)``, row by row, without the class token's entry.
        grid: wanted ``(h, w)``.
        antialias: whether to filter before downsampling.
        offset: if not zero, the scale factor of each axis is ``(g + offset) / n`` instead of ``g / n``; the published
            models without registers were trained with 0.1.

    Returns:
        ``(1, h * w, D)``.
    """
    size = math.isqrt(patches.shape[1])
    if grid == (size, size):
        return patches
    image = patches.float().reshape(1, size, size, -1).permute(0, 3, 1, 2)
    if offset:
        factor = ((grid[0] + offset) / size, (grid[1] + offset) / size)
        image = F.interpolate(image, scale_factor=factor, mode="bicubic", antialias=antialias)
    else:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=antialias)
    return image.flatten(2).transpose(1, 2).to(patches.dtype)


class ViTBackbone(Backbone):
    """A timm ``VisionTransformer`` for images of one size, in the attribute ``vit``."""

    key_to_patch_embed = "vit.patch_embed"
    keys_to_in_proj = ("vit.patch_embed.proj",)
    key_to_lpe = "vit.pos_embed"
    position_antialias = False
    position_offset = 0.0
    """Arguments of `resample_positions` for another grid."""
    vit: VisionTransformer

    def features(
        self, x: Tensor, blocks: Sequence[int], *, norm: Norm | None = None, refine: Refine | None = None
    ) -> list[Tensor]:
        norm = norm or self.norm
        normed = {"all": set(blocks), "last": {self.depth - 1}, "none": set()}[norm]
        tokens = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(x)))
        by_block: dict[int, Tensor] = {}
        for index in range(max(blocks) + 1):
            tokens = self.vit.blocks[index](tokens)
            if refine is not None:
                tokens = torch.cat((tokens[:, :1], refine(index, tokens[:, 1:])), dim=1)
            if index in blocks:
                out = self.vit.norm(tokens) if index in normed else tokens
                by_block[index] = self._map(out)
        return [by_block[block] for block in blocks]

    def refit(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours, positions = dict(state_dict), state_dict.get(self.key_to_lpe)
        mine = self.vit.pos_embed
        if positions is None or positions.shape == mine.shape or positions.ndim != mine.ndim:
            return ours
        prefix = mine.shape[1] - self.grid[0] * self.grid[1]  # positions of the class token come first, if it has one
        patches = positions[:, prefix:]
        if math.isqrt(patches.shape[1]) ** 2 == patches.shape[1] > 0:
            patches = resample_positions(
                patches, self.grid, antialias=self.position_antialias, offset=self.position_offset
            )
            ours[self.key_to_lpe] = torch.cat((positions[:, :prefix], patches), dim=1)
        return ours

    def _map(self, tokens: Tensor) -> Tensor:
        """``(B, prefix + h * w, C)`` -> ``(B, C, h, w)``."""
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(tokens), self.embed_dim, *self.grid)
