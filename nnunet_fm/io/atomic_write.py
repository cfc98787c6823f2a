"""Files that are replaced in one step: whoever reads one, or has the power cut, finds the old or the new.

What a killed process leaves has a name with `PARTIAL`, `OLD` or `SCRATCH`, by which `nnunet-fm doctor` finds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from nnunet_fm.errors import WriteError
from nnunet_fm.io.file_locks import LOCKABLE, lock_file

PARTIAL = ".partial"
"""End of the name of what is not finished. Every writer of this package uses it, in the folder that it writes to."""
OLD = ".old"
"""End of the name of a folder that has been replaced and is about to be removed."""
SCRATCH = "nnunet_fm_scratch_"
"""Beginning of the names of folders for what nobody keeps, where the system has such folders."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces `path` in the end, unless writing fails.

    The name is no one else's, on any machine that shares the disk. Content and name are on the disk when it ends.

    Raises:
        OSError: if it cannot be written, naming `path`, which is as before.
    """
    partial = path.with_name(f".{path.name}.{os.urandom(6).hex()}{PARTIAL}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(
            error.errno,
            f"{path} cannot be written and is as before ({error.strerror or error})",
            code="file-not-written",
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, with line feeds as they are; raises as `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for temporary files, removed in the end."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix=SCRATCH) as folder:
        yield folder


def sync_folder(folder: Path) -> None:
    """Write the names of a folder's files to the disk, where the file system supports it."""
    with suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder of this process beside `path` for unfinished files; remove it in the end.

    Two processes that make the same file have one each. A folder that a killed process left is taken over.

    Raises:
        OSError: if no folder can be made.
    """
    handle = None
    for number in count(1):
        folder = path.with_name(f".{path.name}{'' if number == 1 else f'.{number}'}{PARTIAL}")
        try:
            handle = _take(folder)
        except BlockingIOError:
            continue
        if handle is None:
            folder = path.with_name(f".{path.name}.{os.urandom(6).hex()}{PARTIAL}")
            folder.mkdir()
        break
    try:
        yield folder
    finally:
        import shutil  # only now: this module is imported by commands that answer at once

        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _take(folder: Path) -> int | None:
    """A handle that holds a folder, which is made or emptied; None where folders cannot be locked.

    Raises:
        BlockingIOError: if another process holds it, or it cannot be emptied.
    """
    if not LOCKABLE:
        return None
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # who had it has just removed it
            continue
        except PermissionError:
            raise BlockingIOError from None
        try:
            locked = lock_file(handle, wait=False)
            if locked and not os.path.samestat(os.fstat(handle), folder.stat()):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise
            continue
        if not locked:
            os.close(handle)
            with suppress(OSError):
                folder.rmdir()
            return None
        try:
            for inner in folder.iterdir():
                inner.unlink()
        except OSError:  # another account's
            os.close(handle)
            raise BlockingIOError from None
        return handle
