"""``nnunet-fm doctor``: what it finds, and that each problem has a cure."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import namedtuple
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

import nnunet_fm.checks.gpu as gpu_checks
import nnunet_fm.checks.hook as hook_checks
from nnunet_fm.checks import dataset as dataset_checks
from nnunet_fm.checks import folders, forecast, leftovers, machine, versions, weights
from nnunet_fm.checks.finding import OK, Check
from nnunet_fm.cpu import limits
from nnunet_fm.io.atomic_write import SCRATCH, replacing
from tests.helpers.datasets import nnunet_folders, write_dataset

VARIABLES = (*folders.PATHS, hook_checks.EXTERNAL_TRAINERS, "NNUNET_FM_HOOK", "OMP_WAIT_POLICY")
VARIABLES += (machine.LOADERS, machine.WORKERS)
GB = 10**9
Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    """Findings by name, each problem with a cure in one line."""
    found = {check.name: check for check in checks}
    assert all(check.cure and "\n" not in check.cure for check in found.values() if check.state == "problem")
    return found


def test_a_version_out_of_limits_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.24" if name == "timm" else real(name))
    checks = by_name(versions.versions())
    assert (checks["timm"].state, checks["torch"].state) == ("problem", "ok")
    assert "1.0.24 is installed" in checks["timm"].detail
    assert checks["timm"].cure == f'{sys.executable} -m pip install "timm<1.0.23"'


def test_a_missing_library_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "einops":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    (check,) = [check for check in versions.versions() if check.name == "einops"]
    assert check.state == "problem" and "not installed" in check.detail and "einops" in check.cure


def test_without_the_hook_the_portable_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_HOOK", "0")
    check = hook_checks.hook()
    assert (check.state, check.detail) == ("problem", "off, NNUNET_FM_HOOK=0 is set")
    folder = check.cure.rpartition("nnUNet_extTrainer=")[2]
    assert "--portable" in check.cure and len(list(Path(folder).glob("*.py"))) == 1
    monkeypatch.setenv("nnUNet_extTrainer", folder)
    check = hook_checks.hook()
    assert check.state == "note" and "portable plans work" in check.detail


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    found = by_name(folders.folders())
    assert found["nnUNet_raw"].state == "ok" and " free)" in found["nnUNet_raw"].detail
    assert found["nnUNet_preprocessed"].cure == "export nnUNet_preprocessed=FOLDER"
    assert found["nnUNet_results"].cure == f"mkdir -p {tmp_path / 'results'}, or nnunet-fm doctor --fix"
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file"))
    assert "is not a folder" in by_name(folders.folders())["nnUNet_results"].detail


@pytest.mark.parametrize(("free", "state"), [(30 * GB, "ok"), (5 * GB, "note"), (GB // 2, "problem")])
def test_a_disk_with_little_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    for name in folders.PATHS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100 * GB, 0, free))
    found = by_name(folders.folders())
    assert (found["nnUNet_raw"].state, found["nnUNet_results"].state) == ("ok", state)


def test_results_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in folders.PATHS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)  # for root nothing is read-only
    found = by_name(folders.folders())
    assert (found["nnUNet_raw"].state, found["nnUNet_results"].state) == ("note", "problem")
    assert found["nnUNet_results"].cure.startswith(f"chmod u+w {tmp_path}")


def write_plans(path: Path, **configuration: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"configurations": {"3d_fullres": configuration, "2d": {}}}))


def test_plans_that_need_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    stock = {"preprocessor_name": "DefaultPreprocessor", "normalization_schemes": ["CTNormalization"]}
    plans, trained = tmp_path / "nnUNet_preprocessed/Dataset501_X", tmp_path / "nnUNet_results/Dataset501_X"
    write_plans(plans / "FMPlans_stunet_b.json", preprocessor_name="FMPreprocessor")
    write_plans(plans / "FMPlans_portable.json", **stock, resampling_fn_data="resample_data_or_seg_to_shape")
    (plans / "splits_final.json").write_text("[]")
    (plans / "broken.json").write_text("{")
    resampled = {"resampling_fn_data": "fm_resample_data_to_shape"}
    write_plans(trained / "fm_trainer__FMPlans_stunet_b__3d_fullres/plans.json", **stock, **resampled)
    write_plans(trained / "fm_trainer__FMPlans_stunet_b__2d/plans.json", **resampled)

    found = list(hook_checks.not_portable(hook_is_alive=False))
    assert [(check.name, check.state) for check in found] == [("plans", "problem"), ("trained", "problem")]
    assert "FMPlans_stunet_b.json needs the hook (FMPreprocessor)" in found[0].detail
    assert "--portable" in found[0].cure
    assert "FMPlans_stunet_b__3d_fullres needs the hook (fm_resample_data_to_shape)" in found[1].detail
    assert [(check.state, check.cure) for check in hook_checks.not_portable(hook_is_alive=True)] == [("note", "")] * 2


# Limits of a container


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system of control groups, in which this process is in ``/job/step``."""
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
    assert limits.memory() is None and limits.core_limit() is None and not list(machine.main_memory())


