"""Lock files that name the processes which hold them.

`Lock` outlives the process that took it as long as a process that was added lives: a training goes on alone when the
study that started it is killed. A lock of the operating system (`nnunet_fm.io.file_locks`) cannot do that, because it
ends with its process; the lock of a fold's folder is one for that very reason, and shares `Holder` with these.

The file has a place and processes, each with its start, because a number may have gone to another process since. In
its own place (`this_place`) a lock counts as long as one of its processes lives. Elsewhere only the age of the file
can be seen, which the holder keeps young. Starts count from that of the machine, whose clock may be set.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from nnunet_fm.io.atomic_write import write_text

BEAT = 20.0
"""Seconds between two updates of the modification time of a held lock."""
WATCH = 1.5
"""Beats for which a lock of another place is watched before it counts as left behind."""
SILENCE = 300.0
"""Seconds without an update after which a lock of another place may be left behind."""
SAME_START = 0.05
"""Seconds by which two values of a process's start may differ because of rounding."""


@dataclass(frozen=True)
class Holder:
    """Holder of a lock.

    Attributes:
        host: name of the machine, for messages.
        place: place of the processes, see `this_place`; empty in files of older versions.
        processes: number and start (s, see `start_of`) of each process; the lock is held as long as one of them lives.
        what: what the holder does, for messages.
        age: seconds since the last update of the file.
    """

    host: str
    place: str
    processes: tuple[tuple[int, float], ...]
    what: str
    age: float

    @property
    def alive(self) -> bool:
        """Whether a process that holds the lock may still be running."""
        if not self.is_here:
            return self.is_young
        if any(is_running(*process) for process in self.processes):
            return True
        return self.is_young and any(_is_hidden(pid) for pid, _ in self.processes)

    @property
    def is_here(self) -> bool:
        """Whether the processes can be seen from this one."""
        return self.place == this_place()

    @property
    def is_young(self) -> bool:
        """Whether the file was updated recently; a time in the future is as old as one in the past."""
        return abs(self.age) < SILENCE

    @property
    def abandoned(self) -> int | None:
        """Number of a living process of the lock if the one that took it is gone; else None."""
        if not self.is_here or not self.processes or is_running(*self.processes[0]):
            return None
        return next((pid for pid, started in self.processes[1:] if is_running(pid, started)), None)

    @property
    def pid(self) -> int:
        """Number of the first living process, else of the first one."""
        living = [pid for pid, started in self.processes if self.is_here and is_running(pid, started)]
        return (living or [pid for pid, _ in self.processes] or [0])[0]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" ({self.what})" if self.what else "")


def is_running(pid: int, started: float) -> bool:
    """Whether the process with this number and start (s) is still running."""
    found = start_of(pid)
    return found is not None and abs(found - started) < SAME_START


def start_of(pid: int) -> float | None:
    """Start of a living process in s: since the machine's start on Linux, else since 1970.

    None for a process that has ended, even if its parent has not read its exit code, or where nothing is known.
    """
    try:
        # The name, in parentheses, may hold anything; the state is the first field after it, the start the twentieth.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import psutil
    except ImportError:  # comes with the extra "study"
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _is_hidden(pid: int) -> bool:
    """Whether a process of this number belongs to another account, so that the system hides its start."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not os.access(f"/proc/{pid}/stat", os.R_OK)
    except OSError:
        return False
    return False


@cache
def this_place() -> str:
    """Identifier of this boot of the machine and of the container: within it, a number means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _this_process() -> tuple[int, float]:
    return os.getpid(), start_of(os.getpid()) or 0.0


def holder_json(what: str = "", processes: Sequence[tuple[int, float]] = ()) -> str:
    """Content of a lock file.

    Args:
        what: what the holder does, for people.
        processes: that hold the lock, each with its start (see `start_of`); without any, this one.
    """
    content = {"host": socket.gethostname(), "place": this_place(), "processes": processes or [_this_process()]}
    return json.dumps({**content, "what": what})


def read_holder(path: Path) -> Holder | None:
    """Read the holder from a lock file, alive or not; None if the file does not exist or was cut off."""
    try:
        age = time.time() - path.stat().st_mtime
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple((int(pid), float(started)) for pid, started in content["processes"])
        return Holder(content["host"], content.get("place", ""), processes, content["what"], age)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_touched(path: Path, holder: Holder) -> bool:
    """Whether a holder in another place still updates its file, which looks old if a clock was set."""

    def time_of_change() -> int:
        try:
            with path.open("rb") as file:  # opened, because network file systems cache the times of other hosts' files
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:  # the holder has released it
            return 0

    if holder.is_here:
        return False
    before, until = time_of_change(), time.monotonic() + WATCH * BEAT
    while time.monotonic() < until:
        time.sleep(BEAT / 20)
        if time_of_change() not in (before, 0):
            return True
    return False


class Lock:
    """A lock file, held by this process and by those that `add` names.

    Args:
        path: of the file; its folder is made.
        what: what the holder does, for people.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self.left_behind: Holder | None = None
        """Former holder, whose processes are gone."""
        self._processes: list[tuple[int, float]] = []
        self._released = threading.Event()

    def take(self) -> Holder | None:
        """Try to take the lock; returns its holder if somebody else has it, else None."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Reading and writing the file are one step for all processes.
        with FileLock(str(self.path) + ".guard"):
            holder = read_holder(self.path)
            if holder is not None and (holder.alive or _is_touched(self.path, holder)):
                return holder
            self.left_behind = holder
            self._processes = [_this_process()]
            self._write()
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return None

    def wait(self, on_wait: Callable[[Holder], None], pause: float = 2.0) -> None:
        """Take the lock as soon as nobody holds it; ``on_wait`` is called once with the holder before waiting."""
        told = False
        while (holder := self.take()) is not None:
            if not told:
                on_wait(holder)
                told = True
            time.sleep(pause)

    def add(self, pid: int) -> None:
        """Add a process: the lock is held as long as it runs, even after this process has ended."""
        started = start_of(pid)
        if started is not None:  # else it has ended already
            self._processes.append((pid, started))
            self._write()

    def release(self) -> None:
        """Release the lock."""
        self._released.set()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        write_text(self.path, holder_json(self.what, self._processes))

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:  # the folder was removed during the step, which fails by itself
                return

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
