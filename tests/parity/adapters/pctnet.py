"""PCT-Net of any patch, resolution mode, widths, input channels and classes."""

from __future__ import annotations

from torch import Tensor

from nnunet_fm.networks.pctnet import PCTNet
from tests.parity.cases import Case

WIDTHS = (32, 64, 128, 256, 512)
DROPOUT = (0.0, 0.0, 0.2, 0.2, 0.2)
"""The official class's own widths, and dropout, where a case states none."""


def outputs(case: Case) -> dict[str, Tensor]:
    """``logits_ds0`` (full resolution, also called ``logits``) to ``logits_ds3``; coarser ones in multi-scale only."""
    arguments = case.constructor.get("params", case.constructor)
    network = PCTNet(
        arguments["in_chns"],
        arguments["class_num"],
        widths=arguments.get("feature_chns", WIDTHS),
        dropout=arguments.get("dropout", DROPOUT),
        resolution_mode=arguments["resolution_mode"],
        patch_size=arguments["input_size"],
        deep_supervision=arguments.get("multiscale_pred", False),
    )
    case.fill(network)
    (x,) = case.inputs()
    logits = network.eval()(x)
    levels = logits if isinstance(logits, list) else [logits]
    return {"logits": levels[0], **{f"logits_ds{i}": out for i, out in enumerate(levels)}}
