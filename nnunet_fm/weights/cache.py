"""The folder that holds official weights files, and what to tell a user whose folder lacks one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "NNUNET_FM_WEIGHTS"
HASH_FILE = ".sha256.json"
CHUNK = 1 << 20


class MissingWeightsError(FileNotFoundError):
    """No official weights at hand; the message says where to get them and where to put them."""


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
            f"official weights '{checkpoint}' are not at hand. Download {file_names[0]}{others} from {page} and put it "
            f"into {cache_folder()} (another folder: set {CACHE_VARIABLE}). To train from random weights instead, "
            f"use the trainer {scratch}"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, remembered in ``.sha256.json`` beside it until size or time change."""
    status = path.stat()
    stamp = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    memory = path.with_name(HASH_FILE)
    known = _read_json(memory)
    entry = known.get(path.name)
    if isinstance(entry, dict) and {**stamp, "sha256": entry.get("sha256")} == entry:
        return str(entry["sha256"])
    digest = _digest(path)
    with contextlib.suppress(OSError):  # a folder shared read-only: the hash is computed each time
        partial = memory.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({**known, path.name: {**stamp, "sha256": digest}}, indent=1), encoding="utf-8")
        os.replace(partial, memory)
    return digest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
