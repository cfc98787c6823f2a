"""Record of a training: ``training_record.json`` beside its checkpoints, current after each epoch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.records.machine import peak_memory, processor_name, versions
from nnunet_fm.records.training import BURN_IN, Speed, TrainingRecord, Validation, convergence_iteration
from nnunet_fm.trainers.callbacks import Callback, EpochResult
from nnunet_fm.trainers.callbacks.pictures import remove_pictures

MAX_PICTURED = 50
"""Validations with pictures; beyond this number the pictures of every second one are removed."""


@dataclass
class _Rates:
    """Running mean and sum of squared deviations of samples/s (Welford 1962), waiting time and total time in s."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    waited: float = 0.0
    total: float = 0.0

    def add(self, rate: float, waited: float, total: float) -> None:
        self.count += 1
        change = rate - self.mean
        self.mean += change / self.count
        self.squares += change * (rate - self.mean)
        self.waited += waited
        self.total += total

    def speed(self) -> Speed | None:
        if self.count == 0:
            return None
        sd = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return Speed(mean=self.mean, sd=sd, iterations=self.count, waiting_share=self.waited / self.total)


class Recorder(Callback):
    """Keep ``training_record.json`` current; of several processes, the first one does."""

    def __init__(self, trainer: nnUNetTrainer) -> None:
        super().__init__(trainer)
        self.record: TrainingRecord | None = None
        self._rates = _Rates()
        self._epoch = _Rates()
        self._validations: list[Validation] = []
        self._peaks: dict[str, int | None] = {"peak_memory": None, "device_memory": None}

    @property
    def folder(self) -> Path:
        """The fold's folder."""
        return Path(self.trainer.output_folder)

    def train_start(self) -> None:
        """Describe the training."""
        trainer = self.trainer
        if trainer.local_rank != 0:
            return
        training, validation = trainer.do_split()
        parameters = list(trainer.bare_network.parameters())
        cuda = trainer.device.type == "cuda"
        self.record = TrainingRecord(
            trainer=type(trainer).__name__,
            plans=trainer.plans_manager.plans_name,
            configuration=trainer.configuration_name,
            dataset=trainer.plans_manager.dataset_name,
            fold=str(trainer.fold),
            model=trainer.model_name,
            seed=trainer.budget.seed,
            device=torch.cuda.get_device_name(trainer.device) if cuda else trainer.device.type,
            processor=processor_name(),
            threads=torch.get_num_threads(),
            versions=versions(),
            patch_size=[int(size) for size in trainer.configuration_manager.patch_size],
            batch_size=trainer.configuration_manager.batch_size,
            parameters=sum(p.numel() for p in parameters),
            parameters_trained=sum(p.numel() for p in parameters if p.requires_grad),
            training_cases=len(training),
            trained_cases=[str(case) for case in training],
            validation_cases=[str(case) for case in validation],
            source_cases=trainer.source_cases,
        )

    def step_end(self, waited: float, total: float) -> None:
        rate = self.trainer.configuration_manager.batch_size / total
        self._epoch.add(rate, waited, total)
        if self.trainer.iteration > BURN_IN:
            self._rates.add(rate, waited, total)

    def epoch_end(self, result: EpochResult) -> None:
        """Log the speed of the epoch, and write the record with its validation."""
        trainer = self.trainer
        if (speed := self._epoch.speed()) is not None:
            trainer.print_to_log_file(
                f"Training steps: {speed.mean:.3g} samples/s, {speed.waiting_share:.0%} of the time waiting for data"
            )
        self._epoch = _Rates()
        if self.record is None:
            return
        value = {key: float(trainer.logger.get_value(key, step=-1)) for key in ("lrs", "train_losses", "mean_fg_dice")}
        self._validations.append(
            Validation(
                epoch=result.epoch,
                iteration=trainer.iteration,
                seconds=trainer.seconds_spent,
                learning_rate=value["lrs"],
                train_loss=value["train_losses"],
                val_loss=result.val_loss,
                dice_patches=value["mean_fg_dice"],
                dice_ema=result.dice_ema,
                per_slice=result.per_slice,
                per_volume=result.per_volume,
                domains=result.domains,
                images=result.images,
            )
        )
        self._thin_pictures()
        self._write()
        result.speed = self._rates.speed()

    def train_end(self) -> None:
        """Write the record of a training that has ended."""
        if self.record is not None:
            self._write()

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint, from which `load_state` continues the record."""
        return {
            "validations": [validation.model_dump() for validation in self._validations],
            "rates": asdict(self._rates),
            "peaks": self._memory(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned; pictures may have been thinned out since."""
        self._validations = [Validation(**content) for content in state["validations"]]
        for validation in self._validations:
            validation.images = [name for name in validation.images if (self.folder / name).is_file()]
        self._rates = _Rates(**state["rates"])
        self._peaks = state["peaks"]

    def _thin_pictures(self) -> None:
        pictured = [validation for validation in self._validations if validation.images]
        if len(pictured) > MAX_PICTURED:
            for validation in pictured[1:-1:2]:
                remove_pictures(self.folder, validation.images)
                validation.images = []

    def _memory(self) -> dict[str, int | None]:
        """Largest memory so far in bytes, over all interruptions."""
        device = self.trainer.device
        now = {
            "peak_memory": peak_memory(),
            "device_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }
        return {key: max(filter(None, (value, self._peaks[key])), default=None) for key, value in now.items()}

    def _write(self) -> None:
        assert self.record is not None
        validations = self._validations
        self.record = self.record.model_copy(
            update={
                "iterations": self.trainer.iteration,
                "seconds": self.trainer.seconds_spent,
                "speed": self._rates.speed(),
                **self._memory(),
                "convergence_iteration": convergence_iteration(
                    [v.dice_ema for v in validations], [v.iteration for v in validations]
                ),
                "ended_by": self.trainer.ended_by,
                "validations": validations,
            }
        )
        self.record.write(self.folder)
