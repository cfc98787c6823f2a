"""Trainers as nnU-Net's command builds them, their losses, and trainings that are killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

import nnunet_fm.trainers
from nnunet_fm.records.training import TrainingRecord


def make_trainer(
    plans: dict[str, Any],
    trainer: str | type = "fm_trainer",
    fold: int | str = 0,
    configuration: str | None = None,
) -> Any:
    """A trainer of the plans' first or named configuration, by its name or class."""
    kind = getattr(nnunet_fm.trainers, trainer) if isinstance(trainer, str) else trainer
    raw_json = json.loads(Path(os.environ["nnUNet_preprocessed"], plans["dataset_name"], "dataset.json").read_text())
    plans = json.loads(json.dumps(plans)) | {"continue_training": False}
    return kind(plans, configuration or next(iter(plans["configurations"])), fold, raw_json, torch.device("cpu"))


def record_losses(trainer: Any) -> list[float]:
    """Every training and validation loss of a trainer, in order, as exact numbers."""
    losses: list[float] = []
    for step in ("train_step", "validation_step"):
        original = getattr(trainer, step)

        def wrapped(batch: Any, original: Any = original) -> Any:
            result = original(batch)
            losses.append(float(result["loss"]))
            return result

        setattr(trainer, step, wrapped)
    return losses


def record_of(trainer: Any) -> TrainingRecord:
    """The record that a training has written."""
    record = TrainingRecord.read(Path(trainer.output_folder))
    assert record is not None
    return record


class Killed(Exception):
    """Stands for the end of the process."""


def kill_after(trainer: Any, epochs: int) -> None:
    """End a training after so many epochs as if its process were killed."""
    epoch_end = trainer.on_epoch_end

    def killed() -> None:
        epoch_end()
        if trainer.current_epoch == epochs:
            raise Killed

    trainer.on_epoch_end = killed
