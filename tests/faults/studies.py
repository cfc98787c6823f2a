"""Faults of studies that need no Snakemake; kills and interruptions of running ones are in `tests/studies`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.faults.registry import Bench, Seen, fault

STAGE = "Studies"


def refused(at: Bench, text: str) -> Seen:
    file = at.root / "study.yaml"
    file.write_text(text)
    with at.unchanged():
        seen = at.fails("study", file, "--dry-run")
    return seen


@fault(
    STAGE,
    "A study's file has a key with a typing error.",
    happens="refused, exit code 1",
    keeps="all files",
    code="study-field",
)
def a_study_with_a_wrong_key(at: Bench) -> Seen:
    return refused(at, "name: x\ndatasets: [501]\nmodells: [stunet_s]\n")


@fault(STAGE, "A study's file is no YAML.", happens="refused, exit code 1", keeps="all files", code="yaml-invalid")
def a_study_that_is_no_yaml(at: Bench) -> Seen:
    return refused(at, "datasets: [501\nmodels: {\n")


def hold(path: Path) -> None:
    from nnunet_fm.io.locks import Lock

    assert Lock(path, "trains").take() is None
    print("held", flush=True)
    time.sleep(60)


@fault(
    STAGE,
    "The process that held a study's lock was killed (SIGKILL).",
    happens="taken over at once",
    keeps="finished jobs, which are not repeated",
)
def the_lock_of_a_killed_study(at: Bench) -> None:
    from nnunet_fm.io.locks import Lock

    process, output = at.start(hold, at.root / "lock")
    while "held" not in output.read_text():
        time.sleep(0.02)
    lock = Lock(at.root / "lock", "trains")
    holder = lock.take()
    assert holder is not None and holder.pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lock.take() is None and lock.left_behind is not None
    lock.release()