# The machine


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


# The GPU


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


# Weights


def test_weights_with_hash_and_licences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_fm.weights.cache import pin

    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path))
    (check,) = weights.weights()
    assert check.state == "note" and "has none" in check.detail and "fm_trainer_scratch" in check.cure
    file = tmp_path / "small_ep4k.model"
    file.write_bytes(b"weights")
    name = "stunet_small_totalsegmentator"
    first, check = weights.weights()
    assert first.detail == f"{tmp_path} has 1 official files"
    assert check.state == "note" and check.cure == f"nnunet-fm weights verify {name}"
    assert "(weights: not stated apart from the repository's Apache-2.0; code: Apache-2.0)" in check.detail
    pin(file)
    assert list(weights.weights())[1].state == "ok"
    record = tmp_path / ".pinned.json"
    record.write_text(json.dumps({file.name: "0" * 64}))
    check = by_name(weights.weights())["weights"]
    assert check.state == "problem" and check.cure == f"remove {file} and fetch it again: nnunet-fm weights pull {name}"


# Datasets and what they need


def write_planned(folder: Path, name: str = "nnUNetPlans", **configuration: Any) -> None:
    entry = {"spacing": [2.0, 1.0, 1.0], "patch_size": [32, 64, 64], "batch_size": 2} | configuration
    plans = {"transpose_forward": [2, 0, 1], "configurations": {
        "2d": {"spacing": [1.0, 1.0], "patch_size": [64, 64], "batch_size": 12},
        "3d_fullres": entry,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "batch_size": 4},
    }}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(plans))


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of two channels whose test image is its largest; returns its preprocessed folder."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    write_dataset(variables["nnUNet_raw"], 690, shape=(4, 6, 8), spacing=(3, 1, 0.5), cases=2, test_cases=0,
                  channels=("CT", "PET"))  # fmt: skip
    write_dataset(variables["nnUNet_raw"], 691, shape=(8, 6, 8), spacing=(3, 1, 0.5), cases=0, test_cases=1)
    raw = Path(variables["nnUNet_raw"])
    (image,) = (raw / "Dataset691_Blobs" / "imagesTs").glob("*_0000.nii.gz")
    image.rename(raw / "Dataset690_Blobs" / "imagesTs" / "large_0000.nii.gz")
    return Path(variables["nnUNet_preprocessed"], "Dataset690_Blobs")


def test_a_dataset_is_known_by_its_headers_and_plans(dataset: Path) -> None:
    told: list[str] = []
    known = dataset_checks.read("690", None, None, told.append)
    assert (known.name, known.channels, known.outputs, known.planned) == ("Dataset690_Blobs", 2, 3, None)
    assert len(known.cases) == 3 and known.cases["large"] == ((8, 6, 8), (3, 1, 0.5))
    assert told[-1] == "reading headers, 3 of 3"
    write_planned(dataset)
    planned = dataset_checks.read("Dataset690_Blobs", None, None).planned
    assert planned is not None and (planned.plans, planned.configuration) == ("nnUNetPlans", "3d_fullres")
    # Axes (x, z, y): 8 at 0.5 mm to 2 mm, 8 at 3 mm to 1 mm, 6 at 1 mm to 1 mm.
    assert planned.voxels(known.cases["large"]) == 2 * 24 * 6
    slices = dataset_checks.read("690", "2d", "nnUNetPlans").planned
    assert slices is not None and slices.voxels(known.cases["large"]) == 8 * 24 * 6
    cascade = dataset_checks.read("690", "3d_cascade_fullres", None).planned
    assert cascade is not None and (cascade.batch, cascade.patch) == (4, (32, 64, 64))


