"""Find users' classes with a name of this package in the text of their files, without importing them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import all_suffixes

EXTERNAL_TRAINERS = "nnUNet_extTrainer"
"""nnU-Net's variable with further folders of trainers, which it searches after its own."""


@lru_cache(maxsize=256)
def mentions(folder: str, name: str) -> bool:
    """Whether the text of a module in a folder, or in packages inside it, contains a name.

    Modules are the files that nnU-Net would import; an unreadable folder has none.
    """
    word = re.compile(rb"\b" + re.escape(name.encode()) + rb"\b")
    return any(word.search(content) for content in _contents(folder))


def later_folders(folder: str) -> list[str]:
    """Users' folders with trainers that nnU-Net searches after this one."""
    folders = [path for path in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if path.strip()]
    return folders[folders.index(folder) + 1 :] if folder in folders else folders


def _contents(folder: str) -> Iterator[bytes]:
    suffixes = tuple(all_suffixes())
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.endswith(suffixes):
            try:
                with open(entry.path, "rb") as file:
                    yield file.read()
            except OSError:
                continue
        elif any(os.path.exists(os.path.join(entry.path, f"__init__{suffix}")) for suffix in suffixes):
            yield from _contents(entry.path)
