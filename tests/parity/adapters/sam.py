"""SAM's image encoder of any width, depth, windows and image size."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from nnunet_fm.backbones.sam import SAM
from nnunet_fm.heads.sam_base import sam_neck
from tests.parity.cases import Case, NotSupportedError

FIXED = {"patch_size": 16, "mlp_ratio": 4, "out_chans": 256, "use_abs_pos": True, "use_rel_pos": True, "qkv_bias": True}
"""Arguments of the official constructor that our encoder does not offer, with the only value it has."""
DEFAULTS = {
    **FIXED,
    "use_rel_pos": False,
    "img_size": 1024,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "window_size": 0,
    "global_attn_indexes": (),
}
"""The official constructor's own."""


def encoder(case: Case) -> dict[str, Tensor]:
    """``block<i>_nhwc``: tokens that leave a block; ``neck``: the map behind the neck."""
    arguments: dict[str, Any] = {**DEFAULTS, **case.constructor}
    other = [key for key, value in FIXED.items() if arguments[key] != value]
    if other:
        raise NotSupportedError(f"our encoder has no other {', '.join(other)}")
    (x,) = case.inputs()
    own = {key: arguments[key] for key in ("embed_dim", "depth", "num_heads")}
    window = arguments["window_size"]
    everywhere = range(arguments["depth"])
    attention = {"global_blocks": arguments["global_attn_indexes"] if window else everywhere, "window": window}

    def build(image_size: int | tuple[int, int]) -> SAM:
        with torch.device("meta"):
            backbone = SAM(**own, **attention, image_size=image_size)
            backbone.neck = sam_neck(backbone.embed_dim)
        return backbone

    native = {_official_name(key): tensor.shape for key, tensor in build(arguments["img_size"]).state_dict().items()}
    backbone = build((x.shape[2], x.shape[3]))
    backbone.load_state_dict(backbone.from_official(case.state_dict(native)), assign=True)
    backbone.eval()

    last = backbone.depth - 1
    wanted = {int(m[1]): out.name for out in case.outputs if (m := re.fullmatch(r"block(\d+)_nhwc", out.name))}
    tokens: dict[int, Tensor] = {}

    def keep(index: int, out: Tensor) -> Tensor:
        tokens[index] = out.unflatten(1, backbone.grid)
        return out

    (neck,) = backbone.features(x, (last,), refine=keep)
    return {"neck": neck} | {name: tokens[index] for index, name in wanted.items()}


def _official_name(key: str) -> str:
    return key.replace(".mlp.fc", ".mlp.lin")
