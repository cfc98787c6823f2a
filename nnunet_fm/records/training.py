"""Record of a training beside its checkpoints: ``training_record.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.io.untrusted import read_model

FILE = "training_record.json"
BURN_IN = 50
"""Iterations left out of the speed: the first ones allocate, compile and fill caches."""


End = Literal["iterations", "max_minutes", "patience"]
"""What ends a training."""


class _RecordPart(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")


class Overlap(_RecordPart):
    """Mean Dice and mean intersection over union (mIoU) over foreground classes; NaN without foreground."""

    dice: float
    miou: float


class Validation(_RecordPart):
    """One validation: at the end of an epoch, of the training's own domain and of the plan's ``eval_datasets``.

    ``epoch`` counts from 0, ``iteration`` are the optimiser steps before the validation, ``seconds`` the training time
    until its end, over all interruptions. ``dice_patches`` is nnU-Net's Dice over all voxels of the validation patches
    and ``dice_ema`` its moving average, 0.9 of the one before.

    ``per_slice`` is over axial slices of the validation patches (the slices themselves in 2D): mean over the foreground
    classes that a slice or its prediction shows, then over the slices that show any. ``per_volume`` is over whole
    validation cases, where they were measured: smoothed by 1 in numerator and denominator, so that empty in both is 1,
    mean over classes, then cases. ``domains`` has the name of another dataset -> per volume. ``images`` are file names
    relative to the record.
    """

    epoch: int
    iteration: int
    seconds: float
    learning_rate: float
    train_loss: float
    val_loss: float
    dice_patches: float
    dice_ema: float
    per_slice: Overlap | None = None
    per_volume: Overlap | None = None
    domains: dict[str, Overlap] = {}
    images: list[str] = []


class Speed(_RecordPart):
    """Training samples per second, mean and standard deviation over all ``iterations`` after the first `BURN_IN`.

    ``waiting_share`` is the share of these iterations' time that went into waiting for data.
    """

    mean: float
    sd: float
    iterations: int
    waiting_share: float


class TrainingRecord(_RecordPart):
    """Settings, course and cost of a training.

    ``seconds`` are training time over all interruptions. Memory is in bytes: ``peak_memory`` the largest resident
    memory of the training process (loader processes have their own), ``device_memory`` the largest that was allocated
    on a CUDA device, None elsewhere. ``model`` is None for stock nnU-Net. ``convergence_iteration``: see the function
    of that name. ``ended_by`` is None for a training that has not ended. ``trained_cases`` and ``validation_cases`` are
    names, in the order of the split; None in records of older versions. ``source_cases`` are the training cases of the
    model that an adaptation starts from, by dataset. In a training on several devices, numbers are those of the first
    process.
    """

    version: int = 1
    trainer: str
    plans: str
    configuration: str
    dataset: str
    fold: str
    model: str | None
    seed: int | None
    device: str
    processor: str
    threads: int
    versions: dict[str, str]
    patch_size: list[int]
    batch_size: int
    parameters: int
    parameters_trained: int
    training_cases: int
    trained_cases: list[str] | None = None
    validation_cases: list[str] | None = None
    source_cases: dict[str, list[str]] = {}
    iterations: int = 0
    seconds: float = 0.0
    speed: Speed | None = None
    peak_memory: int | None = None
    device_memory: int | None = None
    convergence_iteration: int | None = None
    ended_by: End | None = None
    validations: list[Validation] = []

    @property
    def seen(self) -> dict[str, list[str]]:
        """Recorded training cases of the model, by dataset."""
        own = [*(self.trained_cases or []), *self.source_cases.get(self.dataset, [])]
        return {**self.source_cases, self.dataset: own}

    def write(self, folder: Path) -> None:
        """Write the record into a fold's folder, in one step."""
        write_text(folder / FILE, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord | None:
        """Read the record of a fold's folder; None if it has none.

        Raises:
            ValueError: if the file holds something else.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        return read_model(path, cls, "the record of a training")


CONVERGED = 0.99
"""Share of the best Dice above which a training has converged."""


def convergence_iteration(dice_ema: Sequence[float], iterations: Sequence[int]) -> int | None:
    """Iteration of the first validation from which on the Dice stays above 0.99 of the training's best.

    Args:
        dice_ema: Dice of each validation, averaged over time with a weight of 0.9 on the past.
        iterations: optimiser steps before each validation.

    Returns:
        The iteration; None if the last validation is below that, or without any Dice above 0.
    """
    best = max((dice for dice in dice_ema if not math.isnan(dice)), default=0.0)
    reached: int | None = None
    for dice, iteration in zip(reversed(dice_ema), reversed(iterations), strict=True):
        if best <= 0 or not dice >= CONVERGED * best:  # NaN is outside
            break
        reached = iteration
    return reached
