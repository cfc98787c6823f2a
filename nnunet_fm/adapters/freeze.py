"""Freeze the encoder and train the rest."""

from __future__ import annotations

from nnunet_fm.adapters.base import Adaptable, in_encoder


def freeze(network: Adaptable) -> None:
    """Freeze the encoder: no gradient, and eval mode also after ``network.train()``.

    Autograd does not record the encoder, unless a trained layer (a channel stem) comes before it.
    """
    for name, parameter in network.named_parameters():
        if in_encoder(name, network):
            parameter.requires_grad_(False)
    modules = {name for name, _ in network.named_modules()}
    network.frozen = tuple(key for key in network.encoder_keys if key in modules)
    for key in network.frozen:
        network.get_submodule(key).eval()
