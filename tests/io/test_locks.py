"""Locks of a study's steps: who holds one, who is gone, and who waits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nnunet_fm.io import locks
from nnunet_fm.io.locks import SILENCE, Holder, Lock, is_running, read_holder, start_of, this_place


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def write(path: Path, *processes: tuple[int, float], host: str | None = None, place: str | None = None) -> Path:
    where = {"host": host or socket.gethostname(), "place": this_place() if place is None else place}
    path.write_text(json.dumps({**where, "processes": processes, "what": "train"}))
    return path


def started(pid: int) -> float:
    found = start_of(pid)
    assert found is not None
    return found


def test_a_lock_is_held_and_released(tmp_path: Path) -> None:
    first, second = (Lock(tmp_path / "deep" / "lock", what) for what in ("one", "two"))
    assert first.take() is None
    holder = second.take()
    assert holder is not None and holder.pid == os.getpid() and holder.what == "one" and holder.alive
    assert str(os.getpid()) in str(holder) and "one" in str(holder)
    first.release()
    assert second.take() is None and second.left_behind is None
    with second:
        assert read_holder(second.path) is not None
    assert not second.path.exists()


def test_a_dead_owner_is_replaced(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    path = write(tmp_path / "lock", (sleeper.pid, started(sleeper.pid)))
    assert Lock(path, "x").take() is not None
    sleeper.kill()  # and not waited for: a zombie is no owner
    deadline = time.monotonic() + 10
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock = Lock(path, "x")
    assert lock.take() is None and lock.left_behind is not None
    assert lock.left_behind.processes[0][0] == sleeper.pid
    lock.release()


def test_a_number_that_went_to_another_process_is_no_owner(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    assert is_running(sleeper.pid, started(sleeper.pid))
    assert not is_running(sleeper.pid, started(sleeper.pid) - 3600)
    lock = Lock(write(tmp_path / "lock", (sleeper.pid, started(sleeper.pid) - 3600)), "x")
    assert lock.take() is None
    lock.release()


def test_a_command_outlives_its_step(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    lock = Lock(tmp_path / "lock", "train")
    assert lock.take() is None
    lock.add(sleeper.pid)
    holder = read_holder(lock.path)
    assert holder is not None and [pid for pid, _ in holder.processes] == [os.getpid(), sleeper.pid]
    gone = write(tmp_path / "orphan", (os.getpid(), 1.0), (sleeper.pid, started(sleeper.pid)))
    orphan = Lock(gone, "x").take()
    assert orphan is not None and orphan.pid == sleeper.pid and orphan.abandoned == sleeper.pid
    assert holder.abandoned is None
    lock.release()


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("node17", "another-boot pid:[1]"),
        (None, "another-boot pid:[1]"),  # restarted since, or another machine of this name
        (None, f"{this_place()}0"),  # a container on this machine, where numbers are of other processes
        (None, ""),  # of an older version
    ],
)
def test_another_place_is_believed_as_long_as_it_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None, place: str
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    path = write(tmp_path / "lock", (os.getpid(), 1.0), host=host, place=place)
    holder = Lock(path, "x").take()
    assert holder is not None and holder.abandoned is None and not holder.is_here
    for silent in (-SILENCE - 1, SILENCE + 1):  # long ago, and to come, where a clock was set back
        os.utime(write(path, (1, 1.0), host=host, place=place), (time.time() + silent,) * 2)
        lock = Lock(path, "x")
        assert lock.take() is None and lock.left_behind is not None and lock.left_behind.place == place
        lock.release()


def test_a_holder_elsewhere_is_heard_although_a_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file looks old to a clock that went forward; the next beat shows that it lives."""
    monkeypatch.setattr(locks, "BEAT", 1.0)
    path = write(tmp_path / "lock", (1, 1.0), host="node17", place="another-boot pid:[1]")
    old = time.time() - 3600
    os.utime(path, (old, old))
    beat = threading.Timer(0.1, lambda: os.utime(path, (old + 1, old + 1)))
    beat.start()
    holder = Lock(path, "x").take()
    beat.join()
    assert holder is not None and holder.host == "node17"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells no start that clocks cannot change")
@pytest.mark.parametrize("step", [10, -3600])
def test_a_step_of_the_clock_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes], step: int
) -> None:
    path = write(tmp_path / "lock", (sleeper.pid, started(sleeper.pid)))
    now, create_time = time.time, psutil.Process.create_time
    monkeypatch.setattr("time.time", lambda: now() + step)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + step)
    assert Lock(path, "x").take() is not None


def test_processes_that_a_system_hides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clusters show each account its own processes only."""
    path = write(tmp_path / "lock", (4_000_000, 1.0))
    monkeypatch.setattr(locks, "_is_hidden", lambda pid: pid == 4_000_000)
    assert Lock(path, "x").take() is not None
    silent = time.time() - SILENCE - 1
    os.utime(path, (silent, silent))
    lock = Lock(path, "x")
    assert lock.take() is None
    lock.release()


def test_a_held_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    lock = Lock(tmp_path / "lock", "x")
    assert lock.take() is None
    os.utime(lock.path, (0, 0))
    deadline = time.monotonic() + 10
    while lock.path.stat().st_mtime < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_who_waits_is_told_once_and_goes_on_when_the_owner_ends(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    lock = Lock(write(tmp_path / "lock", (sleeper.pid, started(sleeper.pid))), "x")
    told: list[Holder] = []
    threading.Timer(0.2, lambda: (sleeper.kill(), sleeper.wait())).start()
    began = time.monotonic()
    lock.wait(told.append, pause=0.02)
    assert time.monotonic() - began > 0.15 and [holder.pid for holder in told] == [sleeper.pid]
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}', '{"host": "a", "processes": 3, "what": "x"}'])
def test_a_file_that_was_cut_off_holds_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    path.write_text(content)
    assert read_holder(path) is None
    lock = Lock(path, "x")
    assert lock.take() is None
    lock.release()


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    stale = write(tmp_path / "lock", (2**22 + 1, 1.0))
    code = (
        "import sys, time; from pathlib import Path; from nnunet_fm.io.locks import Lock\n"
        "lock = Lock(Path(sys.argv[1]), 'x'); print(lock.take() is None, flush=True); time.sleep(2)"
    )
    words = [sys.executable, "-c", code, str(stale)]
    many = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        answers = [process.stdout.readline().strip() for process in many if process.stdout]
    finally:
        for process in many:
            process.kill()
            process.communicate()
    assert sorted(answers) == ["False", "False", "False", "True"]
