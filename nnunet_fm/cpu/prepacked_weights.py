"""Weights in the type and memory order of prediction on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_fm.cpu.channels_last import FORMAT, Conv3d, ConvTranspose3d
from nnunet_fm.cpu.cpu_features import computes_in_bf16, gains_from_channels_last


def prepack_weights(network: nn.Module) -> None:
    """Convert weights of linear layers and 3D convolutions to bfloat16 and channels-last order, in place.

    Autocast and convolutions would convert them at every call. Results are the same and state dicts can be loaded as
    before; for training the weights would be too coarse.
    """
    for module in network.modules():
        plain = isinstance(module, nn.Conv3d) and type(module).forward is nn.Conv3d.forward
        if not plain and type(module) not in (nn.Linear, nn.ConvTranspose3d, ConvTranspose3d):
            continue
        if computes_in_bf16():
            module.to(torch.bfloat16)
        if isinstance(module, Conv3d) and gains_from_channels_last():
            module.to(memory_format=FORMAT)
