"""Lock files that say which processes hold them: what nobody holds any more is taken, what lives is waited for.

A lock is a JSON file with a host and processes, each with its start: a number alone may have gone to another process
since. On its own host a lock counts as long as one of its processes lives; of another host only the file's age can be
seen, which the holder keeps young.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from filelock import FileLock

from nnunet_fm.replacing import write_text

BEAT = 20.0
"""Seconds between two touches of a held lock's file."""
SILENCE = 300.0
"""Seconds without a touch after which a lock of another host counts as left behind."""
SAME_START = 5.0
"""Seconds by which two statements of a process's start may differ: clocks are set."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        processes: number and start (s since 1970) of each process; the lock is held as long as one of them lives.
        what: for people.
        age: seconds since the holder touched the file.
    """

    host: str
    processes: tuple[tuple[int, float], ...]
    what: str
    age: float

    @property
    def alive(self) -> bool:
        """Whether a process that holds the lock may still be running."""
        if self.host != socket.gethostname():
            return self.age < SILENCE
        return any(is_running(pid, started) for pid, started in self.processes)

    @property
    def abandoned(self) -> int | None:
        """Number of a process that lives on this host, while the one that took the lock is gone; None otherwise."""
        if self.host != socket.gethostname() or not self.processes or is_running(*self.processes[0]):
            return None
        return next((pid for pid, started in self.processes[1:] if is_running(pid, started)), None)

    @property
    def pid(self) -> int:
        """The first of the processes that live, or of all."""
        living = [pid for pid, started in self.processes if is_running(pid, started)]
        return (living or [pid for pid, _ in self.processes] or [0])[0]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.what})"


def is_running(pid: int, started: float) -> bool:
    """Whether the process of this number is the one that started then, and has not ended."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < SAME_START and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def read_holder(path: Path) -> Holder | None:
    """Who a lock file names, alive or not; None where there is no such file, or one that was cut off."""
    try:
        age = time.time() - path.stat().st_mtime
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple((int(pid), float(started)) for pid, started in content["processes"])
        return Holder(content["host"], processes, content["what"], age)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Lock:
    """A lock file, held by this process and by those that `add` names.

    Args:
        path: of the file; its folder is made.
        what: what the holder does, for people.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self.left_behind: Holder | None = None
        """Whose lock was taken because its processes are gone."""
        self._processes: list[tuple[int, float]] = []
        self._released = threading.Event()

    def take(self) -> Holder | None:
        """Take the lock unless somebody holds it; returns who does, None when it is ours."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Looking and writing are one step for everybody who asks.
        with FileLock(str(self.path) + ".guard"):
            holder = read_holder(self.path)
            if holder is not None and holder.alive:
                return holder
            self.left_behind = holder
            self._processes = [(os.getpid(), psutil.Process().create_time())]
            self._write()
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return None

    def wait(self, tell: Callable[[Holder], None], pause: float = 2.0) -> None:
        """Take the lock as soon as nobody holds it; ``tell`` is called once if that is not at once."""
        told = False
        while (holder := self.take()) is not None:
            if not told:
                tell(holder)
                told = True
            time.sleep(pause)

    def add(self, pid: int) -> None:
        """Name a further process: the lock outlives this one as long as that one runs."""
        try:
            self._processes.append((pid, psutil.Process(pid).create_time()))
        except psutil.NoSuchProcess:  # it has ended already
            return
        self._write()

    def release(self) -> None:
        """Let go."""
        self._released.set()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {"host": socket.gethostname(), "processes": self._processes, "what": self.what}
        write_text(self.path, json.dumps(content))

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:  # the folder was removed under a running step, which will say so itself
                return

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
