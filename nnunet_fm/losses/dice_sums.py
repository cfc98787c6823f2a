"""Sums over voxels for Dice and cross-entropy, in few passes over the logits.

On a CPU the time of a loss is that of its passes over arrays of the logits' size. PyTorch's operations (softmax,
one-hot labels, products, and their gradients) need about thirty passes, these functions seven.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class DiceSums(NamedTuple):
    """Sums over all voxels that count, float32, differentiable with respect to the logits."""

    entropy: Tensor
    """Cross-entropy ``(B,)`` of every image."""
    overlap: Tensor
    """Sum of each class's probability over the voxels of its label, ``(B, K)``."""
    predicted: Tensor
    """Sum of each class's probability over all voxels, ``(B, K)``."""
    truth: Tensor
    """Voxels of each class, ``(B, K)``."""


def softmax_sums(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> DiceSums:
    """Sums for exclusive classes.

    Args:
        logits: float32 ``(B, K, …)``.
        labels: label map with values from 0 to K - 1, ``(B, 1, …)`` of any type.
        mask: voxels that count, ``(B, 1, …)``; None for all of them.
    """
    flat = labels.reshape(len(labels), 1, -1).long()
    counts = None if mask is None else mask.reshape(len(mask), 1, -1).to(logits.dtype)
    truth = _per_class(flat, torch.ones_like(flat, dtype=logits.dtype) if counts is None else counts, logits.shape[1])
    sums = cast(tuple[Tensor, Tensor, Tensor], _SoftmaxSums.apply(logits.flatten(2), flat, counts))
    return DiceSums(*sums, truth)


def _per_class(labels: Tensor, values: Tensor, classes: int) -> Tensor:
    """Sum up values ``(B, 1, N)`` over the voxels of each label ``(B, 1, N)`` in float64: ``(B, K)``."""
    pairs = zip(labels.flatten(1), values.flatten(1), strict=True)
    return torch.stack([torch.bincount(label, value.double(), classes) for label, value in pairs]).to(values.dtype)


class _SoftmaxSums(torch.autograd.Function):
    """Entropy, overlap and predicted of `DiceSums` from logits ``(B, K, N)``, labels and a mask ``(B, 1, N)``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        logarithm = logits.log_softmax(1)
        of_label = logarithm.gather(1, labels)
        probability = logarithm.exp_()
        hit = of_label.exp()
        if mask is None:
            predicted = probability.sum(2)
        else:
            predicted = torch.bmm(probability, mask.transpose(1, 2))[..., 0]
            of_label, hit = of_label * mask, hit * mask
        ctx.save_for_backward(probability, labels, hit, mask)
        return -of_label.sum((1, 2)), _per_class(labels, hit, logits.shape[1]), predicted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, entropy: Tensor, overlap: Tensor, predicted: Tensor) -> tuple[Tensor | None, ...]:
        """With e, o, p for the gradients of the sums, and q the probabilities: q (p + e - r), and q o - e more at the
        label; r = sum(q p) + q o at the label."""
        probability, labels, hit, mask = ctx.saved_tensors
        at_label = hit * overlap[:, None].gather(2, labels)
        share = torch.bmm(predicted[:, None], probability)
        if mask is not None:
            share = share * mask
        share += at_label
        grad = predicted[:, :, None] - share if mask is None else predicted[:, :, None] * mask - share
        e = entropy[:, None, None] if mask is None else entropy[:, None, None] * mask
        grad += e
        grad *= probability
        grad.scatter_add_(1, labels, at_label - e)
        return grad, None, None
