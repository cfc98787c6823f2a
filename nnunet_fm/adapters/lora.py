"""Low-rank updates of the encoder's layers (LoRA, Hu et al., arXiv 2106.09685), by peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_fm.adapters.base import Adaptable, in_encoder
from nnunet_fm.errors import InvalidValueError


def lora(network: Adaptable, *, rank: int = 16, alpha: float = 32, targets: Sequence[str] | None = None) -> None:
    """Give each linear layer of the encoder a trained low-rank update and freeze the encoder itself.

    In an encoder without linear layers (STU-Net, ResNet) convolutions get the updates. Everything outside the encoder
    is trained. Batch norms of the encoder keep their pre-trained statistics; its dropout is on, like in full training.

    Args:
        network: changed in place.
        rank: rank of the updates.
        alpha: the update is ``alpha / rank`` times B A; it starts at zero.
        targets: ends of the names of the layers to update, such as "qkv" or "attn.proj"; None for all.

    Raises:
        ValueError: if no layer has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here, because the import takes two seconds

    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    inside = [(name, module) for name, module in network.named_modules() if in_encoder(name, network)]
    layers = [name for name, module in inside if isinstance(module, nn.Linear)]
    layers = layers or [name for name, module in inside if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    if targets is not None:
        layers = [name for name in layers if f".{name}".endswith(tuple(f".{end}" for end in targets))]
    if not layers:
        raise InvalidValueError(
            f"no layer of the encoder has a name that ends in {', '.join(targets or ())}", code="adapter-layers"
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
    inject_adapter_in_model(config, cast(nn.Module, network))
    for name, parameter in network.named_parameters():
        update = ".lora_" in name
        parameter.requires_grad_(update or (not in_encoder(name, network) and wanted[name]))
    network.frozen = tuple(name for name, module in inside if isinstance(module, _BatchNorm))
    for name in network.frozen:
        network.get_submodule(name).eval()
