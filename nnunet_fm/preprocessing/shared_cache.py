"""Preprocessed folders that several plans share: stamps of their content, locks, leases of running trainings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EACCES, ENOENT, EPERM, EROFS
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from nnunet_fm.errors import FMError
from nnunet_fm.io.atomic_write import OLD, write_text
from nnunet_fm.io.file_locks import LOCKABLE, lock_file

NOT_WRITABLE = (EACCES, EPERM, EROFS)
"""Numbers of the errors by which the system refuses to write."""


class FolderInUseError(FMError, RuntimeError):
    """A preprocessed folder would be replaced while a training reads it."""

    code = "preprocessed-in-use"


def raw_stamp(dataset: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of every raw file, by path.

    Args:
        dataset: nnU-Net's mapping of case to ``{"images": [...], "label": ...}``.
    """
    files = sorted({str(f) for case in dataset.values() for f in [*case["images"], case["label"]]})
    return {f: [stat.st_size, stat.st_mtime_ns] for f in files for stat in [os.stat(f)]}


def label_settings(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in ``dataset.json`` that preprocessing reads, as plain JSON values: labels, regions, ignore label."""
    read = {name: dataset_json.get(name) for name in ("labels", "regions_class_order")}
    settings: dict[str, Any] = json.loads(json.dumps(read))
    return settings


def stamp_path(folder: Path) -> Path:
    """The stamp lies beside the folder: nnU-Net takes a folder's content for cases."""
    return folder.with_name(folder.name + ".stamp.json")


def is_current(folder: Path, stamp: Mapping[str, Any]) -> bool:
    """Return whether the folder exists and was written from the data and settings of the stamp."""
    return folder.is_dir() and read_stamp(folder) == stamp


def read_stamp(folder: Path) -> dict[str, Any]:
    """Content of a folder's stamp; empty where there is no stamp, or a stamp that was cut off."""
    try:
        stamp = json.loads(stamp_path(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def lock(folder: Path) -> FolderLock:
    """The lock that whoever writes the folder holds; a second process waits for it."""
    return FolderLock(folder.with_name(folder.name + ".lock"))


class FolderLock:
    """A lock that who may only read the folder, as it belongs to a colleague or is read-only, waits for, too.

    Args:
        path: of the lock's file. Where it is not there and cannot be made, nobody writes the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, FileLock(str(path))
        self._handle: IO[str] | None = None

    def acquire(self) -> None:
        """Wait until nobody else holds it."""
        try:
            self._lock.acquire()
        except OSError as error:
            if not LOCKABLE or error.errno not in NOT_WRITABLE:
                raise
            self._handle = _open(self._path)
            if self._handle is not None and not lock_file(self._handle):
                lock_file(self._handle, shared=True)  # all that network file systems give to readers

    def release(self) -> None:
        """Let go."""
        self._lock.release()
        if self._handle is not None:
            self._handle.close()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def replace_folder(new: Path, folder: Path, stamp: Mapping[str, Any]) -> None:
    """Put a finished folder in its place with its stamp; an older one is removed last.

    Raises:
        FolderInUseError: if a training reads the older folder; nothing is changed then.
    """
    with _exclusive(folder):
        old = folder.with_name(folder.name + OLD)
        shutil.rmtree(old, ignore_errors=True)
        stamp_path(folder).unlink(missing_ok=True)
        if folder.is_dir():
            os.replace(folder, old)
        os.replace(new, folder)
        write_text(stamp_path(folder), json.dumps(stamp))
        shutil.rmtree(old, ignore_errors=True)


def lease(folder: Path) -> IO[str] | None:
    """Hold a folder for reading as long as the returned file is open; the system ends it with the process.

    None where that is impossible: no locks on this file system, or no file to lock in a folder that is read-only.
    """
    if not LOCKABLE:
        return None
    handle = _open(_lease_path(folder))
    if handle is not None and not lock_file(handle, shared=True):
        handle.close()
        return None
    return handle


def check_not_leased(folder: Path) -> None:
    """Raise `FolderInUseError` if a training reads the folder now."""
    with _exclusive(folder):
        pass


def _lease_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".inuse")


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    handle = _open(_lease_path(folder)) if LOCKABLE else None
    if handle is None:
        yield
        return
    with handle:
        try:
            lock_file(handle, wait=False)
        except BlockingIOError:
            raise FolderInUseError(
                f"the raw files or settings of {folder} have changed, but a training that is running reads this "
                f"folder: preprocess again when it has ended"
            ) from None
        yield


def _open(path: Path) -> IO[str] | None:
    """A file to lock: made where it is missing, read where it belongs to somebody else; None where neither works."""
    for mode in ("a", "r"):
        try:
            return open(path, mode, encoding="utf-8")
        except OSError as error:
            if error.errno not in (*NOT_WRITABLE, ENOENT):
                raise
    return None
