"""Dice and intersection over union per slice of the validation patches, from the logits of validation steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunet_fm.records.training import Overlap
from nnunet_fm.trainers.callbacks import Callback, EpochResult


def slice_overlap(logits: Tensor, target: Tensor, labels: LabelManager) -> tuple[Tensor, Tensor]:
    """Dice and intersection over union of every slice and foreground class.

    Args:
        logits: ``(B, K, [Z,] Y, X)``.
        target: label map ``(B, 1, [Z,] Y, X)``, or a mask for each region and for the ignore label, ``(B, R, …)``.
        labels: nnU-Net's label manager; voxels of the ignore label do not count.

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
    """``logits.argmax(1)``; on a CPU one pass per class, many times as fast as PyTorch's on strided memory."""
    if logits.device.type != "cpu":
        return logits.argmax(1)
    best, largest = logits[:, 0].clone(), torch.zeros_like(logits[:, 0], dtype=torch.long)
    for label in range(1, logits.shape[1]):
        largest.masked_fill_(logits[:, label] > best, label)
        torch.maximum(best, logits[:, label], out=best)
    return largest


class SliceOverlap(Callback):
    """Overlap per slice of the validation patches: mean over classes, then over slices, summed up batch by batch."""

    def __init__(self, trainer: nnUNetTrainer) -> None:
        super().__init__(trainer)
        self.reset()

    def reset(self) -> None:
        """Set all sums to zero."""
        self.sums = [0.0, 0.0, 0.0]
        """Sum of Dice, sum of intersection over union, number of slices with a class in target or prediction."""

    def train_start(self) -> None:
        self.reset()

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch, see `slice_overlap`."""
        overlaps = slice_overlap(logits.detach(), target, self.trainer.label_manager)
        dice, iou = (per_class.nanmean(1) for per_class in overlaps)
        sums = torch.stack([dice.nansum(), iou.nansum(), (~dice.isnan()).sum()])
        self.sums = [old + new for old, new in zip(self.sums, sums.tolist(), strict=True)]

    @contextmanager
    def watching(self, network: nn.Module, target: Tensor | Sequence[Tensor]) -> Iterator[None]:
        """Add the finest output of the network's next forward pass.

        Args:
            network: the network with its wrappers, which the validation step calls.
            target: target of the batch; the validation step alters it in place, after the forward pass.
        """

        def gather(module: nn.Module, inputs: Any, output: Tensor | Sequence[Tensor]) -> None:
            handle.remove()
            logits = _finest(output)
            self.add(logits, _finest(target).to(logits.device, non_blocking=True))

        handle = network.register_forward_hook(gather)
        try:
            yield
        finally:
            handle.remove()

    def measure(self, result: EpochResult) -> None:
        """Add the means over the slices of all processes; None if no slice shows a class."""
        sums = self.sums
        self.reset()
        if self.trainer.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, sums)
            sums = np.sum(gathered, axis=0).tolist()
        dice, iou, count = sums
        result.per_slice = Overlap(dice=dice / count, miou=iou / count) if count else None


def _finest(resolutions: Tensor | Sequence[Tensor]) -> Tensor:
    return resolutions if isinstance(resolutions, Tensor) else resolutions[0]
