"""Weights as a network needs them that only predicts on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_fm.cpu.channels_last import FORMAT, Conv3d, ConvTranspose3d
from nnunet_fm.cpu.cpu_features import computes_in_bf16, gains_from_channels_last


def prepack_weights(network: nn.Module) -> None:
    """Put weights where autocast and convolutions would copy them to at every call: in bfloat16, channels-last.

    These are the matrices of linear layers and the kernels of volumes. Results stay what they are, and state dicts can
    be loaded as before; training would lose precision.
    """
    for module in network.modules():
        plain = isinstance(module, nn.Conv3d) and type(module).forward is nn.Conv3d.forward
        if not plain and type(module) not in (nn.Linear, nn.ConvTranspose3d, ConvTranspose3d):
            continue
        if computes_in_bf16():
            module.to(torch.bfloat16)
        if isinstance(module, Conv3d) and gains_from_channels_last():
            module.to(memory_format=FORMAT)
