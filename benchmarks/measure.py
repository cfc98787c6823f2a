"""What a run took: wall-clock and processor time, and memory; of a function in this process or of a command."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Measurement:
    """``wall`` and ``cpu`` in s (``cpu``: of all threads and processes together), ``memory`` in bytes."""

    wall: float
    cpu: float
    memory: int


def measure(function: Callable[[], object], *, repeats: int = 3, warm_up: int = 1) -> Measurement:
    """Medians over the repeats after a warm-up; memory by which this process has grown at its peak."""
    with suppress(OSError):  # Linux forgets the peak of what came before; elsewhere that may hide a lower one
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walls, cpus = [], []
    for _ in range(warm_up + repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Measurement(statistics.median(walls[warm_up:]), statistics.median(cpus[warm_up:]), growth * UNIT)


def run_command(command: Sequence[str | Path], **environment: str) -> Measurement:
    """Run a program of this Python environment, by its name; memory is the peak of its largest process.

    To be called in a process that has imported little: a command's peak counts from that of its parent.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    program = Path(sys.executable).with_name(str(command[0]))
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([program, *command[1:]], env={**os.environ, **environment}, capture_output=True, text=True)
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(wall, cpu, after.ru_maxrss * UNIT)


def threads() -> int:
    """Number of threads that a benchmark may use, as its environment says."""
    return int(os.environ["OMP_NUM_THREADS"])
