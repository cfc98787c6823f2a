"""Preprocessed folders that several plans share: stamps of their content, locks, leases of running trainings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from nnunet_fm.replacing import OLD, write_text

try:
    import fcntl
except ImportError:  # Windows has no shared locks on files; there, a running training is not protected
    fcntl = None  # type: ignore[assignment]


class FolderInUseError(RuntimeError):
    """A preprocessed folder would be replaced while a training reads it."""


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
    """True if the folder exists and was written from exactly what the stamp describes."""
    return folder.is_dir() and read_stamp(folder) == stamp


def read_stamp(folder: Path) -> dict[str, Any]:
    """What a folder was written from; empty where there is no stamp, or one that was cut off, which says nothing."""
    try:
        stamp = json.loads(stamp_path(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def lock(folder: Path) -> FileLock:
    """The lock that whoever writes the folder holds; a second process waits for it."""
    return FileLock(str(folder.with_name(folder.name + ".lock")))


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
    """Hold a folder for reading as long as the returned file is open; the system ends it with the process."""
    if fcntl is None:
        return None
    handle = open(_lease_path(folder), "a", encoding="utf-8")  # noqa: SIM115  (stays open as long as the training runs)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def check_not_leased(folder: Path) -> None:
    """Raise `FolderInUseError` if a training reads the folder now."""
    with _exclusive(folder):
        pass


def _lease_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".inuse")


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with open(_lease_path(folder), "a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(
                f"the raw files or settings of {folder} have changed, but a training that is running reads this "
                f"folder: preprocess again when it has ended"
            ) from None
        yield
