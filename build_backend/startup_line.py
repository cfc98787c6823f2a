"""setuptools' build backend, plus two things: the start-up line, and source archives of the same bytes each time.

The line is a ``.pth`` file at the root of wheels and editable wheels.

setuptools offers no way to put a file beside the packages that survives an editable build, so the finished wheel is
written anew with the file and its RECORD row. pip then installs and uninstalls it like any other file.

With ``SOURCE_DATE_EPOCH`` setuptools' wheels carry that time, but its source archives carry those of the files and of
the build; they are written anew, too.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # the hooks that stay as they are
from setuptools.build_meta import __all__ as _hooks

__all__ = list(_hooks)

LINE = Path("nnunet_fm", "hook", "nnunet_fm_hook.pth")


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    add_line(Path(wheel_directory, name))
    return name


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    add_line(Path(wheel_directory, name))
    return name


def build_sdist(sdist_directory: str, config_settings: dict[str, Any] | None = None) -> str:
    name: str = build_meta.build_sdist(sdist_directory, config_settings)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None:
        fix_times(Path(sdist_directory, name), int(epoch))
    return name


def fix_times(sdist: Path, epoch: int) -> None:
    """Give all members one time, no owner, plain modes and the order of their names, in place."""
    unfinished = sdist.with_suffix(".unfinished")
    with (
        tarfile.open(sdist) as old,
        unfinished.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    os.replace(unfinished, sdist)


def add_line(wheel: Path) -> None:
    """Put the start-up line into a wheel, in place. Its name sorts after ``__editable__*.pth``: paths come first."""
    content = LINE.read_bytes()
    unfinished = wheel.with_suffix(".unfinished")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as new:
        (record,) = (item for item in old.infolist() if item.filename.endswith(".dist-info/RECORD"))
        for item in old.infolist():
            # Modes depend on the umask of whoever unpacked the source; a wheel needs no more than these two.
            item.external_attr = (0o100755 if item.external_attr >> 16 & 0o100 else 0o100644) << 16
            if item is not record:
                new.writestr(item, old.read(item))
        line = zipfile.ZipInfo(LINE.name, record.date_time)
        line.compress_type = zipfile.ZIP_DEFLATED
        line.external_attr = 0o100644 << 16
        new.writestr(line, content)
        new.writestr(record, old.read(record) + _row(LINE.name, content))
    os.replace(unfinished, wheel)


def _row(name: str, content: bytes) -> bytes:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow([name, f"sha256={digest}", len(content)])
    return row.getvalue().encode()
