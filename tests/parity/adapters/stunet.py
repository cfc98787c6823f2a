"""STU-Net of any size, input channels, classes and strides."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_fm.networks.stunet import STUNet
from tests.parity.cases import Case


def outputs(case: Case) -> dict[str, Tensor]:
    """``logits_ds0`` (full resolution) to ``logits_ds4``."""
    arguments = case.constructor
    with torch.device("meta"):  # the largest size would not fit twice
        network = STUNet(
            arguments["input_channels"],
            arguments["num_classes"],
            dims=arguments["dims"],
            depth=arguments["depth"],
            strides=[[1, 1, 1], *arguments["pool_op_kernel_sizes"]],
            deep_supervision=arguments.get("enable_deep_supervision", True),
        )
    case.fill(network)
    (x,) = case.inputs()
    logits = network.eval()(x)
    return {f"logits_ds{i}": out for i, out in enumerate(logits if isinstance(logits, list) else [logits])}
