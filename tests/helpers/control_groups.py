"""A made-up file system of control groups, as a container has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_fm.cpu import limits


def make_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system of control groups, in which this process is in ``/job/step`` of a machine of 16 cores."""
    root = tmp_path / "cgroup"
    (root / "job" / "step").mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/job/step\n")
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 50000000 kB\n")
    monkeypatch.setattr(limits, "CGROUPS", root)
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    return root