def test_without_images_the_fingerprint_counts(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.mkdir()
    raw = Path(os.environ["nnUNet_raw"], "Dataset690_Blobs")
    (dataset / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    (dataset / "dataset_fingerprint.json").write_text(
        json.dumps({"shapes_after_crop": [[4, 5, 6]], "spacings": [[1, 1, 1]]})
    )
    monkeypatch.delenv("nnUNet_raw")
    assert dict(dataset_checks.read("690", None, None).cases) == {"training case 0": ((4, 5, 6), (1.0, 1.0, 1.0))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("42", None, None), "there is no dataset 42"),
        (("690", "3d_lowres", None), "no configuration '3d_lowres', only 2d, 3d_fullres, 3d_cascade_fullres"),
        (("690", None, "FMPlans"), "no plans 'FMPlans', only nnUNetPlans"),
    ],
)
def test_what_is_not_there_is_named(dataset: Path, arguments: tuple[Any, ...], message: str) -> None:
    write_planned(dataset)
    with pytest.raises(dataset_checks.UnknownDatasetError, match=message):
        dataset_checks.read(*arguments)


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        ({"background": 0, "one": 1, "ignore": 2}, 2),
        ({"background": 0, "whole": [1, 2], "core": 2}, 2),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, 2),
    ],
)
def test_outputs_are_counted_as_nnunet_counts_them(labels: dict[str, Any], outputs: int) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    order = [1, 2] if any(isinstance(value, list) for value in labels.values()) else None
    assert dataset_checks._outputs(labels) == outputs == LabelManager(labels, order).num_segmentation_heads


def test_the_forecast_of_a_large_prediction() -> None:
    """A CT of 512 × 512 × 700 with 105 classes: ours needs little more than logits and image, stock many times that."""
    grid = (700, 512, 512), (0.8, 0.8, 0.8)
    voxels = round(700 * 0.8 / 2) * round(512 * 0.8 / 1.5) ** 2
    found = forecast.forecast(grid, voxels, 105, 1)
    assert 4.3 * GB < found.ours < 9 * GB
    assert 60 * GB < found.stock < 80 * GB < 180 * GB < found.stock_default
    same = forecast.forecast(grid, 700 * 512 * 512, 105, 1)
    assert same.stock - found.stock < 5 * 2 * 105 * 700 * 512 * 512, "nothing is copied in float64"
    assert forecast.forecast(grid, voxels, 105, 1, linear=False).ours > 50 * GB


@pytest.mark.parametrize(
    ("left", "state", "cure"),
    [
        (10**12, "ok", ""),
        (3 * GB, "note", "predict with nnunet-fm predict -npp 0 -nps 0 or nnUNetv2_predict -nps 1"),
        (GB // 2, "problem", "end what else runs here"),
    ],
)
def test_memory_for_a_prediction(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, left: int, state: str, cure: str
) -> None:
    monkeypatch.setattr(forecast, "memory", lambda: (max(left, 4 * GB), left))
    monkeypatch.setattr(forecast, "forecast", lambda *_, **__: forecast.Forecast(2 * GB, 5 * GB, GB))
    found = by_name(forecast.predicting(dataset_checks.read("690", None, None)))
    assert "Dataset690_Blobs, " in found["largest case"].detail and "3 outputs (not planned yet" in (
        found["largest case"].detail
    )
    assert (found["prediction"].state, found["prediction"].cure) == (state, cure)


def test_room_for_preprocessed_cases(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_planned(dataset)
    known = dataset_checks.read("690", None, None)
    assert forecast.training_batch(known) == machine.batch_bytes(32 * 64 * 64, 2, 2)
    assert by_name(forecast.preprocessed(known))["preprocessed"].state == "ok"
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100, 0, 100))
    found = by_name(forecast.preprocessed(known))["preprocessed"]
    assert found.state == "note" and "another disk" in found.cure


# What killed commands left


def age(path: Path, days: float = 2) -> Path:
    """Let a file, or a folder with all in it, be of the day before yesterday."""
    then = time.time() - days * 24 * 3600
    for inner in (*path.rglob("*"), path):
        os.utime(inner, (then, then))
    return path


