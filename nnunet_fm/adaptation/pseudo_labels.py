"""Pseudo-labels from confident predictions, and the pool of pseudo-labels and true labels for self-training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adaptation.hidden_labels import outside_marker
from nnunet_fm.losses.adaptation import NOT_COUNTED


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Predict logits ``(B, K, …)`` of full resolution in eval mode; the network's mode is restored.

    In eval mode a head of two stages returns the mean of both.
    """
    training = network.training
    network.eval()
    try:
        outputs = network(images)
    finally:
        network.train(training)
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def pseudo_labels(logits: Tensor, confidence: float, *, regions: bool = False) -> Tensor:
    """Predicted labels where the largest probability is at least ``confidence``, `NOT_COUNTED` elsewhere.

    Args:
        logits: ``(B, K, …)``.
        confidence: smallest probability of the class; for each region, of being inside or outside.
        regions: whether outputs are regions (sigmoid) instead of classes (softmax).

    Returns:
        ``(B, 1, …)`` class, or ``(B, R, …)`` 0 or 1.
    """
    if regions:
        inside = logits.float().sigmoid()
        probability, label = torch.maximum(inside, 1 - inside), (inside >= 0.5).long()
    else:
        probability, label = logits.float().softmax(1).max(1, keepdim=True)
    return label.where(probability >= confidence, NOT_COUNTED)


def read_target(
    target: Tensor, marker: int, *, regions: int = 0, ignore_label: int | None = None
) -> tuple[Tensor, Tensor]:
    """Labels and unlabelled pixels of a loader's target of full resolution.

    Args:
        target: label map ``(B, 1, …)``; or regions ``(B, R + 2 [+ 1], …)`` with further channels for unlabelled pixels,
            pixels outside the image and, with an ignore label, ignored pixels.
        marker: label of unlabelled pixels.
        regions: number of regions, 0 for label maps.
        ignore_label: nnU-Net's ignore label; None without.

    Returns:
        Labels ``(B, 1, …)`` or ``(B, R, …)``, `NOT_COUNTED` where ignored or outside; unlabelled pixels
        ``(B, 1, …)``, bool.
    """
    if not regions:
        labels, unlabelled = target.long(), target == marker
        excluded = target == outside_marker(marker)
        if ignore_label is not None:
            excluded |= target == ignore_label
    else:
        labels, unlabelled = target[:, :regions].long(), target[:, regions : regions + 1].bool()
        excluded = target[:, regions + 1 :].bool().any(1, keepdim=True)  # outside, and ignored where there is such
    return labels.masked_fill(excluded, NOT_COUNTED), unlabelled


def pool(labels: Tensor, unlabelled: Tensor, pseudo: Tensor) -> Tensor:
    """Target of a batch: true labels, and pseudo-labels for unlabelled pixels; shapes as in `read_target`."""
    return torch.where(unlabelled, pseudo, labels)


def at_scales(target: Tensor, like: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Resize a target of full resolution to the sizes of a loader's targets, by nnU-Net's rule for deep supervision."""
    if isinstance(like, Tensor):
        return target
    sizes = [scale.shape[2:] for scale in like]
    return [
        target
        if size == target.shape[2:]
        else F.interpolate(target.float(), size=size, mode="nearest-exact").to(target.dtype)
        for size in sizes
    ]
