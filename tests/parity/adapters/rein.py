"""Rein and Rein-LoRA over a frozen DINOv2."""

from __future__ import annotations

import json
import re

import torch
from torch import Tensor

from nnunet_fm.adapters.rein import Rein
from nnunet_fm.backbones import create_backbone
from nnunet_fm.backbones.base import Backbone
from tests.parity.adapters.dinov2 import MANIFESTS, SIZES
from tests.parity.cases import Case, NotSupportedError


def _backbone(case: Case, size: str, image_size: tuple[int, int]) -> Backbone:
    """The case's DINOv2, filled; registers are in its name, as the constructor is Rein's."""
    registers = re.search(r"_reg\d?\b|registers", case.module) is not None
    with torch.device("meta"):
        backbone = create_backbone(f"dinov2_{size}{'_reg' if registers else ''}", image_size)
    manifest = json.loads((MANIFESTS / f"dinov2_vit{size}14.json").read_text(encoding="utf-8"))
    shapes = manifest["state_dict"]
    if registers:
        shapes["register_tokens"] = [1, 4, shapes["cls_token"][-1]]
    official = backbone.from_official(case.state_dict(shapes, "backbone"))
    backbone.load_state_dict(official, strict=True, assign=True)
    return backbone.eval()


def _module(case: Case) -> Rein:
    """The case's Rein, filled."""
    arguments = case.constructor
    lora = "LoRA" in case.module
    if not arguments.get("use_softmax", True) or arguments.get("zero_mlp_delta_f", False):
        raise NotSupportedError("Rein without softmax, or without a scale")
    module = Rein(
        arguments["num_layers"],
        arguments["embed_dims"],
        arguments["patch_size"],
        tokens=arguments.get("token_length", 100),
        rank=arguments.get("lora_dim", 16) if lora else None,
        query_link="transform.weight" in case.meta["state_dict"],
        query_width=arguments.get("query_dims", 256),
    )
    case.expect_names(module)
    case.fill(module, "reins")
    return module


def outputs(case: Case) -> dict[str, Tensor]:
    """``feat<block>``: maps without the final norm; ``querys``: what Mask2Former would get."""
    found = re.search(r"dinov2\s+(vit_[a-z]+2?)", case.module)
    size = SIZES.get(found[1]) if found else None
    if size is None:
        raise NotSupportedError(f"no such backbone: {case.module}")
    (x,) = case.inputs()
    module = _module(case)
    backbone = _backbone(case, size, (x.shape[2], x.shape[3]))
    blocks = [int(match[1]) for out in case.outputs if (match := re.fullmatch(r"feat(\d+)", out.name))]
    maps = backbone.features(x, blocks, norm="none", refine=module)
    found_maps = {f"feat{block}": out for block, out in zip(blocks, maps, strict=True)}
    return {"querys": module.queries(), **found_maps} if module.find_unused_parameters else found_maps
