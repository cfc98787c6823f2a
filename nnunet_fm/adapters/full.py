"""Train everything."""

from __future__ import annotations

from nnunet_fm.adapters.base import Adaptable


def full(network: Adaptable) -> None:
    """Train all parameters, except those that the network never trains."""
    network.requires_grad_(True)
    network.frozen = ()
