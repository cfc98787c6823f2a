"""One job of a study as a process of its own: ``python -m nnunet_fm.studies.steps JOBS ID --threads N``.

A step holds a lock while it works, or waits for its holder: a training whose Snakemake was killed goes on alone and is
not started a second time. Finished work is recognised by its files and not repeated. Files appear complete or not at
all, the marker of the finished job last.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_fm.errors import one_line
from nnunet_fm.io.locks import Holder, Lock
from nnunet_fm.studies import data, gpus, testing, training
from nnunet_fm.studies.job_context import JobContext, lock_path
from nnunet_fm.studies.job_markers import INTERRUPTED_BY, JobMarkers, write_json
from nnunet_fm.studies.process import CommandError, interrupt_on_signals

INTERRUPTED = 130
"""Exit code after a signal, as in shells."""

STEPS: Mapping[str, Callable[[JobContext], None]] = {
    "plan": data.plan,
    "adapt": data.adapt,
    "preprocess": data.preprocess,
    "train": training.train,
    "predict": testing.predict,
    "evaluate": testing.evaluate,
    "report": testing.report,
}


def main(arguments: Sequence[str] | None = None, steps: Mapping[str, Callable[[JobContext], None]] = STEPS) -> int:
    """Do a job; returns the exit code.

    Args:
        arguments: arguments of the command line.
        steps: function for each rule.
    """
    parser = argparse.ArgumentParser(prog="nnunet_fm.studies.steps")
    parser.add_argument("jobs", type=Path)
    parser.add_argument("id")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    interrupt_on_signals()
    content = json.loads(given.jobs.read_text(encoding="utf-8"))
    job, folder = content["jobs"][given.id], Path(content["folder"])
    markers = JobMarkers(folder)
    _log_to(markers.log(job["rule"], given.id))
    print(f"--- {_now()} {job['title']}", flush=True)
    try:
        seconds = _work(content, given.id, given.threads, steps)
    except KeyboardInterrupt as error:
        print(f"--- {_now()} {INTERRUPTED_BY}{error}", flush=True)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, CommandError):
            reason = f"{error}: {_last_line(markers.log(job['rule'], given.id))}"
        else:
            reason = one_line(error)
            traceback.print_exc()
        print(f"--- {_now()} failed: {reason}", flush=True)
        write_json(markers.failed(job["rule"], given.id), {"title": job["title"], "reason": reason})
        return 1
    print(f"--- {_now()} done in {seconds:.1f} s", flush=True)
    about = {"title": job["title"], "seconds": round(seconds, 2), "host": socket.gethostname(), "finished": _now()}
    write_json(markers.done(job["rule"], given.id), about)
    return 0


def _work(
    content: Mapping[str, Any], identifier: str, threads: int, steps: Mapping[str, Callable[[JobContext], None]]
) -> float:
    """Wait for the lock and do the job; returns its seconds, without the waiting."""
    job, folder = content["jobs"][identifier], Path(content["folder"])
    rule, what, device = job["rule"], job["what"], job["device"]
    lock = Lock(lock_path(folder, rule, identifier, what), job["title"])

    def on_wait(holder: Holder) -> None:
        print(f"waiting for {holder}", flush=True)

    lock.wait(on_wait)
    with lock, gpus.one_of_several(on_wait, wanted=device == "cuda") as variables:
        start = time.monotonic()
        steps[rule](JobContext(folder, what, lock, threads, device, variables))
        return time.monotonic() - start


def _log_to(path: Path) -> None:
    """Append the output of this process and of its commands to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _last_line(log: Path) -> str:
    """Last line of a failed command's output, usually the reason."""
    sys.stdout.flush()
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line[:500] for line in reversed(lines) if line), "it said nothing")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
