"""What becomes of memory that a process has freed: kept for its next arrays, or given back to the system.

The C library of Linux gives every array of more than 32 MB back at once. The next one costs a page fault for each 4 KB,
and zeros that nobody reads: a third of a training step of a 3D network is spent so.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
LARGEST = 2**30
"""Bytes; larger arrays are rare (whole volumes), and holes that they leave would be, too."""
SWITCHES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which users decide themselves."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, from now on; True if its C library can (glibc)."""
    library = _c_library()
    if not hasattr(library, "mallopt") or any(name in os.environ for name in SWITCHES):
        return False
    # The order counts: without a larger threshold for trimming, the memory would be given back all the same.
    return all(
        library.mallopt(name, value) == 1 for name, value in ((TRIM_THRESHOLD, 2**31 - 1), (MMAP_THRESHOLD, LARGEST))
    )


def give_back_freed_memory() -> None:
    """Give the system what this process has kept, where the C library can (glibc)."""
    library = _c_library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@lru_cache(maxsize=1)
def _c_library() -> Any:
    return ctypes.CDLL(None) if os.name == "posix" else None
