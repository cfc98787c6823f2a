"""TensorBoard for trainings, enabled by ``nnUNet_tensorboard_enabled=1`` like nnU-Net's Weights & Biases."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.errors import FailedError
from nnunet_fm.trainers.callbacks import Callback, EpochResult

SWITCH = "nnUNet_tensorboard_enabled"


def tensorboard_enabled() -> bool:
    """Whether the switch is on.

    Raises:
        RuntimeError: if it is on and TensorBoard is not installed, or has another value than nnU-Net's switches.
    """
    value = os.environ.get(SWITCH, "0")
    if value not in ("0", "False", "false", "1", "True", "true"):
        raise FailedError(f"{SWITCH}={value}: legal are 0 (off) and 1 (on)", code="variable-value")
    if value in ("0", "False", "false"):
        return False
    if find_spec("tensorboard") is None:
        raise FailedError(
            f"{SWITCH}={value} needs TensorBoard: pip install 'nnunet-fm[tensorboard]', or set it to 0",
            code="tensorboard-missing",
        )
    return True


class TensorBoardLogger:
    """A logger with nnU-Net's interface that writes TensorBoard events beside the checkpoints.

    The file is opened with the first value, so that a trainer that only validates writes none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config: dict[str, Any] = {}
        self._writer: Any = None
        self._step, self._purge = 0, False

    def start(self, epoch: int) -> None:
        """Start at this epoch, and remove events that an earlier run wrote for it and later ones."""
        if epoch == 0:
            for file in self.folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._step, self._purge = epoch, True

    def update_config(self, config: dict[str, Any]) -> None:
        """Keep a part of the configuration for the text that heads the events."""
        self._config.update(config)

    def log(self, key: str, value: Any, step: int) -> None:
        """Write a number."""
        self._step = step
        self._opened().add_scalar(key, float(value), step)

    def log_summary(self, key: str, value: Any) -> None:
        """Write a number that is known once, at the last step."""
        self._opened().add_scalar(key, float(value), self._step)

    def flush(self) -> None:
        """Write buffered values to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def _opened(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._step if self._purge else None)
            text = json.dumps(self._config, indent=1, default=str)
            self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))
        return self._writer


class Loggers(Callback):
    """Send our measurements to TensorBoard and Weights & Biases.

    Args:
        trainer: the training.
        tensorboard: whether nnU-Net's values and ours are written as TensorBoard events beside the checkpoints.
    """

    def __init__(self, trainer: nnUNetTrainer, tensorboard: bool) -> None:
        super().__init__(trainer)
        self.tensorboard: TensorBoardLogger | None = None
        if tensorboard and trainer.local_rank == 0:
            self.tensorboard = TensorBoardLogger(Path(trainer.output_folder))
            trainer.logger.loggers.append(self.tensorboard)

    def train_start(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.start(self.trainer.current_epoch)

    def epoch_end(self, result: EpochResult) -> None:
        if self.trainer.local_rank != 0:
            return
        overlaps = {"per_slice": result.per_slice, "per_volume": result.per_volume, **result.domains}
        values = {
            f"{name}/{measure}": value
            for name, overlap in overlaps.items()
            if overlap is not None
            for measure, value in overlap.model_dump().items()
        }
        if result.speed is not None:
            values |= {
                "speed/samples_per_second": result.speed.mean,
                "speed/waiting_share": result.speed.waiting_share,
            }
        for logger in self.trainer.logger.loggers:
            for key, value in values.items():
                logger.log(key, value, result.epoch)
        if self.tensorboard is not None:
            self.tensorboard.flush()
