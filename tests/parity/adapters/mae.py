"""MAE's encoders of all sizes, without masking."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_fm.backbones import create_backbone
from nnunet_fm.backbones.mae import MAE
from tests.parity.cases import Case, NotSupportedError

MANIFESTS = Path(__file__).parents[2] / "manifests"

NO_EFFECT = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss")
"""Arguments that change nothing in the encoder."""


def _keep(tokens: dict[str, Tensor], name: str, module: nn.Module, args: object, out: Tensor) -> None:
    tokens[name] = out


def outputs(case: Case) -> dict[str, Tensor]:
    """``block<i>``: tokens of all blocks before the norm; ``norm``: normed ones of the last; ``last<n>_<i>``: maps."""
    arguments = case.constructor
    named = re.search(r"mae_vit_(base|large|huge)_patch(\d+)", case.module)
    other = [name for name in arguments if name not in NO_EFFECT and name != "img_size"]
    if named is None or other:
        raise NotSupportedError(f"no such MAE: {case.module}, {', '.join(other)}")
    (x,) = case.inputs()
    with torch.device("meta"):
        backbone = create_backbone(f"mae_{named[1][0]}", (x.shape[2], x.shape[3]))
    assert isinstance(backbone, MAE)
    if backbone.patch_size != int(named[2]):
        raise NotSupportedError(f"our MAE {named[1]} has patches of {backbone.patch_size} pixels")
    manifest = json.loads((MANIFESTS / f"mae_vit_{named[1]}.json").read_text(encoding="utf-8"))
    shapes: dict[str, list[int]] = manifest["state_dict"]
    edge = arguments.get("img_size", 224) // backbone.patch_size
    shapes["pos_embed"] = [1, 1 + edge**2, backbone.embed_dim]
    official = backbone.from_official(case.state_dict(shapes))
    backbone.load_state_dict(official, strict=True, assign=True)
    backbone.eval()
    found: dict[str, Tensor] = {}
    for index, block in enumerate(backbone.vit.blocks):
        block.register_forward_hook(partial(_keep, found, f"block{index}"))
    backbone.vit.norm.register_forward_hook(partial(_keep, found, "norm"))
    maps = backbone.features(x, backbone.default_blocks)
    found.update({f"last{i}_nchw": out for i, out in enumerate(maps)})
    return found
