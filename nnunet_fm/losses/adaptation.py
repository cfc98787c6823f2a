"""Losses of adaptation with few labels or none: entropy of predictions, cross-entropy over a pool of pixels.

Both take the logits of one output, for exclusive classes (softmax) or overlapping regions (sigmoid), and compute in
float32.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

NOT_COUNTED = -1
"""Value of a target for pixels that do not count in the loss: without a label, or outside the image."""


def softmax_entropy(logits: Tensor) -> Tensor:
    """Entropy ``-sum_c p log p`` in nats of every pixel: logits ``(B, K, …)`` -> ``(B, …)``, from 0 to log K."""
    log_probabilities = logits.float().log_softmax(1)
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def sigmoid_entropy(logits: Tensor) -> Tensor:
    """Binary entropy of every pixel and region: logits ``(B, R, …)`` -> ``(B, R, …)``, from 0 to log 2 nats.

    The formula has no differences, so that the entropy of confident predictions is not a rounding error.
    """
    logits = logits.float()
    return logits.sigmoid() * F.softplus(-logits) + (-logits).sigmoid() * F.softplus(logits)


class EntropyLoss(nn.Module):
    """Mean entropy over all pixels that count, and over regions if outputs are regions; 0 if no pixel counts.

    Args:
        regions: whether outputs are regions.
    """

    def __init__(self, *, regions: bool = False) -> None:
        super().__init__()
        self.entropy = sigmoid_entropy if regions else softmax_entropy

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``(B, K, …)``, and a target ``(B, 1, …)`` or ``(B, R, …)`` -> scalar.

        Only the value `NOT_COUNTED` of the target is used: padding and ignored pixels.
        """
        entropy, counted = self.entropy(logits), target != NOT_COUNTED
        if entropy.ndim < counted.ndim:
            counted = counted[:, 0]
        counted = counted.expand_as(entropy)
        return (entropy * counted).sum() / counted.sum().clamp(min=1)


class PooledCrossEntropy(nn.Module):
    """Cross-entropy averaged over all pixels of the batch that count; 0 if no pixel counts.

    Args:
        regions: whether targets are regions ``(B, R, …)`` instead of label maps ``(B, 1, …)``. Then the loss is the
            binary cross-entropy, averaged over all pairs of pixel and region that count.
    """

    def __init__(self, *, regions: bool = False) -> None:
        super().__init__()
        self.regions = regions

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``(B, K, …)`` and a target with `NOT_COUNTED` for pixels without a label -> scalar."""
        logits, counted = logits.float(), target != NOT_COUNTED
        if self.regions:
            loss = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), reduction="none")
            total = (loss * counted).sum()
        else:
            total = F.cross_entropy(logits, target[:, 0].long(), ignore_index=NOT_COUNTED, reduction="sum")
        return total / counted.sum().clamp(min=1)
