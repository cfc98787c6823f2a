"""Train everything."""

from __future__ import annotations

from nnunet_fm.adapters.base import Adaptable


def full(network: Adaptable) -> None:
    """Every parameter is trained."""
    network.requires_grad_(True)
    network.frozen = ()
