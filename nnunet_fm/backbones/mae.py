"""MAE's vision transformers, encoder without decoder and without masking (He et al., arXiv 2111.06377), by timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from nnunet_fm.backbones.base import Norm
from nnunet_fm.backbones.vit import ViTBackbone, resample_positions
from nnunet_fm.cpu.attention import use_fast_attention
from nnunet_fm.errors import InvalidValueError

PATCH_SIZES = {"base": 16, "large": 16, "huge": 14}


class MAE(ViTBackbone):
    """An MAE encoder for images of one size.

    Official positions are for images of 224 pixels. For another size they are resampled bicubically when weights are
    loaded, like in the official fine-tuning.

    Args:
        size: "base", "large" or "huge".
        image_size: size in pixels, or ``(Y, X)``; multiples of 16, of 14 for "huge".

    Raises:
        ValueError: if a size is no such multiple.
    """

    norm: Norm = "last"

    def __init__(self, size: str, *, image_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.patch_size = PATCH_SIZES[size]
        sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
        if any(length < self.patch_size or length % self.patch_size for length in sizes):
            raise InvalidValueError(
                f"MAE {size} takes image sizes that are multiples of {self.patch_size}, got {image_size}",
                code="image-edges",
            )
        name = f"vit_{size}_patch{self.patch_size}_224.mae"
        self.vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=sizes)
        use_fast_attention(self.vit)
        self.embed_dim = int(self.vit.embed_dim)
        self.depth = len(self.vit.blocks)
        self.grid = (sizes[0] // self.patch_size, sizes[1] // self.patch_size)

    @classmethod
    def image_multiple(cls, **arguments: Any) -> int:
        return PATCH_SIZES[arguments["size"]]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = dict(state_dict)
        if "pos_embed" in ours:
            class_position, patches = ours["pos_embed"][:, :1], ours["pos_embed"][:, 1:]
            resampled = resample_positions(
                patches, self.grid, antialias=self.position_antialias, offset=self.position_offset
            )
            if resampled is not patches:
                ours["pos_embed"] = torch.cat((class_position, resampled), dim=1)
        return {f"vit.{name}": value for name, value in ours.items()}
