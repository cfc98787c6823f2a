"""Read files of unknown origin: check declared sizes before allocating, execute nothing."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from nnunet_fm.errors import FMError, InvalidValueError

Model = TypeVar("Model", bound=BaseModel)

TEXT_BYTES = 2**26
"""Largest JSON file that is read; plans and records have some megabytes at most."""

JSON_ENTRIES, RECORD_ENTRIES = 1_000_000, 8_000_000
"""Most entries of a JSON file, keys counted, and of a record of our own, which holds numbers of every epoch."""

YAML_BYTES, YAML_ENTRIES = 2**20, 100_000
"""Largest YAML file, which people write by hand, and entries in it with all aliases written out."""

DEPTH = 100
"""Lists and objects inside one another. Python gives up at some hundreds, in whatever function comes across them."""

DEFLATE = 1032
"""Most bytes that one byte of a gzip, zip or PNG file can become."""

UNPACKED_RATIO, UNPACKED_FREE = 100, 2**27
"""An archive may unpack to so many times its size; small ones to so many bytes."""


PACKED = {
    b"Rar!\x1a\x07": "RAR archive", b"7z\xbc\xaf\x27\x1c": "7z archive", b"\x1f\x8b": "gzip file", b"BZh": "bzip2 file",
    b"\xfd7zXZ\x00": "xz file", b"\x28\xb5\x2f\xfd": "Zstandard file",
}  # fmt: skip
"""How files begin that something is packed in -> what they are called."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that a clone without Git LFS has in place of a large file."""


class ForeignFileError(FMError, ValueError):
    """Error for a file that breaks a rule of its format; the message names the file and the rule."""


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """Text of a file in UTF-8.

    Raises:
        FileNotFoundError: if there is none.
        ForeignFileError: if it is no plain file, too large, or not in UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ForeignFileError(f"{path} is no file", code="file-kind")
    if status.st_size > limit:
        raise ForeignFileError(
            f"{path} has {status.st_size:,} bytes, {limit:,} are read at most: it is something else", code="file-size"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignFileError(
            f"{path} is not written in UTF-8 ({error.reason} at byte {error.start})", code="file-encoding"
        ) from None


def read_json(path: Path, entries: int = JSON_ENTRIES) -> Any:
    """Content of a JSON file; raises as `read_text`, and a ForeignFileError for anything but JSON of sane size.

    Args:
        entries: most of them, keys counted.
    """
    try:
        content = json.loads(_few_entries(read_text(path), path, entries))
    except ForeignFileError:
        raise
    except RecursionError:
        raise ForeignFileError(f"{path} is nested too deep", code="file-nesting") from None
    except ValueError as error:
        raise ForeignFileError(f"{path} is not a JSON file: {error}", code="json-invalid") from None
    _check_nesting(content, path)
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises as `read_json`, and for any other content."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ForeignFileError(f"{path} holds a {type(content).__name__}, not a JSON object", code="json-object")
    return content


def read_model(path: Path, model: type[Model], what: str, cure: str = "") -> Model:
    """The pydantic model in a JSON file.

    Args:
        model: its class.
        what: what the file is to hold, for the message.
        cure: what to do, for the end of the message.

    Raises:
        ForeignFileError: as `read_text`, and if the file holds something else.
    """
    try:
        return model.model_validate_json(_few_entries(read_text(path), path, RECORD_ENTRIES))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise ForeignFileError(
            f"{path} does not hold {what} ({place}: {problem['msg']}){cure}", code="json-content"
        ) from None


def read_yaml(path: Path) -> Any:
    """Content of a YAML file without tags that build objects; raises as `read_json`.

    Aliases may stand for others that stand for others: a few lines that would be billions of entries are refused.
    """
    text = read_text(path, YAML_BYTES)
    try:
        content = yaml.safe_load(text)
    except Exception as error:  # beside its own error the parser lets through whatever int(), dates or tags raise
        raise ForeignFileError(f"{path} is no YAML: {error}", code="yaml-invalid") from None
    _check_nesting(content, path, YAML_ENTRIES)
    return content


def plain_name(name: str) -> str:
    """The name itself, if it can only name something inside a folder.

    Raises:
        ValueError: if it is empty or a path.
    """
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0") or Path(name).name != name:
        raise InvalidValueError(f"{name!r} is not a plain name: it would lead to another folder", code="name-is-path")
    return name


def is_zip(path: Path) -> bool:
    """Whether a file ends like a zip archive. Archives over several disks are not supported."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def other_kind(path: Path) -> str | None:
    """Kind of a file that is often mistaken for another, by its first bytes, and advice; None for other files.

    Returns:
        the rest of a sentence that begins with the file, such as ``is a RAR archive: unpack it first``.
    """
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if start.startswith(POINTER):
        return (
            "is a pointer of Git LFS, a text in place of the file: run `git lfs pull` in its clone, or download the "
            "file itself from its page"
        )
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "is a web page, saved in place of the file: open its page in a browser and download the file by hand"
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    name = next((name for begin, name in PACKED.items() if start.startswith(begin)), None)
    return f"is a {name}: unpack it first" if name else None


def check_promise(path: Path, promised: int, ratio: int = DEFLATE) -> None:
    """Refuse a file whose header promises more bytes than any file of its size can hold, before they are allocated.

    Args:
        path: the file.
        promised: bytes of what is in it, unpacked.
        ratio: how many bytes one byte of it can become.

    Raises:
        ForeignFileError: if it cannot keep the promise.
    """
    size = path.stat().st_size
    if promised < 0 or promised > ratio * size:
        raise ForeignFileError(
            f"{path.name} promises {promised:,} bytes, which a file of {size:,} bytes cannot hold", code="file-promise"
        )


def check_unpacking(shown: object, packed: int, unpacked: int, folder: Path) -> None:
    """Refuse to unpack an archive that is out of all proportion, or for which the disk has no room.

    Args:
        shown: what to call it in messages.
        packed: bytes of the archive.
        unpacked: bytes of what is taken out of it, all in all.
        folder: where they would be written; it exists.

    Raises:
        ForeignFileError: in either case.
    """
    if unpacked > max(UNPACKED_FREE, UNPACKED_RATIO * packed):
        raise ForeignFileError(
            f"{shown}: its {packed:,} bytes would become {unpacked:,}, more than {UNPACKED_RATIO} times as many: "
            "unpack it by hand if you trust it",
            code="archive-size",
        )
    free = shutil.disk_usage(folder).free
    if unpacked > free:
        raise ForeignFileError(
            f"{shown}: {unpacked:,} bytes to unpack, but {folder} has {free:,} left", code="disk-full"
        )


def _few_entries(text: str, path: Path, limit: int) -> str:
    """The text itself, unless its JSON could have more entries: each takes many times its bytes when it is read."""
    if sum(map(text.count, ",:[{")) > limit:
        raise ForeignFileError(f"{path} has more than {limit:,} entries: it is something else", code="file-entries")
    return text


def _check_nesting(content: Any, path: Path, entries: int | None = None) -> None:
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > DEPTH:
            raise ForeignFileError(f"{path} is nested too deep", code="file-nesting")
        if entries is not None and seen > entries:
            raise ForeignFileError(
                f"{path} has more than {entries:,} entries, its aliases written out", code="file-entries"
            )
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(inner, depth + 1) for inner in value]
