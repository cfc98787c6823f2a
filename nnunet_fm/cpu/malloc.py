"""Freed memory of a process: kept for its next arrays, or returned to the system.

The C library of Linux returns every array of more than 32 MB at once. The next array then costs page faults and
zeroing, a third of a training step of a 3D network.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
LARGEST = 2**30
"""Largest array in bytes whose memory is kept; larger ones are rare (whole volumes)."""
SWITCHES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables with which users set these parameters."""


def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on; False if the C library cannot (only glibc can)."""
    library = _c_library()
    if not hasattr(library, "mallopt") or any(name in os.environ for name in SWITCHES):
        return False
    # The threshold for trimming comes first: with the default one, memory would still be returned.
    return all(
        library.mallopt(name, value) == 1 for name, value in ((TRIM_THRESHOLD, 2**31 - 1), (MMAP_THRESHOLD, LARGEST))
    )


def give_back_freed_memory() -> None:
    """Return kept memory to the system, if the C library can (glibc)."""
    library = _c_library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@lru_cache(maxsize=1)
def _c_library() -> Any:
    return ctypes.CDLL(None) if os.name == "posix" else None