def test_fix_makes_folders_and_removes_what_is_stale_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {name: tmp_path / name for name in folders.PATHS}
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "scratch"))
    assert list(leftovers.fix()) == [f"made {folder}" for folder in variables.values()]
    assert list(leftovers.fix()) == [] and not list(leftovers.left_behind())

    raw, preprocessed, results = variables.values()
    fold = results / "Dataset501_X" / "fm_trainer__FMPlans__3d_fullres" / "fold_0"
    weights = tmp_path / "weights"
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(weights))
    stale = [raw / ".Dataset501_X.partial" / "imagesTr" / "a.nii.gz", raw / ".unpacking_1.partial" / "file",
             preprocessed / "Dataset501_X" / "fm_2d_1.partial" / "case.b2nd", fold / "checkpoint_final.pth.partial",
             preprocessed / "Dataset501_X" / "fm_2d_1.old" / "case.b2nd", fold / "not_finite_batch.pt.partial",
             raw / ".Dataset501_X.old" / "dataset.json", tmp_path / "scratch" / f"{SCRATCH}1" / "x"]  # fmt: skip
    for written in (fold / "training_record.json", fold / "pictures" / "a.png", weights / "a.pth",
                    preprocessed / "Dataset501_X" / "FMPlans.json", raw / "Dataset501_X" / "splits_final.json",
                    preprocessed / "Dataset501_X" / ".locks" / "plan.lock"):  # fmt: skip
        written.parent.mkdir(parents=True, exist_ok=True)
        with replacing(written) as partial:
            partial.touch()
        stale.append(partial)  # what a process leaves that is killed meanwhile
    kept = [raw / "Dataset501_X" / "imagesTr" / "a.nii.gz", preprocessed / "Dataset501_X" / "fm_2d_1" / "case.b2nd",
            preprocessed / "Dataset501_X" / "fm_2d_2.old" / "case.b2nd", fold / "checkpoint_final.pth",
            fold / "training_record.json", tmp_path / "scratch" / "somebody" / "x",
            preprocessed / "Dataset501_X" / "fm_2d_3.partial" / "held",
            raw / ".Dataset502_Y.partial" / "new"]  # fmt: skip
    for file in stale + kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12345")
    for top in (raw, preprocessed, results, weights, tmp_path / "scratch"):
        age(top)
    age(kept[-1], days=0.5)
    with FileLock(preprocessed / "Dataset501_X" / "fm_2d_3.lock"):
        (check,) = leftovers.left_behind()
        assert (
            check.state == "note"
            and check.cure == "nnunet-fm doctor --fix"
            and check.detail.startswith(f"{len(stale)} left")
        )
        done = list(leftovers.fix())
    assert len(done) == len(stale) and all(line.startswith("removed ") for line in done)
    assert not any(file.exists() for file in stale) and all(file.exists() for file in kept)


def test_locks_of_dead_processes_are_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = nnunet_folders(tmp_path, monkeypatch)
    folder = Path(variables["nnUNet_results"], "Dataset501_X", ".locks")
    folder.mkdir(parents=True)
    locks = pytest.importorskip("nnunet_fm.studies.locks")
    alive = [os.getpid(), locks.start_of(os.getpid())]
    for name, process in (("alive", alive), ("dead", [alive[0], 1.0])):
        content = {"host": "here", "place": locks.this_place(), "processes": [process], "what": "test"}
        (folder / f"{name}.lock").write_text(json.dumps(content))
    age(folder)
    assert leftovers.leftovers() == [folder / "dead.lock"]


# The command


def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from nnunet_fm.cli.app import main

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nnunet-fm", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    monkeypatch.setattr(hook_checks, "hook", lambda: Check("hook", OK, "alive"))
    code, out = run("--json")
    result = json.loads(out)
    assert code == 1 and result["usable"] is False
    problems = [check for check in result["checks"] if check["state"] == "problem"]
    assert {check["name"] for check in problems} == set(folders.PATHS) and all(check["cure"] for check in problems)
    for name in folders.PATHS:
        monkeypatch.setenv(name, str(tmp_path))
    code, out = run()
    assert code == 0 and out.endswith("Ready.\n") and "\x1b" not in out


def test_forecast_and_fix_from_the_command_line(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_fm.cli.app import main

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nnunet-fm", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    monkeypatch.setattr(hook_checks, "hook", lambda: Check("hook", OK, "alive"))
    write_planned(dataset)
    os.rmdir(os.environ["nnUNet_results"])
    code, out = run("-d", "690", "-c", "3d_fullres", "--fix")
    assert code == 0 and out.startswith(f"fixed   made {os.environ['nnUNet_results']}\n")
    assert "besides the network, nnunet-fm predict needs" in out and "(nnUNetPlans, 3d_fullres)" in out
    code, out = run("-d", "691x", "--json")
    result = json.loads(out)
    (check,) = [check for check in result["checks"] if check["state"] == "problem"]
    assert code == 1 and check["name"] == "dataset" and check["cure"] and result["fixed"] == []
    assert run("-c", "2d")[0] == 2


@pytest.mark.slow
def test_doctor_finds_the_hook_alive_in_an_installation(fresh_venv: Any, tmp_path: Path) -> None:
    paths = dict.fromkeys(folders.PATHS, str(tmp_path))
    done = fresh_venv.run("nnunet-fm", "doctor", "--json", env=paths)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["hook"]["state"] == "ok" and checks["commands"]["state"] == "ok"
    assert "nnunet-fm" not in checks, "an installation knows what it asks for"
    off = fresh_venv.run("nnunet-fm", "doctor", env=paths | {"NNUNET_FM_HOOK": "0"}, check=False)
    assert off.returncode == 1 and "unset NNUNET_FM_HOOK" in off.stdout
