"""The folder of official weights files: finding files, hashes, and the message if a file is missing."""

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
HASH_NAMES = {"sha256": "SHA-256", "md5": "MD5"}


class ChangedFileError(FMError, ValueError):
    """An official file with another hash than it should have; the message names both."""

    code = "weights-changed"


class MissingWeightsError(FMError, FileNotFoundError):
    """An official file is not in the weights folder; the message says where to get it and where to put it."""

    code = "weights-missing"


def cache_folder() -> Path:
    """``$NNUNET_FM_WEIGHTS``, or ``~/.cache/nnunet_fm/weights``; the folder may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "nnunet_fm" / "weights"


def find(file_names: Sequence[str]) -> Path | None:
    """The first of these files that is in the weights folder, or None."""
    return next((path for name in file_names if (path := cache_folder() / name).is_file()), None)


def locate(checkpoint: str, file_names: Sequence[str], *, page: str, instead: str, pull: bool = True) -> Path:
    """Path of an official weights file.

    Args:
        checkpoint: name of the checkpoint, for the message.
        file_names: names under which the publisher offers the file, any of which is accepted.
        page: where a person downloads it.
        pull: whether ``nnunet-fm weights pull`` can download the file.
        instead: how to start from random weights, for the message: ``use the trainer fm_trainer_scratch``.

    Raises:
        MissingWeightsError: if none of the files is in the weights folder.
    """
    path = find(file_names)
    if path is None:
        others = f" (also known as {', '.join(file_names[1:])})" if len(file_names) > 1 else ""
        by_program = f"Run `nnunet-fm weights pull {checkpoint}`, or download" if pull else "Download"
        raise MissingWeightsError(
            f"official weights '{checkpoint}' are not at hand. {by_program} {file_names[0]}{others} from {page} and "
            f"put it into {cache_folder()} (another folder: set {CACHE_VARIABLE}). To start from random weights, "
            f"{instead}"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, cached in ``.sha256.json`` beside it until its size or time changes."""
    return file_hash(path, "sha256")


def file_hash(path: Path, algorithm: str) -> str:
    """Hash of a file in hexadecimal by ``sha256`` or ``md5``, cached like that of `sha256`."""
    digest = known_hash(path, algorithm)
    if digest is None:
        digest = _hash_of_version(path, algorithm, **_stamp(path))
        remember_hash(path, digest, algorithm)
    return digest


def remember_hash(path: Path, digest: str, algorithm: str = "sha256") -> None:
    """Cache a hash for `file_hash`; in a read-only folder nothing is written."""
    memory = path.with_name(HASH_FILE)
    others = {name: entry for name, entry in _read_json(memory).items() if path.with_name(name).exists()}
    with contextlib.suppress(OSError):
        _write_json(memory, {**others, path.name: {**_known(path), **_stamp(path), algorithm: digest}})


def known_hash(path: Path, algorithm: str = "sha256") -> str | None:
    """Cached hash of a file; None if it would have to be computed."""
    digest = _known(path).get(algorithm)
    return digest if isinstance(digest, str) else None


def _known(path: Path) -> dict[str, Any]:
    """Cached entry of the present version of a file; empty without one."""
    entry = _read_json(path.with_name(HASH_FILE)).get(path.name)
    return entry if isinstance(entry, dict) and {**entry, **_stamp(path)} == entry else {}


def pin(path: Path) -> str:
    """Pin a file's SHA-256: write it beside the file, so that `check_hash` notices a change; return it."""
    digest = sha256(path)
    from filelock import FileLock

    record = path.with_name(PIN_FILE)
    with FileLock(f"{record}.lock"):
        _write_json(record, {**_read_json(record), path.name: digest})
    return digest


def pinned(path: Path) -> str | None:
    """The SHA-256 that `pin` has written for a file of this name; None without one."""
    digest = _read_json(path.with_name(PIN_FILE)).get(path.name)
    return str(digest) if digest else None


def check_hash(path: Path, expected: Mapping[str, str | None], name: str | None = None) -> None:
    """Compare a file's hash with the expected ones and with the pinned one.

    Args:
        path: the file.
        expected: origin of a hash, for the message -> a SHA-256, ``sha256:…`` or ``md5:…``, of which the first digits
            are enough; None is not compared.
        name: name under which the file is pinned, if not its own.

    Raises:
        ChangedFileError: for a difference; the message names both hashes.
    """
    record = path.with_name(PIN_FILE)
    wanted = {**expected, f"noted in {record} when it was added": pinned(path.with_name(name or path.name))}
    for source, digest in wanted.items():
        if digest is not None and not has_hash(path, digest):
            algorithm, first = split_hash(digest)
            raise ChangedFileError(
                f"{path} has {HASH_NAMES[algorithm]} {file_hash(path, algorithm)}, but the hash {source} is {first}"
            )


def has_hash(path: Path, digest: str) -> bool:
    """Whether a file has a hash, given as for `check_hash`."""
    algorithm, first = split_hash(digest)
    return file_hash(path, algorithm).startswith(first)


def split_hash(digest: str) -> tuple[str, str]:
    """Algorithm and first digits of a hash that is given as for `check_hash`."""
    algorithm, _, first = digest.rpartition(":")
    return algorithm or "sha256", first


@lru_cache(maxsize=64)
def _hash_of_version(path: Path, algorithm: str, size: int, mtime_ns: int) -> str:
    """Computed once per process, for folders that cannot be written."""
    return compute_hash(path, algorithm)


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def compute_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file in hexadecimal, without any cache."""
    return compute_hash(path, "sha256")


def compute_hash(path: Path, algorithm: str) -> str:
    """Compute the hash of a file in hexadecimal by ``sha256`` or ``md5``, without any cache."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
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
