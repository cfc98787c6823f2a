"""The folder that holds official weights files, and what to tell a user whose folder lacks one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_fm.errors import FMError
from nnunet_fm.io.atomic_write import write_text

CACHE_VARIABLE = "NNUNET_FM_WEIGHTS"
HASH_FILE = ".sha256.json"
PIN_FILE = ".pinned.json"
CHUNK = 1 << 20


class ChangedFileError(FMError, ValueError):
    """An official file with another hash than it should have; the message names both."""

    code = "weights-changed"


class MissingWeightsError(FMError, FileNotFoundError):
    """No official weights at hand; the message says where to get them and where to put them."""

    code = "weights-missing"


def cache_folder() -> Path:
    """``$NNUNET_FM_WEIGHTS``, or ``~/.cache/nnunet_fm/weights``; it need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "nnunet_fm" / "weights"


def find(file_names: Sequence[str]) -> Path | None:
    """The first of these files that lies in the cache folder, or None."""
    return next((path for name in file_names if (path := cache_folder() / name).is_file()), None)


def locate(checkpoint: str, file_names: Sequence[str], *, page: str, scratch: str) -> Path:
    """Path of an official weights file.

    Args:
        checkpoint: name of the checkpoint, for the message.
        file_names: names under which the publisher offers the file; any of them will do.
        page: where a person downloads it.
        scratch: name of the trainer that starts from random weights instead.

    Raises:
        MissingWeightsError: if none of the files is in the cache folder.
    """
    path = find(file_names)
    if path is None:
        others = f" (also known as {', '.join(file_names[1:])})" if len(file_names) > 1 else ""
        raise MissingWeightsError(
            f"official weights '{checkpoint}' are not at hand. Run `nnunet-fm weights pull {checkpoint}`, or download "
            f"{file_names[0]}{others} from {page} and put it into {cache_folder()} (another folder: set "
            f"{CACHE_VARIABLE}). To train from random weights instead, use the trainer {scratch}"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, remembered in ``.sha256.json`` beside it until size or time change."""
    digest = known_sha256(path)
    if digest is None:
        digest = _sha256_of_version(path, **_stamp(path))
        remember_sha256(path, digest)
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Remember a hash for `sha256`; a folder that is shared read-only is left as it is."""
    memory = path.with_name(HASH_FILE)
    others = {name: entry for name, entry in _read_json(memory).items() if path.with_name(name).exists()}
    with contextlib.suppress(OSError):
        _write_json(memory, {**others, path.name: {**_stamp(path), "sha256": digest}})


def known_sha256(path: Path) -> str | None:
    """SHA-256 of a file if it is remembered; None if it would have to be computed."""
    entry = _read_json(path.with_name(HASH_FILE)).get(path.name)
    if isinstance(entry, dict) and {**_stamp(path), "sha256": entry.get("sha256")} == entry:
        return str(entry["sha256"])
    return None


def pin(path: Path) -> str:
    """Write down a file's SHA-256 beside it, as the one that it shall keep; returns it."""
    digest = sha256(path)
    from filelock import FileLock

    record = path.with_name(PIN_FILE)
    with FileLock(f"{record}.lock"):
        _write_json(record, {**_read_json(record), path.name: digest})
    return digest


def pinned(path: Path) -> str | None:
    """The SHA-256 that `pin` wrote down for a file of this name."""
    digest = _read_json(path.with_name(PIN_FILE)).get(path.name)
    return str(digest) if digest else None


def check_hash(path: Path, expected: Mapping[str, str | None], name: str | None = None) -> None:
    """Compare a file's SHA-256 with those expected, and with the pinned one.

    Args:
        expected: where a hash comes from, for the message -> hash; None is no expectation.
        name: name under which the file is pinned, if not its own.

    Raises:
        ChangedFileError: for a difference; the message names both hashes.
    """
    record = path.with_name(PIN_FILE)
    wanted = {**expected, f"noted in {record} when it was added": pinned(path.with_name(name or path.name))}
    for source, digest in wanted.items():
        if digest is not None and digest != sha256(path):
            raise ChangedFileError(f"{path} has SHA-256 {sha256(path)}, but the hash {source} is {digest}")


@lru_cache(maxsize=64)
def _sha256_of_version(path: Path, size: int, mtime_ns: int) -> str:
    """Computed once in a process, for folders in which nothing can be remembered."""
    return compute_sha256(path)


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def compute_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; nothing is written anywhere."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1))
