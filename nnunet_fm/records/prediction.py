"""Seconds of each predicted case by step: ``prediction_times.json``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.io.untrusted import read_model
from nnunet_fm.records.machine import processor_name

if TYPE_CHECKING:
    import torch

FILE = "prediction_times.json"


class CaseTimes(BaseModel):
    """Seconds of the steps of one case: files to array, to network input, to logits, to the written label map."""

    model_config = ConfigDict(extra="forbid")
    reading: float
    preprocessing: float
    inference: float
    export: float

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return self.reading + self.preprocessing + self.inference + self.export


STEPS = tuple(CaseTimes.model_fields)


class PredictionTimes(BaseModel):
    """Seconds of every case of a folder of predictions, and the machine they were taken on.

    Args:
        processor: name of the CPU.
        device: device of the network: ``cpu``, ``mps``, or ``cuda`` with the name of the GPU.
        threads: number of CPU threads of the network.
        cases: name of a case -> its seconds.
    """

    model_config = ConfigDict(extra="forbid")
    processor: str
    device: str
    threads: int
    cases: dict[str, CaseTimes] = {}

    @classmethod
    def start(cls, folder: Path, device: torch.device, threads: int) -> tuple[PredictionTimes, PredictionTimes | None]:
        """Return times without cases for predictions on this machine, and the times that the folder has already.

        Args:
            folder: folder of the predictions.
            device: device of the network.
            threads: number of CPU threads of the network.

        Raises:
            ValueError: if the folder's file holds something else.
        """
        before = cls.read(folder)
        return cls(processor=processor_name(), device=device_name(device), threads=threads), before

    @classmethod
    def read(cls, folder: Path) -> PredictionTimes | None:
        """Read the times of a folder of predictions; None if it has none.

        Raises:
            ValueError: if the file holds something else.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        return read_model(path, cls, "times", ": remove it")

    def add_to(self, folder: Path) -> PredictionTimes:
        """Add these cases to the times of a folder in one step; returns the new content.

        Times of another machine, device or number of threads are dropped. Several processes may do so at the same time.
        """
        path = folder / FILE
        with FileLock(folder / f".{FILE}.lock"):
            before = self.read(folder)
            kept = before.cases if before is not None and before.same_machine(self) else {}
            together = self.model_copy(update={"cases": dict(sorted({**kept, **self.cases}.items()))})
            write_text(path, together.model_dump_json(indent=1))
        return together

    def same_machine(self, other: PredictionTimes) -> bool:
        """Whether both were measured on the same machine, device and number of threads."""
        return self.model_dump(exclude={"cases"}) == other.model_dump(exclude={"cases"})

    def summary(self) -> str:
        """One line: number of cases, median seconds of each step, machine."""
        machine = f"{self.processor}, {self.device}, {self.threads} threads"
        if not self.cases:
            return f"No case was timed ({machine})"
        medians = (
            f"{step} {statistics.median(getattr(case, step) for case in self.cases.values()):.2f}" for step in STEPS
        )
        cases = "1 case" if len(self.cases) == 1 else f"{len(self.cases)} cases"
        return f"{cases}, median seconds: {', '.join(medians)} ({machine})"


def device_name(device: torch.device) -> str:
    """``cpu``, ``mps``, or ``cuda`` with the name of the GPU."""
    import torch

    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
