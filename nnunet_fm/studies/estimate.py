"""Estimate hours and bytes of a study from measured speeds, or else from published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from nnunet_fm.models.card import ModelCard, Variant
from nnunet_fm.models.variants import iterations_on, on_dataset
from nnunet_fm.planfile.schema import ADAPTATION_EPOCHS
from nnunet_fm.records.training import FILE, TrainingRecord
from nnunet_fm.studies.expand import Expansion, Training
from nnunet_fm.studies.images import USUAL_CASES, USUAL_SHAPE, Images, image_numbers
from nnunet_fm.studies.jobs import Job

CPU_SLOWER = 60.0
"""Slowdown of one CPU core against the GPU of published speeds; 50 to 100, depending on the network's size."""
SAMPLES_2D, PARAMETERS_2D = 60.0, 106e6
"""Slices of 224 × 224 per second of training on a GPU, for a network with this number of parameters."""
WAITING, FASTEST = 0.5, 6.0
"""Patches per second. A published speed below the first measured data loading; the second caps all estimates."""
STOCK_SECONDS = {"2d": 0.15, "3d_fullres": 0.36}
"""Seconds of one iteration of stock nnU-Net on a GPU."""
RESENC_SLOWER = {"m": 1.0, "l": 2.0, "xl": 4.0}
PLAN_MINUTES, REPORT_MINUTES = 1.0, 2.0
PREPROCESS_SECONDS, PREDICT_SECONDS, EVALUATE_SECONDS = 20.0, {"2d": 10.0, "3d_fullres": 30.0}, 4.0
"""Seconds for one case of usual size."""
OVERHEAD = 1.15
"""Factor for validation and loading beside the iterations of a training."""
COMPRESSED = 0.6
STOCK_PARAMETERS = {"m": 102e6, "l": 140e6, "xl": 206e6, None: 31e6}
HEAD_PARAMETERS = 20e6
"""Trained parameters with a frozen backbone, which checkpoints leave out."""


@dataclass
class Estimate:
    """Estimated cost of a study.

    Attributes:
        hours: hours of each job, on its cores or its GPU.
        disk: bytes by place.
        assumptions: sentences on what was assumed.
    """

    hours: dict[str, float] = field(default_factory=dict)
    disk: dict[str, float] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)


