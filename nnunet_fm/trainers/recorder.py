"""The recorder of a training: keeps ``training_record.json`` current, and tells nnU-Net's loggers what they lack."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.utilities.helpers import dummy_context
from numpy.typing import NDArray
from torch import Tensor, autocast

from nnunet_fm.records.machine import peak_memory, processor_name, versions
from nnunet_fm.records.training import BURN_IN, Overlap, Speed, TrainingRecord, Validation, convergence_iteration
from nnunet_fm.trainers.pictures import SamplePictures, remove_pictures
from nnunet_fm.trainers.slice_overlap import SliceOverlap
from nnunet_fm.trainers.volume_dice import label_map

if TYPE_CHECKING:
    from nnunet_fm.trainers.loop import BudgetTrainer

MAX_PICTURED = 50
"""Validations whose pictures are kept; beyond that every second one goes."""


@dataclass
class _Rates:
    """Running mean and sum of squared deviations of samples/s (Welford 1962), and where the time went (s)."""

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


class Recorder:
    """Records one training, in the first process where there are several.

    Args:
        trainer: whose record it is; it tells the recorder of its steps and validations.
    """

    def __init__(self, trainer: BudgetTrainer) -> None:
        self.trainer = trainer
        self.slices = SliceOverlap(trainer.label_manager)
        self.record: TrainingRecord | None = None
        self._rates = _Rates()
        self._epoch = _Rates()
        self._validations: list[Validation] = []
        self._peaks: dict[str, int | None] = {"peak_memory": None, "device_memory": None}
        self._pictures: SamplePictures | None = None

    @property
    def folder(self) -> Path:
        """The fold's folder."""
        return Path(self.trainer.output_folder)

    def start(self) -> None:
        """Describe the training; called when network and data are there."""
        trainer = self.trainer
        self.slices.reset()
        training, validation = trainer.do_split()
        if trainer.local_rank != 0:
            return
        if trainer.current_epoch == 0:
            remove_pictures(self.folder)
        self._pictures = SamplePictures(trainer, validation)
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
            patch_size=[int(edge) for edge in trainer.configuration_manager.patch_size],
            batch_size=trainer.configuration_manager.batch_size,
            parameters=sum(p.numel() for p in parameters),
            parameters_trained=sum(p.numel() for p in parameters if p.requires_grad),
            training_cases=len(training),
            trained_cases=[str(case) for case in training],
            validation_cases=[str(case) for case in validation],
            source_cases=trainer.source_cases,
        )

    def step(self, waited: float, total: float) -> None:
        """Count an iteration, after it.

        Args:
            waited: s for the batch.
            total: s for batch and training step.
        """
        rate = self.trainer.configuration_manager.batch_size / total
        self._epoch.add(rate, waited, total)
        if self.trainer.iteration > BURN_IN:
            self._rates.add(rate, waited, total)

    def validated(self, volumes: Overlap | None, domains: dict[str, Overlap]) -> None:
        """Record an epoch after its validation: write the file, draw the pictures, tell the loggers.

        Args:
            volumes: of the dataset's own validation volumes, where they were measured.
            domains: dataset -> the same.
        """
        trainer = self.trainer
        per_slice = self._gather_slices()
        if (speed := self._epoch.speed()) is not None:
            trainer.print_to_log_file(
                f"Training steps: {speed.mean:.3g} samples/s, {speed.waiting_share:.0%} of the time waiting for data"
            )
        self._epoch = _Rates()
        if self.record is None:
            return
        value = {
            key: float(trainer.logger.get_value(key, step=-1))
            for key in ("lrs", "train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")
        }
        assert self._pictures is not None
        validation = Validation(
            epoch=trainer.current_epoch,
            iteration=trainer.iteration,
            seconds=trainer.seconds_spent,
            learning_rate=value["lrs"],
            train_loss=value["train_losses"],
            val_loss=value["val_losses"],
            dice_patches=value["mean_fg_dice"],
            dice_ema=value["ema_fg_dice"],
            per_slice=per_slice,
            per_volume=volumes,
            domains=domains,
            images=self._pictures.draw(self._predict, self.folder, f"epoch_{trainer.current_epoch:04d}"),
        )
        self._validations.append(validation)
        self._thin_pictures()
        self._write()
        self._tell_loggers(validation)

    def finish(self) -> None:
        """Write the record of a training that has ended."""
        if self.record is not None:
            self._write()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the record."""
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

    def _gather_slices(self) -> Overlap | None:
        """Means over the slices of all processes; None where none showed anything."""
        sums = self.slices.sums
        self.slices.reset()
        if self.trainer.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, sums)
            sums = np.sum(gathered, axis=0).tolist()
        dice, iou, count = sums
        return Overlap(dice=dice / count, miou=iou / count) if count else None

    def _predict(self, images: Tensor) -> NDArray[Any]:
        """Label maps of patches ``(B, C, [Z,] Y, X)``, in batches of the training's size."""
        trainer = self.trainer
        maps = []
        with torch.no_grad(), autocast("cuda") if trainer.device.type == "cuda" else dummy_context():
            for batch in images.split(trainer.batch_size):
                output = trainer.bare_network(batch.to(trainer.device))
                logits = output if isinstance(output, Tensor) else output[0]
                maps += [np.asarray(label_map(one, trainer).cpu()) for one in logits]
        return np.stack(maps)

    def _thin_pictures(self) -> None:
        pictured = [validation for validation in self._validations if validation.images]
        if len(pictured) > MAX_PICTURED:
            for validation in pictured[1:-1:2]:
                remove_pictures(self.folder, validation.images)
                validation.images = []

    def _memory(self) -> dict[str, int | None]:
        """The largest memory so far, over all interruptions."""
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

    def _tell_loggers(self, validation: Validation) -> None:
        """TensorBoard and Weights & Biases; nnU-Net's own logger knows its own values only."""
        assert self.record is not None
        overlaps = {"per_slice": validation.per_slice, "per_volume": validation.per_volume, **validation.domains}
        values = {
            f"{name}/{measure}": value
            for name, overlap in overlaps.items()
            if overlap is not None
            for measure, value in overlap.model_dump().items()
        }
        if (speed := self.record.speed) is not None:
            values |= {"speed/samples_per_second": speed.mean, "speed/waiting_share": speed.waiting_share}
        for logger in self.trainer.logger.loggers:
            for key, value in values.items():
                logger.log(key, value, validation.epoch)
        if self.trainer.tensorboard is not None:
            self.trainer.tensorboard.flush()
