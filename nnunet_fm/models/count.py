"""Numbers of parameters of a model, and of those that each head and adapter trains, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnunet_fm.adapters import DEFAULT_BRANCH
from nnunet_fm.backbones import create_backbone, native_size
from nnunet_fm.models.build import build_network, official_architecture
from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.parts import LADDER
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D


def parameters(card: ModelCard, classes: int) -> int:
    """Parameters of the network with its default head, one input channel, positions on the native grid."""
    network = _network(card, classes)
    if not isinstance(network, FoundationSegmenter2D):
        return count(network)
    # Heads depend on the number of patches; only the backbone is counted with its published grid.
    name, arguments = card.network.arguments["backbone"], card.network.arguments
    return count(network) - count(_backbone(name, arguments["image_size"])) + count(_backbone(name, native_size(name)))


def trained_by_head(card: ModelCard, classes: int) -> dict[str, int]:
    """Decode head -> parameters trained with a frozen backbone; empty for a network with its own decoder."""
    return {head: count(_network(card, classes, head=head, adapter="freeze"), trained=True) for head in card.heads}


def trained_by_adapter(card: ModelCard, classes: int) -> dict[str, int]:
    """Adapter -> parameters that it trains, positions on the native grid.

    Parameters of a decode head are not included (see `trained_by_head`); those of a network's own decoder are.
    """
    return {adapter: _adapted(card, classes, adapter) for adapter in card.adapters}


def count(module: nn.Module, *, trained: bool = False) -> int:
    """Parameters of a module, or only those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def _adapted(card: ModelCard, classes: int, adapter: str) -> int:
    network = _network(card, classes, native=adapter != LADDER, adapter=adapter)
    total = count(network, trained=True)
    if not isinstance(network, FoundationSegmenter2D):
        return total
    if adapter == LADDER:  # both branches have one image size here, but the count is for native positions of each
        assert network.ladder is not None
        name = network.adapter_arguments.get(LADDER, {}).get("branch", DEFAULT_BRANCH)
        inside = network.ladder.get_submodule("branch")
        return (
            count(network.ladder, trained=True)
            - count(inside, trained=True)
            + count(_backbone(name, native_size(name)))
        )
    return total - count(network.head, trained=True) - count(network.align, trained=True)


def _backbone(name: str, image_size: int) -> nn.Module:
    with torch.device("meta"):
        return create_backbone(name, image_size)


def _network(
    card: ModelCard, classes: int, *, native: bool = False, head: str | None = None, adapter: str | None = None
) -> FoundationNetwork:
    """The card's network on the meta device; 3D ones in their official geometry."""
    changes: dict[str, Any] = {}
    if native and card.heads:
        changes["image_size"] = native_size(card.network.arguments["backbone"])
    entry = official_architecture(card, head=head, changes=changes)
    with torch.device("meta"):
        return build_network(entry, 1, classes, adapter=adapter)