class Estimator:
    """Estimates for the jobs of a study.

    Args:
        expansion: expansion of the study.
        preprocessed: the folder ``nnUNet_preprocessed``.
        gpu: whether trainings have a GPU.
        threads: number of cores of a training without one.
    """

    def __init__(self, expansion: Expansion, preprocessed: Path, *, gpu: bool, threads: int) -> None:
        self.expansion, self.gpu, self.threads = expansion, gpu, max(1, threads)
        self.images = {name: image_numbers(dataset, preprocessed) for name, dataset in expansion.datasets.items()}
        self.measured: set[str] = set()

    def estimate(self, jobs: Mapping[str, Job]) -> Estimate:
        """Estimate the hours of each job, and the disk space of all together."""
        found = Estimate(hours={job.id: self._hours(job) for job in jobs.values()})
        found.disk = {
            "nnUNet_preprocessed": sum(self._data(job) for job in jobs.values() if job.rule == "preprocess"),
            "nnUNet_results": sum(self._checkpoints(training) for training in self.expansion.trainings.values()),
            "output": sum(self._predictions(job) for job in jobs.values() if job.rule == "predict"),
        }
        found.assumptions = self._assumptions()
        return found

    def iterations(self, training: Training) -> int:
        """Number of optimiser steps of a training, counted as in its plan."""
        if training.iterations is not None:
            return training.iterations
        run, study = training.run, self.expansion.study
        images = self.images[run.dataset]
        cases = images.training_cases(run.fold) if run.train_cases is None else run.train_cases
        slices = cases * images.slices
        card, variant = self._model(training)
        batch = variant.geometry.batch
        if run.method is not None:
            adapt = next(a for a in study.adapt if a.method == run.method)
            epochs = adapt.epochs or ADAPTATION_EPOCHS[run.method]
            samples = slices if card.dim == 2 else cases
            return epochs * -(-samples // batch)
        epochs = study.budget.epochs or variant.epochs or 0
        if card.dim == 2 and epochs:
            return epochs * -(-slices // batch)
        return iterations_on(card, variant, run.dataset)

    def seconds_per_iteration(self, training: Training) -> float:
        """Seconds per iteration of a training, on its GPU or its cores."""
        run = training.run
        measured = self._speeds.get((run.model or run.control or "", run.configuration, self.gpu))
        if measured is not None:
            self.measured.add(run.label)
            return measured
        slower = 1.0 if self.gpu else CPU_SLOWER / self.threads
        if training.card is None:
            size = run.plans.lower()
            factor = next((f for name, f in RESENC_SLOWER.items() if f"resenc_{name}_" in size), 1.0)
            return slower * factor * STOCK_SECONDS[run.configuration] * self._share(training, (128, 128, 128))
        card, variant = self._model(training)
        share = self._share(training, variant.geometry.patch)
        return slower * share * variant.geometry.batch / samples_per_second(card)

    def _model(self, training: Training) -> tuple[ModelCard, Variant]:
        assert training.card is not None
        study, run = self.expansion.study, training.run
        entry = next(m for m in study.models if m.model == training.card.name)
        variant = training.card.variants[entry.variant or study.variant]
        return training.card, on_dataset(variant, f"Dataset000_{self._short(run.dataset)}", run.adapter)

    def _short(self, dataset: str) -> str:
        return self.expansion.datasets[dataset].short

    def _share(self, training: Training, patch: tuple[int, ...] | list[int]) -> float:
        """Share of the patch size that remains after the patch is cut down to the images; 1 for slices."""
        images = self.images[training.run.dataset]
        if len(patch) == 2 or not images.known:
            return 1.0
        # Sizes are multiples of about 16.
        edges = [min(edge, -(-size // 16) * 16) for edge, size in zip(patch, images.shape, strict=True)]
        return float(np.prod(edges) / np.prod(patch))

    @cached_property
    def _speeds(self) -> dict[tuple[str, str, bool], float]:
        """Measured seconds per iteration on the study's datasets, by (model or control, configuration, on a GPU)."""
        found: dict[tuple[str, str, bool], list[float]] = {}
        folders = {Path(t.run.model_folder).parent for t in self.expansion.trainings.values()}
        controls = {t.run.trainer: t.run.control for t in self.expansion.trainings.values() if t.card is None}
        for file in sorted(file for folder in folders for file in folder.glob(f"*/fold_*/{FILE}")):
            try:
                record = TrainingRecord.read(file.parent)
            except ValueError:  # of another version
                continue
            if record is None or record.speed is None or not record.speed.mean > 0:
                continue
            name = record.model or controls.get(record.trainer) or ""
            if record.model is None and "resenc" in record.plans.lower():
                name = "resenc"
            key = (name, record.configuration, record.device.startswith("cuda"))
            found.setdefault(key, []).append(record.batch_size / record.speed.mean)
        return {key: float(np.median(values)) for key, values in found.items()}

    # Jobs

    def _hours(self, job: Job) -> float:
        trainings = self.expansion.trainings
        if job.rule == "train":
            training = trainings[job.run or ""]
            seconds = OVERHEAD * self.iterations(training) * self.seconds_per_iteration(training)
            if (minutes := self.expansion.study.budget.minutes) is not None and training.card is not None:
                seconds = min(seconds, OVERHEAD * 60 * minutes)
            return seconds / 3600
        if job.rule == "preprocess":
            images = self.images[job.what["dataset"]]
            return PREPROCESS_SECONDS * images.cases * _size(images) / self.threads / 3600
        if job.rule == "predict":
            slower = 1.0 if self.gpu else CPU_SLOWER / self.threads
            images = self.images[job.what["target"]]
            seconds = PREDICT_SECONDS[job.what["configuration"]]
            return seconds * slower * self._tested(job) * _size(images) / 3600
        if job.rule == "evaluate":
            images = self.images[job.what["target"]]
            return EVALUATE_SECONDS * self._tested(job) * _size(images) / 3600
        return (REPORT_MINUTES if job.rule == "report" else PLAN_MINUTES) / 60

    def _tested(self, job: Job) -> int:
        images, which = self.images[job.what["target"]], self.expansion.study.test
        return images.tests if images.tests and which != "validation" else -(-images.cases // 5)

    # Disk

    def _data(self, job: Job) -> float:
        images = self.images[job.what["dataset"]]
        return COMPRESSED * images.cases * images.voxels * (4 * images.channels + 1)

    def _checkpoints(self, training: Training) -> float:
        """Bytes of the last and the best checkpoint: weights and the optimiser's state of trained parameters."""
        run, card = training.run, training.card
        if card is None:
            size = next((name for name in RESENC_SLOWER if f"resenc_{name}_" in run.plans.lower()), None)
            return 2 * 8 * STOCK_PARAMETERS[size]
        total = float(min(card.parameters.values()))
        trained = total if run.adapter in (None, "full") else min(total, HEAD_PARAMETERS)
        return 2 * 12 * trained

    def _predictions(self, job: Job) -> float:
        return self._tested(job) * self.images[job.what["target"]].voxels / 20

    def _assumptions(self) -> list[str]:
        where = "an A100" if self.gpu else f"{self.threads} core{'s' * (self.threads > 1)}"
        said = [
            f"Speeds are published or assumed ones of {where}, fitted to patch and batch"
            + (f"; measured: {', '.join(sorted(self.measured))}." if self.measured else "; none was measured yet.")
        ]
        if not self.gpu:
            said.append(f"A core is taken to be {CPU_SLOWER:g} times slower than an A100.")
        unknown = [self._short(name) for name, images in self.images.items() if not images.known]
        if unknown:
            shape = " × ".join(map(str, USUAL_SHAPE))
            said.append(
                f"Images of {', '.join(unknown)} could not be read: {USUAL_CASES} cases of {shape} voxels "
                "are assumed where nothing is known."
            )
        return said


def samples_per_second(card: ModelCard) -> float:
    """Training samples per second on a GPU: published for the model or its family, else by the number of parameters."""
    parameters = float(min(card.parameters.values()))
    if card.dim == 2:
        return SAMPLES_2D * PARAMETERS_2D / max(parameters, PARAMETERS_2D / 4)
    from nnunet_fm.models.registry import get_card
    from nnunet_fm.reporting.published import published_architectures

    published = published_architectures().set_index("model")["samples_per_s"]
    published = published[published > WAITING]
    if card.name in published.index:
        return float(published[card.name])
    family = [name for name in published.index if get_card(name).family == card.family]
    reference = get_card(family[0] if family else "stunet_b")
    faster = float(min(reference.parameters.values())) / parameters
    return min(FASTEST, float(published[reference.name]) * faster)


def _size(images: Images) -> float:
    """Number of voxels of an image as a multiple of a usual one."""
    return images.voxels / float(np.prod(USUAL_SHAPE))
