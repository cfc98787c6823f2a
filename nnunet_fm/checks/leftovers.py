"""Find and remove temporary files and locks that killed commands have left; never data or results."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nnunet_fm.checks.finding import NOTE, Check, size
from nnunet_fm.checks.folders import missing
from nnunet_fm.io.atomic_write import OLD, PARTIAL, SCRATCH
from nnunet_fm.io.messages import listed
from nnunet_fm.weights.cache import cache_folder

STALE = 24 * 3600
"""Seconds without a change after which a temporary file belongs to no running process."""

FOLD = "Dataset*/*__*__*/fold_*"
TEMPORARY = {
    "nnUNet_raw": (f".*{PARTIAL}", f"Dataset*/.*{PARTIAL}", f".Dataset*{OLD}"),
    "nnUNet_preprocessed": (
        f"Dataset*/fm_*{PARTIAL}", f"Dataset*/fm_*{OLD}", f"Dataset*/.*{PARTIAL}", f"Dataset*/.locks/.*{PARTIAL}",
    ),
    "nnUNet_results": (
        f"{FOLD}/*.pt{PARTIAL}", f"{FOLD}/*.pth{PARTIAL}", f"{FOLD}/.*{PARTIAL}", f"{FOLD}/*/.*{PARTIAL}",
        f"Dataset*/.locks/.*{PARTIAL}", f"{FOLD}/.training_record.json.[0-9]*",
    ),
}  # fmt: skip
"""Patterns of temporary files and folders, by the nnU-Net folder that holds them."""
LOCKS = ("nnUNet_preprocessed", "nnUNet_results")
"""Folders where jobs of studies leave locks that name their processes, ``Dataset*/.locks/*.lock``."""


def leftovers() -> list[Path]:
    """Temporary files and folders without a change for a day, and locks whose processes are gone."""
    found = [path for variable, patterns in TEMPORARY.items() for path in _in(variable, *patterns)]
    found += cache_folder().glob(f".*{PARTIAL}")
    found += Path(tempfile.gettempdir()).glob(f"{SCRATCH}*")
    stale = [path for path in found if _is_ours(path) and _age(path) > STALE and not _is_held(path)]
    return sorted({*stale, *(path for path in _locks() if _age(path) > STALE)})


def left_behind() -> Iterator[Check]:
    """List what can be removed."""
    found = leftovers()
    if found:
        places = listed(list(map(str, found)))
        detail = f"{len(found)} left by commands that were killed, {size(sum(map(_bytes, found)))}: {places}"
        yield Check("leftovers", NOTE, detail, "nnunet-fm doctor --fix")


def fix() -> Iterator[str]:
    """Make missing folders and remove `leftovers`; yields a line for each."""
    for folder in missing():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            yield f"could not make {folder}: {error.strerror}"
        else:
            yield f"made {folder}"
    for path in leftovers():
        count = _bytes(path)
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            yield f"could not remove {path}: {error.strerror}"
        else:
            yield f"removed {path} ({size(count)})"


def _in(variable: str, *patterns: str) -> Iterator[Path]:
    folder = os.environ.get(variable)
    for pattern in patterns if folder else ():
        yield from Path(str(folder)).glob(pattern)


def _locks() -> Iterator[Path]:
    """Locks of studies whose processes are gone."""
    from nnunet_fm.io.locks import read_holder

    for variable in LOCKS:
        for path in _in(variable, "Dataset*/.locks/*.lock"):
            holder = read_holder(path)
            if holder is not None and not holder.alive:
                yield path


def _is_ours(path: Path) -> bool:
    """Whether a file belongs to this user; others write to the folder for temporary files, too."""
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


def _everything(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        yield from path.rglob("*")


def _age(path: Path) -> float:
    """Seconds since the last change of a file, or of anything in a folder."""
    changes = []
    for inner in _everything(path):
        with suppress(OSError):  # removed meanwhile
            changes.append(inner.lstat().st_mtime)
    return time.time() - max(changes, default=time.time())


def _bytes(path: Path) -> int:
    total = 0
    for inner in _everything(path):
        with suppress(OSError):
            total += inner.lstat().st_size
    return total


def _is_held(path: Path) -> bool:
    """Whether a process may need a folder: preprocessing holds a lock, and a replaced folder may be the only copy."""
    if path.name.endswith(OLD) and not path.with_name(path.name.removesuffix(OLD).removeprefix(".")).is_dir():
        return True
    if not path.name.startswith("fm_"):
        return False
    from filelock import FileLock, Timeout

    lock = path.with_name(f"{path.name.removesuffix(PARTIAL).removesuffix(OLD)}.lock")
    if not lock.exists():
        return False
    try:
        with FileLock(str(lock), timeout=0):
            return False
    except (Timeout, OSError):
        return True
