"""Prepare a study for Snakemake: its jobs with cores, memory, time and device, written into its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from nnunet_fm.cpu.limits import usable_cores
from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.io.dataset_names import VARIABLES
from nnunet_fm.models.registry import get_card
from nnunet_fm.studies.datasets import how_to_convert
from nnunet_fm.studies.estimate import Estimate, Estimator
from nnunet_fm.studies.expand import Expansion, expand
from nnunet_fm.studies.gpus import visible_gpus
from nnunet_fm.studies.job_context import absolute_folder
from nnunet_fm.studies.job_markers import write_json
from nnunet_fm.studies.jobs import Job, make_jobs
from nnunet_fm.studies.schema import Study
from nnunet_fm.weights.cache import find

JOBS, STUDY = "jobs.json", "study.yaml"
OURS = ("nnUNet_", "NNUNET_FM_")
"""Prefixes of variables that are passed to jobs on other machines."""

GPU_CORES, CPU_CORES = 8, 4
"""Default cores of a training, with and without GPU."""
MEMORY_GB = {"plan": 4, "adapt": 4, "preprocess": 16, "predict": 16, "evaluate": 8, "report": 8}
SHORTEST_MINUTES, SHORTEST_TRAINING = 60, 240


@dataclass(frozen=True)
class Machine:
    """Machine that jobs run on.

    Attributes:
        cores: number of cores for all jobs together; None if a scheduler decides.
        gpus: number of GPUs for all jobs together; 0 for training on processors.
        device: device of trainings and predictions: ``cuda``, ``cpu`` or ``mps``.
    """

    cores: int | None
    gpus: int
    device: str


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to start."""

    study: Study
    expansion: Expansion
    jobs: Mapping[str, Job]
    estimate: Estimate
    machine: Machine

    @property
    def missing(self) -> dict[str, str]:
        """Command that makes each missing dataset, by name."""
        thesis = self.study.variant == "thesis"
        return {dataset.name: how_to_convert(dataset, thesis=thesis) for dataset in self.expansion.missing}

    @property
    def missing_weights(self) -> list[str]:
        """Names of needed official files that are not in the weights folder."""
        wanted = {}
        for model in self.study.models:
            card = get_card(model.model)
            checkpoint = card.find_checkpoint(model.weights) if model.weights else card.checkpoint
            if checkpoint is not None and not model.scratch:
                wanted[checkpoint.name] = checkpoint.files
        return [name for name, files in wanted.items() if find(files) is None]

    def write(self, folder: Path, jobs_of: Path) -> None:
        """Write the list of jobs for Snakemake and its steps.

        Args:
            folder: working folder of Snakemake.
            jobs_of: the study's folder, to which steps write.
        """
        content = {
            "folder": str(jobs_of),
            "variables": sorted(name for name in os.environ if name.startswith(OURS)),
            "runs": {run: list(training.targets) for run, training in self.expansion.trainings.items()},
            "raw": str(absolute_folder("nnUNet_raw")),
            "jobs": {job.id: {**asdict(job), **self._share(job)} for job in self.jobs.values()},
        }
        write_json(folder / JOBS, content)

    def write_study(self) -> None:
        """Write the checked study and its runs into its folder."""
        folder = self.study.folder
        for run, training in self.expansion.trainings.items():
            write_json(folder / "runs" / run / "run.json", training.run.model_dump())
        content = self.study.model_dump(mode="json")
        content["output"] = str(folder)
        content["train_cases"] = [cases or "all" for cases in self.study.train_cases]
        write_text(folder / STUDY, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def _share(self, job: Job) -> dict[str, Any]:
        """Device, cores, memory and time of a job."""
        resources, hours = self.study.resources, self.estimate.hours[job.id]
        heavy = job.rule in ("train", "predict")
        gpu = resources.gpu if resources.gpu is not None else 1
        minutes = max(SHORTEST_TRAINING if job.rule == "train" else SHORTEST_MINUTES, round(120 * hours))
        if job.rule == "train" and resources.hours is not None:
            minutes = round(60 * resources.hours)
        memory = resources.memory_gb if job.rule == "train" else MEMORY_GB[job.rule]
        return {
            "device": self.machine.device if heavy else "cpu",
            "threads": threads(self.study, self.machine, job.rule),
            "resources": {
                "gpu": gpu if heavy and self.machine.gpus else 0,
                "mem_mb": round(1000 * memory),
                "runtime": minutes,
            },
        }


def threads(study: Study, machine: Machine, rule: str) -> int:
    """Number of cores of a job of a rule."""
    wanted = study.resources.cores or (GPU_CORES if machine.gpus else CPU_CORES)
    if rule in ("plan", "adapt", "evaluate") or (rule == "predict" and machine.gpus):
        wanted = min(wanted, 2)
    elif rule == "report":
        wanted = 1
    return min(wanted, machine.cores or wanted)


def find_machine(study: Study, cores: int | None, *, elsewhere: bool) -> Machine:
    """Find the cores, GPUs and device for the jobs of a study.

    Args:
        study: the study.
        cores: number of cores from the user; None for all that this process may use.
        elsewhere: whether jobs go to a cluster, whose GPUs are not visible here.
    """
    there = len(visible_gpus())
    device = study.resources.device
    if device is None:
        wanted = study.resources.gpu if study.resources.gpu is not None else int(elsewhere or there > 0)
        device = "cuda" if wanted else "cpu"
    gpus = 0 if device == "cpu" else max(1, there)
    return Machine(cores if elsewhere else cores or usable_cores(), gpus, device)


def prepare(study: Study, cores: int | None, *, elsewhere: bool) -> Prepared:
    """Expand a study and estimate its cost; nothing is written.

    Raises:
        StudyError: if its parts do not fit each other or the data.
        MissingFileError: if one of nnU-Net's folders is not set.
    """
    raw, preprocessed, results = (absolute_folder(name) for name in VARIABLES)
    expansion = expand(study, raw, results)
    jobs, machine = make_jobs(expansion), find_machine(study, cores, elsewhere=elsewhere)
    estimator = Estimator(
        expansion, preprocessed, gpu=machine.device == "cuda", threads=threads(study, machine, "train")
    )
    return Prepared(study, expansion, jobs, estimator.estimate(jobs), machine)


def snakemake_arguments(prepared: Prepared, profile: str | None, further: Sequence[str]) -> list[str]:
    """Arguments of Snakemake for a study, without the folder."""
    machine = prepared.machine
    arguments = ["--snakefile", str(Path(__file__).with_name("Snakefile")), "--nocolor", "--keep-going"]
    # A marker's name depends on the arguments of its job, so that only a missing marker is a reason to run it.
    arguments += ["--rerun-incomplete", "--rerun-triggers", "params"]
    if profile is not None:
        arguments += ["--profile", profile]
    if machine.cores is not None:
        arguments += ["--cores", str(machine.cores)]
    if profile is None:
        arguments += ["--resources", f"gpu={machine.gpus}"]
    return [*arguments, *further]
