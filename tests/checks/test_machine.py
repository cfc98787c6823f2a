"""Findings on processor, memory, shared memory and GPU."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import nnunet_fm.checks.gpu as gpu_checks
from nnunet_fm.checks import machine
from nnunet_fm.cpu import limits
from tests.helpers.checks import GB, Usage, by_name


def test_unknown_memory_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "none")
    assert not list(machine.main_memory())


def test_more_threads_and_processes_than_a_container_allows(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (container / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = by_name(machine.processor(device=False))
    assert "16 cores, of whose time 2 cores' worth is allowed" in found["cpu"].detail
    assert (found["threads"].state, found["threads"].cure) == ("note", "export OMP_NUM_THREADS=2")
    assert found["processes"].detail == "nnU-Net starts 12 loaders and 8 workers on 2 cores"
    assert found["processes"].cure == "export nnUNet_n_proc_DA=2 nnUNet_def_n_proc=2"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    waiting = by_name(machine.processor(device=False))["waiting"]
    assert "OMP_WAIT_POLICY=active: threads" in waiting.detail and "OMP_WAIT_POLICY=PASSIVE" in waiting.cure
    for name, value in (("nnUNet_n_proc_DA", "2"), ("nnUNet_def_n_proc", "2"), ("OMP_WAIT_POLICY", "passive")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    found = by_name(machine.processor(device=False))
    assert {check.state for check in found.values()} == {"ok"} and "processes" not in found
    assert "waiting" not in by_name(machine.processor(device=True))
    monkeypatch.setenv("NNUNET_FM_HOOK", "0")
    assert by_name(machine.processor(device=False))["waiting"].state == "note"


def test_little_memory(container: Path) -> None:
    (check,) = machine.main_memory()
    assert check.state == "ok" and check.detail == "65.5 GB, of which 51.2 GB are left"
    (container / "memory.max").write_text(f"{6 * GB}")
    (container / "memory.current").write_text(f"{GB}")
    (check,) = machine.main_memory()
    assert check.state == "note" and "6.0 GB" in check.detail and check.cure


def test_shared_memory_holds_what_loaders_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = 64 * 10**6  # what a container has unless told otherwise
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(shared, 0, shared))
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    (check,) = by_name(machine.shared_memory()).values()
    assert check.state == "problem" and "27 batches of 12 loaders" in check.detail and "--shm-size=" in check.cure
    (check,) = by_name(machine.shared_memory(batch=10**6)).values()
    assert check.state == "ok", "small patches fit"
    (check,) = by_name(machine.shared_memory(batch=10**7)).values()
    assert check.state == "problem"
    monkeypatch.setenv(machine.LOADERS, "0")
    assert by_name(machine.shared_memory())["shared memory"].state == "ok"
    monkeypatch.setenv(machine.LOADERS, "many")
    assert by_name(machine.shared_memory())["shared memory"].cure == f"unset {machine.LOADERS}"


def test_without_shared_memory_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refused)
    limits.shared_memory_fault.cache_clear()
    try:
        (check,) = machine.shared_memory()
        assert check.state == "problem" and "cannot be used (No such file or directory)" in check.detail
        assert check.cure.startswith("start the container with --shm-size=8g")
        assert (limits.startable(4), limits.startable(3, 0), limits.startable(1)) == (1, 0, 1)
        assert capsys.readouterr().err.count("WARNING: working in this process alone: /dev/shm") == 2
    finally:
        limits.shared_memory_fault.cache_clear()


def test_bytes_of_a_batch_are_those_that_a_loader_makes() -> None:
    levels = [torch.zeros(2, 1, *[64 // 2**i] * 3, dtype=torch.int16) for i in range(5)]
    data = torch.zeros(2, 3, 64, 64, 64)
    real = sum(tensor.numel() * tensor.element_size() for tensor in (data, *levels))
    assert machine.batch_bytes(64**3, 2, 3) == pytest.approx(real, rel=1e-2)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    found = by_name(gpu_checks.gpu())
    assert found["cuda"].state == "note" and "-device cpu" in found["cuda"].detail
    assert "on several CUDA devices" in found["several GPUs"].detail
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert by_name(gpu_checks.gpu())["mps"].state == "ok"


@pytest.mark.parametrize(
    ("built", "detail", "cure"),
    [
        (None, "this PyTorch was built without CUDA", "--index-url https://download.pytorch.org/whl/"),
        ("13.0", "PyTorch of CUDA 13.0 cannot use it", "update the driver"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: str | None, detail: str, cure: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A40, 46068 MiB, 470.82.01'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", built)
    check = by_name(gpu_checks.gpu())["cuda"]
    assert check.state == "problem" and check.detail.startswith("NVIDIA A40, 46068 MiB, driver 470.82.01")
    assert detail in check.detail and cure in check.cure


@pytest.mark.parametrize(
    ("kernels", "free", "state"),
    [(["sm_80", "sm_90"], 70, "ok"), (["sm_80", "sm_90"], 10, "note"), (["sm_100", "compute_100"], 70, "problem")],
)
def test_gpus_that_pytorch_sees(monkeypatch: pytest.MonkeyPatch, kernels: list[str], free: int, state: str) -> None:
    device = SimpleNamespace(name="NVIDIA H100", total_memory=80 * GB, major=9, minor=0)
    for name, value in {
        "is_available": True, "get_arch_list": kernels, "device_count": 1, "get_device_properties": device,
        "mem_get_info": (free * GB, 80 * GB),
    }.items():  # fmt: skip
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
    check = by_name(gpu_checks.gpu())["cuda"]
    assert check.state == state and check.detail.startswith(f"0: NVIDIA H100, 80.0 GB, {free}.0 GB free")


@pytest.mark.parametrize(
    ("kernels", "device", "runs"),
    [
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (9, 0), True),
        (["sm_90a"], (9, 0), True),
        ([], (9, 0), True),
    ],
)
def test_kernels_of_a_build(kernels: list[str], device: tuple[int, int], runs: bool) -> None:
    assert gpu_checks._has_kernels(*device, kernels) is runs
