"""A small network, and files of weights as official programs write them."""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

MANIFESTS = Path(__file__).parents[1] / "manifests"


def seeded(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A tensor for every name, different for each, the same on every call."""
    generator = torch.Generator()
    return OrderedDict(
        (name, 0.1 * torch.randn(shape, generator=generator.manual_seed(zlib.crc32(name.encode()))))
        for name, shape in shapes.items()
    )


def official(manifest: str, classes: int | None = None) -> dict[str, Tensor]:
    """The official state dict of a manifest; STU-Net's with the released number of classes."""
    shapes = json.loads((MANIFESTS / f"{manifest}.json").read_text())["state_dict"]
    if classes is not None:
        shapes = {n: [classes, *s[1:]] if n.startswith("seg_outputs") else s for n, s in shapes.items()}
    return seeded(shapes)


class Small(nn.Module):
    """Three tensors: a projection of the input, a body and a head."""

    keys_to_in_proj = ("stem",)
    key_to_head = ("head",)

    def __init__(self, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, bias=False)
        self.body = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, classes, bias=False)


def small_file(channels: int = 1, classes: int = 2) -> dict[str, Tensor]:
    return seeded({n: list(t.shape) for n, t in Small(channels, classes).state_dict().items()})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def v1_content(weights: dict[str, Tensor]) -> dict[str, object]:
    """What nnU-Net v1 saves beside the weights: numpy scalars in lists, an optimiser state, None."""
    losses = [np.mean([0.1, 0.2]), np.float32(0.5), np.int64(3), np.bool_(True)]
    return {
        "epoch": 4000,
        "state_dict": weights,
        "optimizer_state_dict": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": np.float64(1e-2)}],
        },
        "lr_scheduler_state_dict": None,
        "plot_stuff": (losses, losses, [], losses),
        "best_stuff": [None, np.float64(0.9), 0.8],
        "amp_grad_scaler": {"scale": 65536.0, "_growth_tracker": 3},
    }
