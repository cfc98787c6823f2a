"""Cores, threads and memory that a container leaves to this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunet_fm.cpu import limits
from tests.helpers.control_groups import make_control_groups

GB = 10**9


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_control_groups(tmp_path, monkeypatch)


def test_without_limits_the_machine_counts(container: Path) -> None:
    (container / "job" / "cpu.max").write_text("max 100000\n")
    (container / "job" / "memory.max").write_text("max\n")
    assert limits.core_limit() is None and limits.usable_cores() == 16
    assert limits.memory() == (64_000_000 * 1024, 50_000_000 * 1024)


def test_the_narrowest_limit_counts(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (container / "job" / "cpu.max").write_text("250000 100000\n")
    (container / "job" / "step" / "cpu.max").write_text("400000 100000\n")
    (container / "job" / "memory.max").write_text(f"{8 * GB}\n")
    (container / "job" / "memory.current").write_text(f"{5 * GB}\n")
    (container / "job" / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GB}\n")
    assert limits.core_limit() == 2.5 and limits.usable_cores() == 2
    for chosen, limit, threads in (("1", "", 1), ("4", "", 2), ("", "1", 1), ("none", "", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", chosen), monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
        assert limits.threads() == threads
    assert limits.memory() == (8 * GB, 5 * GB)


def test_threads_sleep_while_they_wait_where_the_cores_are_wanted(
    container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 cores; a command that is started chooses for itself, whatever this process has chosen."""
    for name in (*limits.WAITING, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(limits, "STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(limits, "_chosen", {})
    assert not limits.crowded(), "no statistics on this system"

    def running(tasks: int) -> bool:
        limits.STATISTICS.write_text(f"btime 1\nprocs_running {tasks}\n")
        return limits.crowded()

    assert not running(1) and running(2), "16 threads leave no core for another task"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert not running(13) and running(14)
    running(13)
    limits.choose_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ
    (container / "cpu.max").write_text("350000 100000")
    limits.choose_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE", "three and a half cores for four threads"
    assert "OMP_WAIT_POLICY" not in limits.environment()
    monkeypatch.setattr(limits, "_chosen", {})
    assert limits.environment()["OMP_WAIT_POLICY"] == "PASSIVE", "the user's own"


def test_limits_of_the_first_version_of_control_groups(container: Path, tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")
    for controller, files in {
        "memory": {"memory.limit_in_bytes": 4 * GB, "memory.usage_in_bytes": GB},
        "cpu,cpuacct": {"cpu.cfs_quota_us": 300_000, "cpu.cfs_period_us": 100_000},
    }.items():
        (container / controller / "job").mkdir(parents=True)
        for name, value in files.items():
            (container / controller / "job" / name).write_text(f"{value}\n")
    assert limits.core_limit() == 3 and limits.memory() == (4 * GB, 3 * GB)
    (container / "memory" / "job" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (container / "cpu,cpuacct" / "job" / "cpu.cfs_quota_us").write_text("-1\n")
    assert limits.core_limit() is None and limits.memory() == (64_000_000 * 1024, 50_000_000 * 1024)


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "none")
    assert limits.memory() is None and limits.core_limit() is None
