"""Cores and memory that this process may use, under the limits of a container or a batch system."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SHARED = Path("/dev/shm")
"""Memory through which processes of Linux share locks and batches."""
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how OpenMP's threads wait: the standard's, GNU's and Intel's."""
ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
STATISTICS = Path("/proc/stat")
LOOKS, PAUSE = 8, 0.02
"""Most counts of tasks in `crowded`, and seconds between two counts, so that short-lived tasks do not count."""
NO_LIMIT = 2**60
"""Bytes from which on a limit of the first version of control groups says that there is none."""

_chosen: dict[str, str] = {}


def cores() -> int:
    """Number of cores that this process may run on, regardless of its share of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit() -> float | None:
    """Cores' worth of time that the control groups of this process allow it, None without a limit."""
    found = []
    for folder in _groups("cpu"):
        try:
            quota, period = _quota(folder)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0:
            found.append(quota / period)
    return min(found, default=None)


def usable_cores() -> int:
    """Threads that can run at a time: `cores` under `core_limit`."""
    limit = core_limit()
    return cores() if limit is None else max(1, min(cores(), round(limit)))


def threads() -> int:
    """Threads to compute with: `usable_cores`, but no more than ``OMP_NUM_THREADS`` and ``OMP_THREAD_LIMIT`` say."""
    wanted = [os.environ.get(name, "").split(",")[0].strip() for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT")]
    return min([usable_cores(), *(int(number) for number in wanted if number.isdecimal() and int(number) > 0)])


@cache
def shared_memory_fault() -> str | None:
    """Reason why no worker processes can be started here: their locks need `SHARED`; None where they can."""
    if sys.platform != "linux":
        return None
    from multiprocessing import get_context

    try:
        get_context("fork").Event()
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        return (
            f"{SHARED}, through which processes share locks and batches, cannot be used ({reason}): start the "
            "container with --shm-size=8g or --ipc=host, or mount a tmpfs there"
        )
    return None


def startable(processes: int, least: int = 1) -> int:
    """So many worker processes, or ``least``, which starts none, where there can be none; says so on standard error."""
    if processes <= least or (fault := shared_memory_fault()) is None:
        return processes
    print(f"WARNING: working in this process alone: {fault}", file=sys.stderr)
    return least


def crowded() -> bool:
    """Whether threads of this process would take turns on the cores, with one another or with other work of now."""
    limit, others = core_limit(), _other_tasks()
    if limit is not None and limit < threads():
        return True
    return others is not None and others + threads() > (os.cpu_count() or 1)


def choose_waiting() -> None:
    """Let OpenMP's threads sleep while they wait if the machine is `crowded`, unless the user has set one of `WAITING`.

    A thread that spins while it waits is quick to go on, but holds a core that others need: a training on a crowded
    machine takes many times as long. The choice counts only if PyTorch is imported after it. It also holds for worker
    processes; commands that choose for themselves are started with `environment`.
    """
    if not any(name in os.environ for name in WAITING) and crowded():
        os.environ.update(ASLEEP)
        _chosen.update(ASLEEP)


def environment() -> dict[str, str]:
    """Variables for a command that this process starts: all but what `choose_waiting` has chosen."""
    return {name: value for name, value in os.environ.items() if _chosen.get(name) != value}


def memory() -> tuple[int, int] | None:
    """Total and available memory in bytes; None if the system does not report it.

    The system's cache of files counts as available.
    """
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        values = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        total, left = values["MemTotal"], values["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for folder in _groups("memory"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                limit = int((folder / limit_file).read_text())
                used = int((folder / used_file).read_text()) - _of_files(folder)
            except (OSError, ValueError):
                continue
            if limit < NO_LIMIT:
                total, left = min(total, limit), min(left, max(0, limit - used))
    return total, left


def _other_tasks() -> int | None:
    """Tasks of the whole machine, besides this one, that compute or wait for a core.

    None on systems that do not tell.
    """
    counts = []
    for look in range(LOOKS):
        time.sleep(PAUSE if look else 0)
        try:
            lines = STATISTICS.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            return None
        counts += [int(line.split()[1]) - 1 for line in lines if line.startswith("procs_running ")]
        if 0 in counts:
            break
    return min(counts, default=None)


def _quota(folder: Path) -> tuple[int, int]:
    """Microseconds of processor time in each of so many microseconds."""
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
    return int(quota), int(period)


def _of_files(folder: Path) -> int:
    """Bytes of a group's memory that hold parts of files, which the system gives back where memory is wanted."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    return values.get("inactive_file", values.get("total_inactive_file", 0))


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process, from its own up to the root."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        if not root.is_dir():  # mounted under one of its names alone
            root = CGROUPS / controller
        group = root / path.lstrip("/")
        while True:
            yield group
            if group == root:
                break
            group = group.parent
