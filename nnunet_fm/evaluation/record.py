"""The record that a training leaves beside its checkpoints: ``training_record.json``, its schema and its file."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

FILE = "training_record.json"
BURN_IN = 50
"""Iterations left out of the speed: the first ones allocate, compile and fill caches."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")


class Overlap(_Strict):
    """Mean Dice and mean intersection over union (mIoU) over foreground classes; NaN where nothing was there."""

    dice: float
    miou: float


class Validation(_Strict):
    """One validation: at the end of an epoch, of the training's own domain and of the plan's ``eval_datasets``.

    ``per_slice`` are means over the slices, ``per_volume`` over the volumes of whole cases, where they were measured.
    ``domains`` has the name of another dataset -> per volume. ``images`` are file names relative to the record.
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


class Speed(_Strict):
    """Training samples per second over all iterations after the first `BURN_IN`, and the share of time for data."""

    mean: float
    sd: float
    iterations: int
    waiting_share: float


class TrainingRecord(_Strict):
    """What a training did and cost. Memory is in bytes, ``device_memory`` that of an accelerator, None on a CPU."""

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
    iterations: int = 0
    seconds: float = 0.0
    speed: Speed | None = None
    peak_memory: int | None = None
    device_memory: int | None = None
    convergence_iteration: int | None = None
    validations: list[Validation] = []

    def write(self, folder: Path) -> None:
        """Write the record into a fold's folder, in one step."""
        partial = folder / f"{FILE}.{os.getpid()}"
        partial.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        os.replace(partial, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord | None:
        """The record of a fold's folder, None where there is none."""
        path = folder / FILE
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None
