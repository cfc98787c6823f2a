"""Losses that nnU-Net does not have: Dice + cross-entropy as MONAI's, and supervision of enlarged outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = 1e-5
"""Added above and below the fraction of the Dice, as in MONAI."""


class DiceCE(nn.Module):
    """Dice loss of every class, background included, plus cross-entropy; logits in, both weigh 1.

    Equals MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True, include_background=True)``; the Dice is taken per
    image and class. With ``regions`` each output is a sigmoid of its own: ``DiceLoss(sigmoid=True)`` plus binary
    cross-entropy. (MONAI's ``DiceCELoss(sigmoid=True)`` is that for one region; for several it takes the
    cross-entropy of a softmax, which overlapping regions are not.)

    Voxels with the ignore label contribute nothing, neither to sums nor to means.

    Args:
        regions: whether targets are regions ``(B, R, …)`` instead of label maps ``(B, 1, …)``.
        ignore_label: the label to ignore; with regions nnU-Net marks these voxels in a last, additional channel,
            whatever the label's value.
    """

    def __init__(self, *, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__()
        self.regions, self.ignore_label = regions, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits ``(B, K, …)`` and nnU-Net's target -> scalar."""
        logits = logits.float()
        mask: Tensor | None = None
        if self.regions:
            if self.ignore_label is not None:
                target, mask = target[:, :-1], ~target[:, -1:].bool()
            truth = target.float()
            probabilities = logits.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            entropy = entropy.mean(1, keepdim=True)
        else:
            labels = target.long()
            if self.ignore_label is not None:
                mask = labels != self.ignore_label
                labels = labels.where(mask, 0)
            truth = torch.zeros_like(logits).scatter_(1, labels, 1.0)
            log_probabilities = logits.log_softmax(1)
            probabilities = log_probabilities.exp()
            entropy = -log_probabilities.gather(1, labels)
        if mask is None:
            return _dice(probabilities, truth) + entropy.mean()
        return _dice(probabilities * mask, truth * mask) + (entropy * mask).sum() / mask.sum().clamp(min=1)


def _dice(probabilities: Tensor, truth: Tensor) -> Tensor:
    axes = tuple(range(2, truth.ndim))
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


class OutputSupervision(nn.Module):
    """Deep supervision as MIS-FM and PUMIT train: every output, enlarged to full resolution, against one target.

    Weights are 1, 1/2, 1/4, … from the finest output on, divided by their sum.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Logits of all resolutions ``(B, K, …)``, finest first, and targets of which the first is used -> scalar."""
        target = targets[0]
        size = target.shape[2:]
        mode = "bilinear" if len(size) == 2 else "trilinear"
        weights = [2.0**-level for level in range(len(outputs))]
        total = target.new_zeros((), dtype=torch.float32)
        for weight, output in zip(weights, outputs, strict=True):
            if output.shape[2:] != size:
                output = F.interpolate(output, size, mode=mode, align_corners=False)
            total = total + weight / sum(weights) * self.loss(output, target)
        return total
