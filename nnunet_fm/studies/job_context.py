"""Context of a job: arguments, nnU-Net's folders, cores and device, lock."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_fm.cpu import limits
from nnunet_fm.io.dataset_names import VARIABLES, nnunet_folder
from nnunet_fm.io.locks import Lock
from nnunet_fm.studies.process import run_command, thread_variables

PATHS = (*VARIABLES, "nnUNet_extTrainer", "NNUNET_FM_WEIGHTS", "NNUNET_FM_CARDS")
"""Variables that name folders."""


@dataclass
class JobContext:
    """Context of one job.

    Attributes:
        folder: folder of the study.
        what: arguments of the job.
        lock: lock that is held while the job's commands run.
        threads: number of cores that the job may use.
        device: ``cuda``, ``cpu`` or ``mps``.
        variables: environment variables of all commands, besides those for the cores.
    """

    folder: Path
    what: Mapping[str, Any]
    lock: Lock
    threads: int
    device: str
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, *words: object) -> None:
        """Run a command; raises `StepError` if it fails."""
        cores = thread_variables(self.threads, gpu=self.device != "cpu")
        run_command([str(word) for word in words], self.lock, {**cores, **self.variables})

    def raw(self, dataset: str) -> Path:
        """A dataset's folder in ``nnUNet_raw``."""
        return absolute_folder("nnUNet_raw") / dataset

    def preprocessed(self, dataset: str) -> Path:
        """A dataset's folder in ``nnUNet_preprocessed``."""
        return absolute_folder("nnUNet_preprocessed") / dataset

    def model(self) -> Path:
        """Folder of the model that the job trains or uses."""
        what = self.what
        name = f"{what['trainer']}__{what['plans']}__{what['configuration']}"
        return absolute_folder("nnUNet_results") / what["dataset"] / name

    def fold(self) -> Path:
        """Folder of the model's fold."""
        return self.model() / f"fold_{self.what['fold']}"


def absolute_folder(variable: str) -> Path:
    """One of nnU-Net's three folders as an absolute path, because jobs work in the study's folder.

    Raises:
        MissingFileError: if the variable is not set.
    """
    return nnunet_folder(variable).absolute()


def environment() -> dict[str, str]:
    """Environment for a process in another folder: relative paths of this one's variables become absolute."""
    paths = {name: os.environ[name] for name in PATHS if os.environ.get(name)}
    return {**limits.environment(), **{name: str(Path(path).expanduser().absolute()) for name, path in paths.items()}}


def lock_path(folder: Path, rule: str, job: str, what: Mapping[str, Any]) -> Path:
    """Path of a job's lock, beside the files that the job writes, so that it holds for all studies.

    Plans of a dataset share a lock, because the first job makes the fingerprint. Preprocessing jobs share one, because
    nnU-Net copies the label maps each time.
    """
    if rule in ("plan", "adapt", "preprocess"):
        kind = "preprocess" if rule == "preprocess" else "plan"
        return absolute_folder("nnUNet_preprocessed") / what["dataset"] / ".locks" / f"{kind}.lock"
    if rule == "train":
        model = f"{what['trainer']}__{what['plans']}__{what['configuration']}__fold_{what['fold']}"
        return absolute_folder("nnUNet_results") / what["dataset"] / ".locks" / f"{model}.lock"
    return folder / ".locks" / f"{job}.lock"
