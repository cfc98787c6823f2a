"""Dice and intersection over union per slice of a batch, from what the loss of a validation step sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor


def slice_overlap(logits: Tensor, target: Tensor, labels: LabelManager) -> tuple[Tensor, Tensor]:
    """Dice and intersection over union of every slice and foreground class.

    Args:
        logits: ``(B, K, [Z,] Y, X)``.
        target: label map ``(B, 1, [Z,] Y, X)``, or a map for each region and for the ignore label, ``(B, R, …)``.
        labels: voxels of the ignore label do not count.

    Returns:
        Two tensors ``(slices, foreground classes)``; NaN where neither target nor prediction has the class.
    """
    counts = _of_regions(logits, target, labels) if labels.has_regions else _of_classes(logits, target, labels)
    both, predicted, true = counts
    return 2 * both / (predicted + true), both / (predicted + true - both)


def _of_regions(logits: Tensor, target: Tensor, labels: LabelManager) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels of intersection, prediction and target, ``(slices, R)``."""
    prediction, truth = logits > 0, target[:, : logits.shape[1]].bool()
    if labels.has_ignore_label:
        counted = ~target[:, -1:].bool()
        prediction, truth = prediction & counted, truth & counted
    sums = ((prediction & truth), prediction, truth)
    both, predicted, true = (
        s.sum((-2, -1), dtype=torch.float32).movedim(1, -1).reshape(-1, logits.shape[1]) for s in sums
    )
    return both, predicted, true


def _of_classes(logits: Tensor, target: Tensor, labels: LabelManager) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels of intersection, prediction and target, ``(slices, K - 1)``: one histogram each, however many classes."""
    classes = logits.shape[1]
    prediction, truth = _argmax(logits).flatten(0, -3).flatten(1), target[:, 0].long().flatten(0, -3).flatten(1)
    slices = len(truth)
    offset = classes * torch.arange(slices, device=truth.device)[:, None]
    prediction = prediction + offset
    if labels.has_ignore_label:
        counted = truth != labels.ignore_label
        truth = (truth + offset)[counted]
        prediction = prediction[counted]
    else:
        truth = truth + offset

    def histogram(entries: Tensor) -> Tensor:
        counts = torch.bincount(entries.flatten(), minlength=slices * classes).float()
        return counts.view(slices, classes)[:, 1:]

    return histogram(truth[prediction == truth]), histogram(prediction), histogram(truth)


def _argmax(logits: Tensor) -> Tensor:
    """``logits.argmax(1)``; on a CPU a pass over each class, many times as fast as PyTorch across strided memory."""
    if logits.device.type != "cpu":
        return logits.argmax(1)
    best, largest = logits[:, 0].clone(), torch.zeros_like(logits[:, 0], dtype=torch.long)
    for label in range(1, logits.shape[1]):
        largest.masked_fill_(logits[:, label] > best, label)
        torch.maximum(best, logits[:, label], out=best)
    return largest


class SliceOverlap:
    """Means over classes, then over slices, gathered batch by batch."""

    def __init__(self, labels: LabelManager) -> None:
        self.labels = labels
        self.reset()

    def reset(self) -> None:
        """Forget what was gathered."""
        self.sums = [0.0, 0.0, 0.0]
        """Sum of Dice, sum of intersection over union, number of slices that show anything."""

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Gather a batch, see `slice_overlap`."""
        dice, iou = (per_class.nanmean(1) for per_class in slice_overlap(logits.detach(), target, self.labels))
        sums = torch.stack([dice.nansum(), iou.nansum(), (~dice.isnan()).sum()])
        self.sums = [old + new for old, new in zip(self.sums, sums.tolist(), strict=True)]

    def watched(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """A loss that gathers what it is called with, at the full resolution, and is otherwise the given one."""

        def watching(output: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Any:
            self.add(_first(output), _first(target))
            return loss(output, target)

        return watching


def _first(resolutions: Tensor | Sequence[Tensor]) -> Tensor:
    return resolutions if isinstance(resolutions, Tensor) else resolutions[0]
