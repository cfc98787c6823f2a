"""Checkpoints of a training: choice of the best ones, writing and reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_fm.errors import FailedError
from nnunet_fm.trainers.callbacks import EpochResult
from nnunet_fm.trainers.callbacks.nan_guard import check_weights
from nnunet_fm.weights.files import data_only, read_trained, shape_mismatch, write_checkpoint

CHECKPOINT_KEY = "nnunet_fm"
"""Entry of a checkpoint that holds `BudgetTrainer.state`."""

BEST, LOWEST_LOSS, LATEST = "checkpoint_best.pth", "checkpoint_lowest_loss.pth", "checkpoint_latest.pth"


class BestCheckpoints:
    """Choice of the checkpoints to write after an epoch.

    Args:
        by_volumes: whether the Dice of whole validation volumes chooses ``checkpoint_best`` and the validation loss
            chooses ``checkpoint_lowest_loss``; else nnU-Net's moving average of the Dice of patches chooses.
    """

    def __init__(self, by_volumes: bool = False) -> None:
        self.by_volumes = by_volumes
        self.volume_dice, self.loss = float("-inf"), float("inf")

    def choose(self, result: EpochResult, say: Callable[[str], None]) -> list[str]:
        """Files to write after an epoch.

        Args:
            result: of the epoch.
            say: function that logs a sentence about a score.
        """
        if not self.by_volumes:
            if not result.new_best:
                return []
            say(f"New best EMA pseudo Dice: {result.dice_ema:.4f}")
            return [BEST]
        files = []
        if result.val_loss < self.loss:
            self.loss = result.val_loss
            files.append(LOWEST_LOSS)
        if result.per_volume is not None:
            if result.per_volume.dice > self.volume_dice:
                self.volume_dice = result.per_volume.dice
                files.append(BEST)
            say(f"Dice of validation volumes {result.per_volume.dice:.4f}, best {self.volume_dice:.4f}")
        return files

    def state(self) -> dict[str, float]:
        """Entries of a checkpoint, for `load_state`."""
        return {"best_volume_dice": self.volume_dice, "lowest_loss": self.loss}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.volume_dice, self.loss = state["best_volume_dice"], state["lowest_loss"]


def write(file: Path, trainer: nnUNetTrainer, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write nnU-Net's checkpoint with our `state` in one step: a crash leaves the former file whole.

    Args:
        file: the checkpoint.
        trainer: the training, at the end of an epoch.
        weights: state dict of the network for the file.
        state: content of the entry `CHECKPOINT_KEY`.

    Raises:
        NotFiniteError: for trained weights that are NaN or infinite.
        CheckpointError: if the file cannot be written.
    """
    trained = {name: p.detach() for name, p in trainer.bare_network.named_parameters() if p.requires_grad}
    check_weights(trained, str(file), trainer.iteration)
    scaler = trainer.grad_scaler
    content = {
        "network_weights": weights,
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        CHECKPOINT_KEY: state,
    }
    write_checkpoint(content, file)


def read(file: str, load: Callable[[str], None]) -> dict[str, Any]:
    """Load a checkpoint as nnU-Net does, and return our entry.

    Args:
        file: the checkpoint.
        load: nnU-Net's own method.

    Raises:
        WeightsFileError: for a file that is no checkpoint, or one of another network.
        RuntimeError: for a checkpoint of another trainer.
    """
    # `read_trained` maps the file into memory, so that the weights are read only once, by nnU-Net.
    state = read_trained(Path(file)).get(CHECKPOINT_KEY)
    try:
        with data_only():
            load(file)
    except RuntimeError as error:
        raise shape_mismatch(error, file) or error from None
    if state is None:
        raise FailedError(f"{file} was not written by a trainer of nnunet-fm", code="checkpoint-other")
    return dict(state)
