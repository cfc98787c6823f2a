"""Pseudo-labels of what a model is sure of, and the pool of these and of true labels that self-training learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adaptation.hidden_labels import outside_marker
from nnunet_fm.losses.adaptation import NOT_COUNTED


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Logits ``(B, K, …)`` as in prediction: eval mode, full resolution; the network is left in its own mode.

    A head of two stages gives the mean of both then.
    """
    training = network.training
    network.eval()
    try:
        outputs = network(images)
    finally:
        network.train(training)
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def pseudo_labels(logits: Tensor, confidence: float, *, regions: bool = False) -> Tensor:
    """What a model predicts where its largest probability is at least ``confidence``, `NOT_COUNTED` elsewhere.

    Args:
        logits: ``(B, K, …)``.
        confidence: of the class; with regions of being inside or outside, for each region by itself.
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
        target: label map ``(B, 1, …)``; or regions ``(B, R + 2 [+ 1], …)``, after which come the unlabelled pixels,
            those outside the image and, where there is an ignore label, the ignored ones.
        marker: label of unlabelled pixels.
        regions: their number, 0 for label maps.
        ignore_label: as nnU-Net's.

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
    """Target of a batch: true labels, and pseudo-labels where there are none; shapes as `read_target` gives them."""
    return torch.where(unlabelled, pseudo, labels)


def at_scales(target: Tensor, like: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """A target of full resolution in the sizes of a loader's targets, by nnU-Net's rule for deep supervision."""
    if isinstance(like, Tensor):
        return target
    sizes = [scale.shape[2:] for scale in like]
    return [
        target
        if size == target.shape[2:]
        else F.interpolate(target.float(), size=size, mode="nearest-exact").to(target.dtype)
        for size in sizes
    ]
