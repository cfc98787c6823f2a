"""Memory and work of every model at its plan's patch, predicted on PyTorch's meta device: docs/costs.json.

    python docs/costs.py             # write the file anew
    python docs/costs.py stunet_s    # print one model

Memory is that of a training step in float32 at the plan's patch and batch; work is multiplications and additions of
one patch's prediction. Both are counted, not timed: they do not depend on the machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_fm.models.build import architecture, build_network, legal_patch
from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.registry import cards
from nnunet_fm.plans.memory import gpu_bytes

FILE = Path(__file__).with_name("costs.json")
CLASSES = {2: 15, 3: 24}
"""Classes by dimension, those of the parameter counts in docs/models.md."""
NATIVE_2D = 1.0
"""Spacing in mm of a 2D plan, on which nothing here depends."""


def cost(card: ModelCard) -> dict[str, Any]:
    """Patch, batch, GB of a training step and TFLOP of a patch's prediction, at the mission's plan."""
    variant = card.variants["mission"]
    geometry = variant.geometry
    spacing = geometry.spacing if isinstance(geometry.spacing, list) else [NATIVE_2D] * card.dim
    patch, strides = legal_patch(card, geometry.patch, spacing)
    entry = architecture(card, patch_size=patch, spacing=spacing, strides=strides)

    def build() -> torch.nn.Module:
        return build_network(
            entry, 1, CLASSES[card.dim], adapter=card.default_adapter,
            deep_supervision=card.network.deep_supervision and variant.recipe.deep_supervision,
        )  # fmt: skip

    gigabytes = gpu_bytes(build, patch, geometry.batch, 1, variant.recipe.optimizer) / 1e9
    with torch.device("meta"):
        network = torch.nn.Module.requires_grad_(build().eval(), False)  # the counter looks for gradients
        image = torch.empty(1, 1, *patch)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(image)
    return {
        "patch": patch,
        "batch": geometry.batch,
        "gigabytes": round(gigabytes, 1),
        "tflop": float(f"{counter.get_total_flops() / 1e12:.3g}"),
    }


def main(names: Sequence[str]) -> int:
    """Count the named models and print them, or all and write the file."""
    counted = {name: cost(cards()[name]) for name in names or cards()}
    text = "{\n" + ",\n".join(f' "{name}": {json.dumps(row)}' for name, row in counted.items()) + "\n}\n"
    if names:
        print(text, end="")
    else:
        FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
