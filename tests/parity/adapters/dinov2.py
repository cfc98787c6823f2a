"""DINOv2 of any size and image size, with and without registers."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_fm.backbones import create_backbone
from nnunet_fm.backbones.dinov2 import DINOv2
from tests.parity.cases import Case, NotSupportedError

MANIFESTS = Path(__file__).parents[2] / "manifests"
SIZES = {"vit_small": "s", "vit_base": "b", "vit_large": "l", "vit_giant2": "g"}


def _official_shapes(size: str, registers: int, image_size: int, patch_size: int) -> dict[str, list[int]]:
    """Names and shapes of the official state dict; registers and positions depend on the constructor."""
    manifest = json.loads((MANIFESTS / f"dinov2_vit{size}14.json").read_text(encoding="utf-8"))
    shapes: dict[str, list[int]] = manifest["state_dict"]
    width = shapes["cls_token"][-1]
    shapes["pos_embed"] = [1, 1 + (image_size // patch_size) ** 2, width]
    if registers:
        shapes["register_tokens"] = [1, registers, width]
    return shapes


def _keep(tokens: dict[int, Tensor], index: int, block: nn.Module, args: object, out: Tensor) -> None:
    tokens[index] = out


def outputs(case: Case) -> dict[str, Tensor]:
    """Tokens of all blocks before the norm, normed ones of the last, positions, and normed maps of the last blocks."""
    arguments = case.constructor
    size = SIZES.get(case.module.rsplit(".", 1)[-1])
    registers = arguments.get("num_register_tokens", 0)
    patch_size = arguments.get("patch_size", 14)
    if size is None or registers not in (0, 4) or patch_size != 14:
        raise NotSupportedError(f"no such DINOv2: {case.module}, {registers} registers, patch size {patch_size}")
    (x,) = case.inputs()
    with torch.device("meta"):
        backbone = create_backbone(f"dinov2_{size}{'_reg' if registers else ''}", (x.shape[2], x.shape[3]))
    assert isinstance(backbone, DINOv2)
    backbone.position_antialias = bool(arguments.get("interpolate_antialias", False))
    backbone.position_offset = arguments.get("interpolate_offset", 0.1)
    official = case.state_dict(_official_shapes(size, registers, arguments["img_size"], patch_size))
    class_position = official["pos_embed"][:, :1]
    backbone.load_state_dict(backbone.from_official(official), strict=True, assign=True)
    del official
    backbone.eval()

    tokens: dict[int, Tensor] = {}
    for index, block in enumerate(backbone.vit.blocks):
        block.register_forward_hook(partial(_keep, tokens, index))
    maps = [int(m[1]) for o in case.outputs if (m := re.match(r"last(\d+)_", o.name))]
    last = backbone.features(x, backbone.default_blocks[: max(maps, default=1)])[::-1]
    final = backbone.vit.norm(tokens[backbone.depth - 1])
    positions = backbone.vit.pos_embed
    found = {
        "x_norm_clstoken": final[:, 0],
        "x_norm_patchtokens": final[:, 1 + registers :],
        "pos_embed_interpolated": torch.cat((class_position, positions), dim=1) if registers else positions,
    }
    for index, out in tokens.items():
        found[f"block{index}_cls_prenorm"] = out[:, 0]
        found[f"block{index}_patch_prenorm"] = out[:, 1 + registers :]
    for count in maps:
        found.update({f"last{count}_{i}_normed_nchw": out for i, out in enumerate(last[-count:])})
    return found
