"""Small files that are replaced in one step: whoever reads one, or has the power cut, finds the old or the new."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path` in the end, unless that fails.

    Raises:
        OSError: if it cannot be written, naming `path`, which is as before.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written and is as before ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; raises as `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
