"""Check the GPU, and whether the installed PyTorch can use it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check, size

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
DDP = "nnUNetv2_train -num_gpus N trains on several CUDA devices; there is no such training on CPUs or Apple GPUs"
INDEX = "https://download.pytorch.org/whl"


def gpu() -> Iterator[Check]:
    """Find the device that a training would use, or the reason why PyTorch does not use a GPU."""
    import torch

    if torch.cuda.is_available():
        yield from _cuda()
    elif torch.backends.mps.is_available():
        yield Check("mps", OK, "Apple GPU: train with -device mps")
    elif installed := _installed():
        yield _unused(installed)
    else:
        yield Check("cuda", NOTE, "no GPU: train and predict with -device cpu")
    yield Check("several GPUs", OK, DDP)


def _cuda() -> Iterator[Check]:
    import torch

    legible = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        detail = f"{index}: {device.name}, {size(total)}, {size(free)} free; PyTorch of CUDA {torch.version.cuda}"
        if not _has_kernels(device.major, device.minor, legible):
            cure = f"install a PyTorch that has kernels for it, from {INDEX}"
            yield Check("cuda", PROBLEM, f"{detail}, which has no kernels for sm_{device.major}{device.minor}", cure)
        elif free < total / 2:
            yield Check("cuda", NOTE, f"{detail}: another process uses it", "nvidia-smi says which")
        else:
            yield Check("cuda", OK, detail)


def _has_kernels(major: int, minor: int, legible: list[str]) -> bool:
    """Whether a PyTorch build runs on a device: compiled for its generation and not newer, or as PTX."""
    for name in legible:
        kind, _, number = name.partition("_")
        digits = "".join(c for c in number if c.isdigit())
        built = divmod(int(digits), 10) if digits else (0, 0)
        if built <= (major, minor) and (kind == "compute" or built[0] == major):
            return True
    return not legible


def _installed() -> list[tuple[str, str, str]]:
    """Name, memory and driver version of each NVIDIA device, from nvidia-smi."""
    if shutil.which(QUERY[0]) is None:
        return []
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    fields = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    return [(part[0], part[1], part[2]) for part in fields if len(part) == 3]


def _unused(installed: list[tuple[str, str, str]]) -> Check:
    """Reason why PyTorch does not use an installed device."""
    import torch

    name, memory, driver = installed[0]
    detail = f"{name}, {memory}, driver {driver}"
    if torch.version.cuda is None:
        cure = f"{sys.executable} -m pip install --force-reinstall torch --index-url {INDEX}/cu126"
        return Check("cuda", PROBLEM, f"{detail}: this PyTorch was built without CUDA", cure)
    cure = f"update the driver, or install a PyTorch of an older CUDA from {INDEX}; check CUDA_VISIBLE_DEVICES"
    return Check("cuda", PROBLEM, f"{detail}: PyTorch of CUDA {torch.version.cuda} cannot use it", cure)
