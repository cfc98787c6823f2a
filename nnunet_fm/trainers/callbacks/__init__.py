"""Callbacks of a training: measure, record, draw and lock, at points that `nnunet_fm.trainers.loop` names."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.records.training import Overlap, Speed


@dataclass
class EpochResult:
    """Result of the validation at the end of an epoch; each callback adds what it measures.

    Args:
        epoch: number of the epoch, from 0.
        val_loss: loss of the validation patches.
        dice_ema: nnU-Net's moving average of the Dice of the validation patches.
        new_best: whether ``dice_ema`` is the best so far.
        per_slice: Dice and mIoU of the slices of the validation patches.
        per_volume: Dice and mIoU of whole validation volumes, after epochs that measure them.
        domains: name of another dataset -> the same of its volumes.
        images: pictures of validation slices, relative to the fold's folder.
        speed: of the training steps so far.
    """

    epoch: int
    val_loss: float
    dice_ema: float
    new_best: bool
    per_slice: Overlap | None = None
    per_volume: Overlap | None = None
    domains: dict[str, Overlap] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    speed: Speed | None = None


class Callback:
    """Base of all callbacks: one method for each point of a training, in their order; each may be left out.

    Args:
        trainer: the training, which a callback only reads.
    """

    def __init__(self, trainer: nnUNetTrainer) -> None:
        self.trainer = trainer

    def begin(self) -> None:
        """Refuse or lock; network and loaders do not exist yet."""

    def train_start(self) -> None:
        """Prepare; network and loaders exist, the random state of a checkpoint is set afterwards."""

    def step_end(self, waited: float, total: float) -> None:
        """Count an iteration that took ``total`` s, ``waited`` s of them for the batch."""

    def validation_end(self) -> None:
        """Report; losses and Dice of the validation patches are logged."""

    def measure(self, result: EpochResult) -> None:
        """Add measurements that choose checkpoints, or that need all processes."""

    def epoch_end(self, result: EpochResult) -> None:
        """Record the epoch; all measurements are there, its checkpoints are written afterwards."""

    def train_end(self) -> None:
        """Finish; ``checkpoint_final`` is written."""

    def close(self) -> None:
        """Release what `begin` has locked or opened, however the training ended."""
