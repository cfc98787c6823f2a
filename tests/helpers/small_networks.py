"""Every volumetric network, small: the classes of the model cards with few and narrow layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.pctnet import PCTNet
from nnunet_fm.networks.spadnet import SPADNet
from nnunet_fm.networks.stunet import STUNet
from nnunet_fm.networks.swinmm import SwinMM
from nnunet_fm.networks.swinunetr import DAE, SwinUNETR

CLASSES: dict[str, tuple[type[FoundationNetwork], dict[str, Any]]] = {
    "stunet": (
        STUNet,
        {"dims": [4, 4, 8, 8, 8, 8], "depth": [2, 1, 1, 1, 1, 1],
         "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]], "deep_supervision": True},
    ),
    "suprem": (SwinUNETR, {"feature_size": 12}),
    "dae": (DAE, {"feature_size": 12}),
    "spadnet": (
        SPADNet,
        {"width": 24, "num_heads": 2, "out_blocks": [0, 1, 2, 3], "channels": [4, 4, 8, 8, 8, 8],
         "pos_embed_shape": [2, 2, 2], "deep_supervision": True},
    ),
    "misfm": (
        PCTNet,
        {"widths": [4, 4, 16, 16, 16], "dropout": [0, 0, 0.2, 0.2, 0.2], "resolution_mode": 1,
         "patch_size": [32, 64, 64], "deep_supervision": True},
    ),
    "swinmm": (SwinMM, {"feature_size": 12}),
}  # fmt: skip
SIZE = (32, 64, 64)
"""A patch that all of them take as it is."""


def small(family: str, channels: int = 1, classes: int = 3, **more: Any) -> FoundationNetwork:
    """A network of a family with random weights."""
    network_class, arguments = CLASSES[family]
    return network_class(channels, classes, **{**arguments, **more})


def shapes(module: nn.Module) -> dict[str, list[int]]:
    """Shape of every tensor of the state dict, as manifests list them."""
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def count(module: nn.Module, *, trained: bool | None = None) -> int:
    """Number of parameters: all, or only those that are (not) trained."""
    return sum(p.numel() for p in module.parameters() if trained is None or p.requires_grad is trained)
