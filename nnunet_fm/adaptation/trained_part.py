"""Choice of the part of a trained network that an adaptation trains."""

from __future__ import annotations

from typing import Literal

from nnunet_fm.adapters.base import in_encoder
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork

ADDED = ("stem", "rein", "ladder")
"""Modules beside encoder and decoder: the channel stem, and modules of adapters."""


def set_trainable(
    network: FoundationNetwork, part: Literal["head", "adapter", "all"], *, norms_only: bool = False
) -> None:
    """Freeze the parts that an adaptation does not train; frozen modules stay in eval mode after ``network.train()``.

    Args:
        network: network as built for the source's training.
        part: ``head`` trains the decode head with its neck in 2D, the decoder in 3D, and the whole network if it has no
            separate encoder (plain U-Nets, Swin-Unet). ``adapter`` trains the parameters that the source's training
            trained, ``all`` everything.
        norms_only: whether to train only parameters of the head with "norm" in their names, like Tent (arXiv
            2006.10726).

    Raises:
        ValueError: if no parameter of the head has "norm" in its name.
    """
    if part == "all":
        network.requires_grad_(True)
        network.frozen = ()
    if part != "head":
        return
    kept = (*network.encoder_keys, *ADDED)
    parameters = dict(network.named_parameters())
    head = {name for name in parameters if not _inside(name, kept)}
    if not head or not any(in_encoder(name, network) for name in parameters):
        return
    trained = {name for name in head if "norm" in name} if norms_only else head
    if not trained:
        raise InvalidValueError(
            f"no parameter of the head of {type(network).__name__} has 'norm' in its name", code="head-norms"
        )
    for name, parameter in parameters.items():
        if name not in trained:
            parameter.requires_grad_(False)
    modules = dict(network.named_modules())
    network.frozen = tuple(key for key in kept if key in modules)
    for key in network.frozen:
        modules[key].eval()


def _inside(name: str, keys: tuple[str, ...]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)
