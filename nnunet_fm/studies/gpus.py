"""Give each job one of several GPUs; a scheduler's choice is kept."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_fm.io.locks import Holder, Lock

VISIBLE = "CUDA_VISIBLE_DEVICES"
SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "PBS_JOBID", "LSB_JOBID")
"""Variables that a scheduler sets in jobs to which it has assigned GPUs."""


def visible_gpus() -> list[str]:
    """Names of the visible GPUs in the form of `VISIBLE`; empty without an NVIDIA driver."""
    if os.environ.get(VISIBLE) is not None:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(s for s in listed.stdout.splitlines() if s.startswith("GPU "))]


@contextmanager
def one_of_several(
    on_wait: Callable[[Holder], None], *, wanted: bool = True, pause: float = 2.0
) -> Iterator[dict[str, str]]:
    """Hold one of the visible GPUs; yields the variable that makes it the only one, or nothing without a choice.

    Args:
        on_wait: called once with the holder of a GPU if none is free.
        wanted: whether a GPU is needed at all.
        pause: seconds between two attempts.
    """
    names = visible_gpus() if wanted else []
    if len(names) < 2 or any(os.environ.get(variable) for variable in SCHEDULERS):
        yield {}
        return
    folder = Path(tempfile.gettempdir()) / f"nnunet_fm_gpus_{getpass.getuser()}"
    told = False
    while True:
        for name in names:
            lock = Lock(folder / f"{name.replace('/', '_')}.lock", f"GPU {name}")
            holder = lock.take()
            if holder is None:
                with lock:
                    yield {VISIBLE: name}
                return
        if not told and holder is not None:
            on_wait(holder)
            told = True
        time.sleep(pause)
