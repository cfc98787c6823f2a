"""Facts about the machine for records: processor, memory, versions."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def processor_name() -> str:
    """Name of the CPU, such as ``AMD EPYC 9354 32-Core Processor``; else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None if the system does not report it."""
    with suppress(OSError, StopIteration):  # on Linux, getrusage may return the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB elsewhere


@cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    from nnunet_fm import __version__

    found = {name: _version(name) for name in ("nnunetv2", "torch", "monai", "timm", "numpy")}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), "nnunet-fm": __version__, **known}
