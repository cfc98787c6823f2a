"""Locks of the operating system on open files: they end with the process that holds them, however that ends."""

from __future__ import annotations

from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks: two processes that do the same do not notice each other
    fcntl = None  # type: ignore[assignment]

LOCKABLE = fcntl is not None
"""Whether this operating system has such locks."""


def lock_file(handle: IO[str] | int, *, shared: bool = False, wait: bool = True, inherited: bool = True) -> bool:
    """Lock an open file until it is closed.

    Args:
        handle: the file, or a descriptor of a file or folder; opened for writing where the lock is neither shared nor
            inherited.
        shared: several processes may hold such a lock, but none beside an exclusive one.
        wait: until no other process holds the file.
        inherited: processes that this one starts hold the lock, too (flock); else this process alone (lockf).

    Returns:
        False where files cannot be locked: on Windows and on some network file systems.

    Raises:
        BlockingIOError: if another process holds the file, without ``wait``.
    """
    if fcntl is None:
        return False
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(handle, how) if inherited else fcntl.lockf(handle, how)
    except BlockingIOError:
        raise
    except PermissionError as error:  # a second way in which lockf says that the file is held
        if inherited:
            return False
        raise BlockingIOError(*error.args) from None
    except OSError:  # a file system without such locks
        return False
    return True
