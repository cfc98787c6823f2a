"""DINOv2 vision transformers (Oquab et al., arXiv 2304.07193; registers: Darcet et al., arXiv 2309.16588), by timm."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor

from nnunet_fm.backbones.base import Norm
from nnunet_fm.backbones.vit import ViTBackbone, resample_positions
from nnunet_fm.cpu.attention import use_fast_attention
from nnunet_fm.errors import InvalidValueError

PATCH_SIZE = 14
UNUSED = frozenset({"mask_token"})
"""Official names that only pre-training uses."""


class DINOv2(ViTBackbone):
    """A DINOv2 ViT for images of one size.

    The network is built at its final size and `from_official` resamples positions, because timm's rule for resampling
    differs from the official one.

    Args:
        size: "small", "base", "large" or "giant".
        registers: whether there are four register tokens.
        image_size: size in pixels, or ``(Y, X)``; multiples of 14.

    Raises:
        ValueError: if a size is no multiple of 14.
    """

    patch_size = PATCH_SIZE
    native_size = 518
    norm: Norm = "all"

    def __init__(self, size: str, *, registers: bool, image_size: int | tuple[int, int]) -> None:
        super().__init__()
        sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
        if any(length < PATCH_SIZE or length % PATCH_SIZE for length in sizes):
            raise InvalidValueError(
                f"DINOv2 takes image sizes that are multiples of {PATCH_SIZE}, got {image_size}", code="image-edges"
            )
        name = f"vit_{size}_patch{PATCH_SIZE}{'_reg4' if registers else ''}_dinov2"
        self.vit = timm.create_model(name, pretrained=False, num_classes=0, img_size=sizes)
        use_fast_attention(self.vit)
        self.registers = registers
        self.embed_dim = int(self.vit.embed_dim)
        self.depth = len(self.vit.blocks)
        self.grid = (sizes[0] // PATCH_SIZE, sizes[1] // PATCH_SIZE)
        self.position_antialias = registers
        self.position_offset = 0.0 if registers else 0.1

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = dict(state_dict)
        if "pos_embed" in ours:
            class_position, patches = ours["pos_embed"][:, :1], ours["pos_embed"][:, 1:]
            patches = resample_positions(
                patches, self.grid, antialias=self.position_antialias, offset=self.position_offset
            )
            if self.registers and "cls_token" in ours:  # with registers, timm has positions of patches only
                ours["cls_token"] = ours["cls_token"] + class_position
                ours["pos_embed"] = patches
            else:
                ours["pos_embed"] = torch.cat((class_position, patches), dim=1)
        return {f"vit.{_timm_name(name)}": value for name, value in ours.items() if name not in UNUSED}


def _timm_name(name: str) -> str:
    """timm's name for a tensor of the official state dict."""
    if name == "register_tokens":
        return "reg_token"
    return name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
