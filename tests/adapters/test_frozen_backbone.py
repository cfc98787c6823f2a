"""Training beside a frozen backbone keeps nothing of it for gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_fm.models.build import build_network

EDGE = 56


def kept(adapter: str) -> int:
    """Bytes that a forward pass in training keeps for the backward pass, parameters left out."""
    arguments = {"backbone": "dinov2_s", "head": "linear", "image_size": EDGE}
    entry = {"network_class_name": "nnunet_fm.networks.segmenter2d.FoundationSegmenter2D", "arch_kwargs": arguments}
    network = build_network(entry, 1, 2, adapter=adapter).train()
    parameters = {p.data_ptr() for p in network.parameters()}
    found: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(0 if tensor.data_ptr() in parameters else tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.randn(2, 1, EDGE, EDGE))
    logits.sum().backward()
    assert any(p.grad is not None for p in network.backbone.parameters()) == (adapter == "full")
    return sum(found)


def test_a_frozen_backbone_stores_nothing() -> None:
    assert kept("freeze") < kept("full") / 20
