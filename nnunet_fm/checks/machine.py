"""Check processor, number of processes, memory and shared memory for nnU-Net's commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext

from nnunet_fm.checks.finding import GB, NOTE, OK, PROBLEM, Check, size
from nnunet_fm.cpu.limits import SHARED, WAITING, core_limit, cores, memory, shared_memory_fault, usable_cores
from nnunet_fm.hook import SWITCH

LOADERS, WORKERS = "nnUNet_n_proc_DA", "nnUNet_def_n_proc"
MOST_LOADERS = 12
"""Default number of nnU-Net's loader processes, if there are as many cores."""
MOST_WORKERS = 8
"""Default number of processes that preprocess and export."""
PATCH, BATCH = 128**3, 2
"""Voxels and number of patches of a usual 3D batch, for a check without a plan."""
LITTLE = 8 * GB
"""Memory below which a 3D training with loader processes is likely to be killed."""


def processor(device: bool) -> Iterator[Check]:
    """Check cores, threads and precision of the processor.

    Args:
        device: whether a GPU trains instead of the processor.
    """
    import torch

    from nnunet_fm.networks.base import cpu_autocast

    bf16 = "float32" if isinstance(cpu_autocast(torch.device("cpu")), nullcontext) else "bfloat16"
    limit, usable = core_limit(), usable_cores()
    allowed = f", of whose time {limit:g} cores' worth is allowed" if limit is not None and usable < cores() else ""
    yield Check("cpu", OK, f"{cores()} cores{allowed}, PyTorch uses {torch.get_num_threads()}, computes in {bf16}")
    yield _threads(usable, torch.get_num_threads())
    if not device:
        yield _waiting()
    yield from _processes(usable)


def _processes(usable: int) -> Iterator[Check]:
    started = {LOADERS: min(MOST_LOADERS, os.cpu_count() or 1), WORKERS: MOST_WORKERS}
    many = {name: count for name, count in started.items() if count > usable and name not in os.environ}
    if many:
        what = " and ".join(f"{count} {'loaders' if name == LOADERS else 'workers'}" for name, count in many.items())
        advice = f"export {' '.join(f'{name}={usable}' for name in many)}"
        yield Check("processes", NOTE, f"nnU-Net starts {what} on {usable} cores", advice)


def _threads(usable: int, threads: int) -> Check:
    chosen = os.environ.get("OMP_NUM_THREADS")
    said = f"OMP_NUM_THREADS={chosen}" if chosen else "OMP_NUM_THREADS is not set"
    if threads > usable:
        detail = f"{said}: {threads} threads share {usable} cores, and wait for one another"
        return Check("threads", NOTE, detail, f"export OMP_NUM_THREADS={usable}")
    return Check("threads", OK, said)


def _waiting() -> Check:
    """Check how OpenMP's threads wait; the hook chooses it in nnU-Net's commands unless the user does."""
    chosen = ", ".join(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ)
    asleep = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if os.environ.get(SWITCH) != "0" and (asleep or not chosen):
        now = f"{chosen}: they sleep" if chosen else "they spin, the cores are free"
        return Check("waiting", OK, f"threads that wait sleep in commands that start beside other work; now {now}")
    who = f"with {SWITCH}=0" if asleep or not chosen else chosen
    detail = f"{who}: threads of nnUNetv2_train -device cpu may spin while they wait: beside other work, or under a"
    advice = "export OMP_WAIT_POLICY=PASSIVE, and train one model at a time"
    return Check("waiting", NOTE, f"{detail} limit, a training is several times slower", advice)


def main_memory() -> Iterator[Check]:
    """Check the main memory, within the limit of a container."""
    found = memory()
    if found is None:
        return
    total, left = found
    detail = f"{size(total)}, of which {size(left)} are left"
    if total < LITTLE:
        cure = f"export {LOADERS}=2 {WORKERS}=1, and plan with a small -gpu_memory_target"
        yield Check("memory", NOTE, f"{detail}: little for 3D images", cure)
    else:
        yield Check("memory", OK, detail)


def batch_bytes(voxels: int = PATCH, batch: int = BATCH, channels: int = 1) -> int:
    """Bytes of a batch: images in float32, targets of 16 bits with their copies for deep supervision."""
    return round(batch * voxels * (4 * channels + 2 * 8 / 7))


def shared_memory(batch: int | None = None) -> Iterator[Check]:
    """Check that all batches of the loaders fit into shared memory, through which they are sent.

    Args:
        batch: bytes of a batch; None for a usual 3D batch.
    """
    if fault := shared_memory_fault():
        detail, _, cure = fault.partition(": ")
        yield Check("shared memory", PROBLEM, detail, cure)
        return
    if not SHARED.is_dir():  # not Linux
        return
    total = shutil.disk_usage(SHARED).total
    try:
        loaders = int(os.environ.get(LOADERS, min(MOST_LOADERS, os.cpu_count() or 1)))
    except ValueError:
        yield Check("shared memory", PROBLEM, f"{LOADERS}={os.environ[LOADERS]} is not a number", f"unset {LOADERS}")
        return
    detail = f"{SHARED} has {size(total)}"
    if loaders == 0:
        yield Check("shared memory", OK, f"{detail}; {LOADERS}=0, so nothing is sent through it")
        return
    # Of training and validation: queued batches, and one that each loader is making.
    batches = max(6, loaders // 2) + max(3, loaders // 4) + loaders + max(1, loaders // 2)
    need = batches * (batch or batch_bytes())
    what = f"{batches} batches of {loaders} loaders need up to {size(need)}"
    if need <= total:
        yield Check("shared memory", OK, f"{detail}; {what}")
        return
    gigabytes = -(-need // GB) + 1
    cure = f"give the container --shm-size={gigabytes}g (or --ipc=host), or export {LOADERS} to fewer, 0 for none"
    yield Check("shared memory", NOTE if batch is None and total > need / 4 else PROBLEM, f"{detail}; {what}", cure)
