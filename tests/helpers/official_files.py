"""Official weights files made on the spot: names, shapes, container and prefix of the real ones, seeded values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MANIFESTS = Path(__file__).parents[1] / "manifests"


@dataclass(frozen=True)
class OfficialFile:
    """How a publisher stores a network: manifest, file name, the container's key (None: bare), prefix of names."""

    manifest: str
    file: str
    container: str | None
    rename: Callable[[str], str] = str


OFFICIAL = {
    "stunet_s": OfficialFile("stunet_small", "small_ep4k.model", "state_dict"),
    "stunet_b": OfficialFile("stunet_base", "base_ep4k.model", "state_dict"),
    "suprem": OfficialFile(
        "suprem_pretrain", "supervised_suprem_swinunetr_2100.pth", "net", lambda name: f"module.{name}"
    ),
    "dae": OfficialFile("dae_pretrain", "ckpt_best.pth", "model"),
    "spadnet": OfficialFile("pumit_vit_pretrain", "pumit-b.ckpt", "state_dict"),
    "misfm": OfficialFile("misfm_pctnet", "pctnet_ct10k_volf.pt", "model_state_dict"),
    "swinmm": OfficialFile("swinmm_pretrain", "pretrained_ckpt.pt", "state_dict", lambda name: f"module.{name}"),
    "dinov2_s": OfficialFile("dinov2_vits14", "dinov2_vits14_pretrain.pth", None),
    "sam_b": OfficialFile("sam_vit_b", "sam_vit_b_01ec64.pth", None),
    "sam_h": OfficialFile("sam_vit_h", "sam_vit_h_4b8939.pth", None),
    "medsam_b": OfficialFile("medsam_vit_b", "medsam_vit_b.pth", "model", lambda name: f"module.{name}"),
    "mae_b": OfficialFile("mae_vit_base", "mae_pretrain_vit_base.pth", "model"),
}
"""Model -> the file that its card starts from."""


def manifest(name: str) -> dict[str, Any]:
    """Names and shapes of an official state dict (``state_dict``), and what else is known of it."""
    content: dict[str, Any] = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def write_official(model: str, folder: Path, index: Callable[[str], Tensor | None] = lambda name: None) -> Path:
    """Write the official file of a model with small seeded values; integer buffers come from ``index(name)``."""
    official = OFFICIAL[model]
    rng = np.random.default_rng(len(model))
    state_dict: dict[str, Tensor] = {}
    for name, shape in manifest(official.manifest)["state_dict"].items():
        known = index(name)
        if known is not None:
            state_dict[official.rename(name)] = known
        elif name.endswith(("relative_position_index", "num_batches_tracked")):
            state_dict[official.rename(name)] = torch.zeros(shape, dtype=torch.int64)
        else:
            centre = 1.0 if name.endswith("running_var") else 0.0
            values = rng.standard_normal(shape, dtype=np.float32) * 0.02 + centre
            state_dict[official.rename(name)] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    path = folder / official.file
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({official.container: state_dict, "epoch": 1} if official.container else state_dict, path)
    return path
