"""What backbones on timm's plain vision transformer share: the loop over the blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from nnunet_fm.backbones.base import Backbone, Norm, Refine


class ViTBackbone(Backbone):
    """A timm ``VisionTransformer`` for images of one size, in the attribute ``vit``."""

    key_to_patch_embed = "vit.patch_embed"
    keys_to_in_proj = ("vit.patch_embed.proj",)
    key_to_lpe = "vit.pos_embed"
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

    def _map(self, tokens: Tensor) -> Tensor:
        """``(B, prefix + h * w, C)`` -> ``(B, C, h, w)``."""
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(tokens), self.embed_dim, *self.grid)
