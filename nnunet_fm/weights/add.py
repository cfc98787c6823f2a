"""Add a downloaded file to the weights folder: find it in a folder or archive, unpack it, copy it in one step."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from errno import EINVAL
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from zlib import error as ZlibError

from nnunet_fm.errors import ExistingFileError, MissingFileError
from nnunet_fm.io.atomic_write import PARTIAL, replacing
from nnunet_fm.io.untrusted import check_unpacking, is_zip
from nnunet_fm.weights.cache import cache_folder, compute_sha256, pin, sha256
from nnunet_fm.weights.files import WeightsFileError

DAMAGED_ZIP = (zipfile.BadZipFile, ZlibError, LZMAError, EOFError, RuntimeError, NotImplementedError)
"""Exceptions of zipfile for members that are damaged or locked."""


@contextmanager
def opened(source: Path, names: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Find the checkpoint at a path, and yield its present path and its original name.

    A folder or an archive must hold exactly one file of the given names, at any depth. A file of an archive is unpacked
    to a temporary file, which is removed at the end of the context.

    Raises:
        FileNotFoundError: if the path does not exist.
        WeightsFileError: for a folder or archive without, or with several of, these files, or a damaged archive.
        ForeignFileError: for an archive that would unpack to something out of proportion, or too large for the disk.
    """
    if source.is_dir():
        files = {str(p.relative_to(source)): p for p in sorted(source.rglob("*")) if p.is_file()}
        name = _the_one(source, files, names)
        yield files[name], files[name].name
    elif _is_archive(source):
        with zipfile.ZipFile(source) as archive:
            members = {info.filename: info for info in archive.infolist() if info.filename and not info.is_dir()}
            name = _the_one(source, members, names)
            cache_folder().mkdir(parents=True, exist_ok=True)
            unpacked = cache_folder() / f".unpacked.{os.urandom(6).hex()}{PARTIAL}"
            check_unpacking(source, source.stat().st_size, members[name].file_size, cache_folder())
            try:
                try:
                    with archive.open(members[name]) as packed, unpacked.open("wb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
                except (*DAMAGED_ZIP, OSError) as error:
                    if isinstance(error, OSError) and error.errno != EINVAL:  # a member before the archive's beginning
                        raise
                    raise WeightsFileError(
                        f"{source} is damaged or locked ({error}): download it again", code="archive-damaged"
                    ) from None
                yield unpacked, PurePosixPath(name).name
            finally:
                unpacked.unlink(missing_ok=True)
    elif source.is_file():
        yield source, source.name
    else:
        raise MissingFileError(f"{source} does not exist", code="file-missing")


def install(source: Path, file_name: str, *, link: bool = False) -> Path:
    """Copy (or link) a checkpoint into the weights folder under its official name, and pin its hash.

    Raises:
        FileExistsError: if another file of this name is there.
    """
    target = cache_folder() / file_name
    if target.exists() and not target.samefile(source):
        theirs = compute_sha256(source)
        if sha256(target) != theirs:
            raise ExistingFileError(
                f"{target} is there already, with SHA-256 {sha256(target)} where {source} has {theirs}: "
                f"move it away first",
                code="weights-exist",
            )
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            if link:
                partial.symlink_to(source.resolve())
            else:
                shutil.copyfile(source, partial)
    pin(target)
    return target


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip archive but no checkpoint of ``torch.save``, which is also a zip archive."""
    if not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsFileError(
            f"{path} is a damaged archive ({error}): download it again", code="archive-damaged"
        ) from None


def _the_one(source: Path, found: Collection[str], names: Collection[str]) -> str:
    fitting = [name for name in found if PurePosixPath(name.replace(os.sep, "/")).name in names]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise WeightsFileError(
            f"{source} holds several weights files, {', '.join(fitting)}: add one of them", code="weights-several"
        )
    listed = ", ".join(sorted(found)[:8]) or "nothing"
    raise WeightsFileError(
        f"{source} holds no file of a name that a model card knows; it holds {listed}", code="weights-unrecognised"
    )
