"""Which part of a trained network an adaptation trains."""

from __future__ import annotations

from typing import Literal

from nnunet_fm.adapters.base import in_encoder
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork

ADDED = ("stem", "rein", "ladder")
"""Modules beside encoder and decoder: the mapping of image channels, and what adapters add."""


def set_trainable(
    network: FoundationNetwork, part: Literal["head", "adapter", "all"], *, norms_only: bool = False
) -> None:
    """Freeze what an adaptation leaves alone; frozen modules stay in eval mode, after ``network.train()`` too.

    Args:
        network: as it was built for the source's training.
        part: ``head``: what comes after the encoder, in 2D the decode head with its neck, in 3D the decoder; adapters
            and channel stems stay as they are. A network that is not made of two such parts (plain U-Nets, Swin-Unet)
            is trained whole. ``adapter``: what the source's training trained. ``all``: everything.
        norms_only: of the head, only parameters with "norm" in their names, as Tent (arXiv 2006.10726).

    Raises:
        ValueError: if no parameter of the head has such a name.
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
