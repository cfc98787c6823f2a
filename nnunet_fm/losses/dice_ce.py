"""MONAI's Dice and cross-entropy, supervision of upsampled outputs, and nnU-Net's own loss, fused for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.losses.dice_sums import softmax_sums

SMOOTH = 1e-5
"""Added above and below the fraction of the Dice, as in MONAI."""


class DiceCE(nn.Module):
    """Dice loss of every class, background included, plus cross-entropy; logits in, both weigh 1.

    Equals MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True, include_background=True)``; the Dice is taken per
    image and class. With ``regions`` it equals ``DiceLoss(sigmoid=True)`` plus binary cross-entropy. (MONAI's
    ``DiceCELoss(sigmoid=True)`` equals that for one region only; for several it takes the cross-entropy of a softmax.)

    Voxels with the ignore label count neither in sums nor in means.

    Args:
        regions: whether targets are regions ``(B, R, …)`` instead of label maps ``(B, 1, …)``.
        ignore_label: the label to ignore; with regions nnU-Net marks these voxels in a last, additional channel.
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
            if logits.device.type == "cpu":
                sums = softmax_sums(logits, labels, mask)
                entropy = sums.entropy.sum() / (labels.numel() if mask is None else mask.sum().clamp(min=1))
                return _dice_of_sums(sums.overlap, sums.predicted + sums.truth) + entropy
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
    return _dice_of_sums(overlap, probabilities.sum(axes) + truth.sum(axes))


def _dice_of_sums(overlap: Tensor, total: Tensor) -> Tensor:
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


class FusedDiceCE(nn.Module):
    """nnU-Net's Dice and cross-entropy of exclusive classes, with fewer passes over the logits on a CPU.

    Args:
        stock: nnU-Net's loss, with its weights and arguments.
    """

    def __init__(self, stock: DC_and_CE_loss) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """Logits ``(B, K, …)`` and label map ``(B, 1, …)`` -> scalar."""
        stock = self.stock
        if net_output.device.type != "cpu" or target.shape[1] != 1:
            return cast(Tensor, stock(net_output, target))
        mask: Tensor | None = None
        if stock.ignore_label is not None:
            mask = target != stock.ignore_label
            target = target.where(mask, 0)
        sums = softmax_sums(net_output.float(), target, mask)
        loss = net_output.new_zeros((), dtype=torch.float32)
        if stock.weight_ce:
            voxels = target.numel() if mask is None else mask.sum().clamp(min=1)
            loss = loss + stock.weight_ce * sums.entropy.sum() / voxels
        if stock.weight_dice:
            first = 0 if stock.dc.do_bg else 1
            overlap, *parts = (part[:, first:] for part in (sums.overlap, sums.predicted, sums.truth))
            if stock.dc.batch_dice:
                if stock.dc.ddp:
                    overlap, *parts = (AllGatherGrad.apply(part).sum(0) for part in (overlap, *parts))
                overlap, *parts = (part.sum(0) for part in (overlap, *parts))
            dice = (2 * overlap + stock.dc.smooth) / (sum(parts) + stock.dc.smooth).clamp_min(1e-8)
            loss = loss - stock.weight_dice * dice.mean()
        return loss


def fused(loss: nn.Module) -> nn.Module:
    """Wrap nnU-Net's Dice and cross-entropy of exclusive classes in `FusedDiceCE`; return any other loss unchanged."""
    # A compiled Dice has another class; the compiler fuses passes by itself.
    if type(loss) is DC_and_CE_loss and type(loss.dc) is MemoryEfficientSoftDiceLoss:
        return FusedDiceCE(loss)
    return loss


class OutputSupervision(nn.Module):
    """Deep supervision of MIS-FM and PUMIT: every output, upsampled to full resolution, against one target.

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
