"""Stop on a NaN or infinite loss, with the batch saved, before it reaches a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_fm.errors import FMError
from nnunet_fm.weights.files import write_checkpoint

BATCH_FILE = "not_finite_batch.pt"
LEFT_OUT = 10
"""Steps in a row that a gradient scaler may skip; it halves its scale each time and leaves the weights unchanged."""

CURE = (
    "plan with a lower rate (--set recipe.learning_rate=…) or a clipped gradient (--set recipe.gradient_clip=1); --c "
    "goes on from the last checkpoint"
)


class NotFiniteError(FMError, RuntimeError):
    """Loss or weights are NaN or infinite; the message names the cases and what to do."""


class NanGuard:
    """Check of every loss of a training."""

    def __init__(self) -> None:
        self._left_out = 0

    def check(self, loss: float, batch: Mapping[str, Any], trainer: nnUNetTrainer) -> None:
        """Stop at a loss that is NaN or infinite, unless a gradient scaler mends it within `LEFT_OUT` steps.

        Raises:
            NotFiniteError: naming the cases of the batch.
        """
        if math.isfinite(loss):
            self._left_out = 0
            return
        self._left_out += 1
        if self._left_out > (0 if trainer.grad_scaler is None else LEFT_OUT):
            stop(Path(trainer.output_folder), batch, loss, trainer.iteration + 1)


def stop(folder: Path, batch: Mapping[str, Any], loss: float, iteration: int) -> NoReturn:
    """Save a batch and end the training.

    Args:
        folder: folder of the fold.
        batch: batch of nnU-Net's loader: ``data`` (B, C, [Z,] Y, X), ``target`` (or a list), and its cases ``keys``.
        loss: loss of this batch.
        iteration: number of the iteration, from 1.

    Raises:
        NotFiniteError: always.
    """
    cases = [str(case) for case in batch.get("keys", ())]
    content = {"iteration": iteration, "loss": loss, "cases": cases, "data": batch["data"], "target": batch["target"]}
    write_checkpoint(content, folder / BATCH_FILE)
    spoiled = "" if batch["data"].isfinite().all() else "; its images are not finite: preprocess these cases again"
    raise NotFiniteError(
        f"the loss is {loss} in iteration {iteration}, of patches of {', '.join(cases) or 'unknown cases'}{spoiled}. "
        f"The batch is saved in {folder / BATCH_FILE}; checkpoints are those from before. Look at these cases, then "
        f"{CURE}",
        code="loss-not-finite",
    )


def check_weights(weights: Mapping[str, Tensor], filename: str, iteration: int) -> None:
    """Raise a `NotFiniteError` for weights that are NaN or infinite, instead of writing them over good ones."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.sum().isfinite():
            raise NotFiniteError(
                f"the weights '{name}' are NaN or infinite after iteration {iteration}: {filename} is not written, a "
                f"file of this name is the one from before. To mend it, {CURE}",
                code="training-diverged",
            )
