"""SPAD-Nets: the segmentation network, the ViT with adaptive patch embedding, and the adaptation of its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_fm.networks.spad_vit import SpadViT
from nnunet_fm.networks.spadnet import PATCH_SIZE, SPADNet
from nnunet_fm.weights.load import adapt_channels
from tests.parity.cases import Case, NotSupportedError

PRETRAINING = Path(__file__).parents[2] / "manifests" / "pumit_vit_pretrain.json"


def _patch_size(arguments: dict[str, Any]) -> list[int]:
    """Patch size ``[z, y, x]``; an adaptive ViT states its single edge in a sentence."""
    stated = arguments.get("patch_size")
    if stated is None:
        found = re.search(r"patch(?:_size)?\W+(\d+)", str(arguments.get("class", "")))
        stated = int(found[1]) if found else PATCH_SIZE
    return list(stated) if isinstance(stated, (list, tuple)) else [stated] * 3


def _network(arguments: dict[str, Any], classes: int) -> SPADNet:
    depth, *plane = _patch_size(arguments)
    if plane != [PATCH_SIZE] * 2:
        raise NotSupportedError(f"our patches are {PATCH_SIZE} voxels wide, not {plane}")
    return SPADNet(
        arguments.get("in_channels", 1),
        classes,
        spad_patch_depth=depth,
        pos_embed_shape=arguments["pos_embed_shape"],
        deep_supervision=True,
    )


def _segmentation(case: Case) -> dict[str, Tensor]:
    """``logits_ds0`` (full resolution) to ``logits_ds3``."""
    with torch.device("meta"):
        network = _network(case.constructor, case.constructor["num_classes"])
    case.fill(network)
    (x,) = case.inputs()
    return {f"logits_ds{i}": out for i, out in enumerate(network.eval()(x))}


def _adaptive_vit(case: Case) -> dict[str, Tensor]:
    """``tokens`` after the final norm."""
    (x,) = case.inputs()
    depth, height, width = _patch_size(case.constructor)
    with torch.device("meta"):
        vit = SpadViT(
            x.shape[1], patch_size=(depth, height, width), pos_embed_shape=case.constructor["pos_embed_shape"]
        )
    case.fill(vit)
    tokens, _ = vit.eval().forward_blocks(x, case.given[0].get("aniso_d", 0))
    return {"tokens": vit.norm(tokens[-1])}


def _adaptation(case: Case) -> dict[str, Tensor]:
    """The tensors that change when pre-training weights are loaded, positions times 100."""
    source = case.state_dict(json.loads(PRETRAINING.read_text(encoding="utf-8"))["state_dict"])
    arguments = case.meta["target"]
    with torch.device("meta"):
        network = _network(arguments, 2)
    adapted = network.from_official(source)
    kernel = adapt_channels(adapted["backbone.patch_embed.proj.weight"], arguments.get("in_channels", 1))
    return {"patch_embed.proj.weight": kernel, "pos_embed": adapted["backbone.pos_embed"] * 100}


def outputs(case: Case) -> dict[str, Tensor]:
    """Whatever a case is about: it says so by what it states."""
    if "target" in case.meta:
        return _adaptation(case)
    return _segmentation(case) if "num_classes" in case.constructor else _adaptive_vit(case)
