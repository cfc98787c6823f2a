"""Freeze the encoder and train the rest."""

from __future__ import annotations

from nnunet_fm.adapters.base import Adaptable


def freeze(network: Adaptable) -> None:
    """The encoder gets no gradient and stays in eval mode, also after ``network.train()``.

    Autograd records nothing of it, unless a trained layer (a channel stem) comes before.
    """
    network.get_submodule(network.key_to_encoder).requires_grad_(False).eval()
    network.frozen = (network.key_to_encoder,)
