"""Download a file: resume where an earlier download stopped, check it, and rename it in one step.

Neither pooch 1.9 nor huggingface_hub 2.4 does all of that: pooch starts anew after a broken connection; huggingface_hub
reads only files of the hub, follows redirects to plain HTTP, loses the last 10 MB of a broken connection, and only
warns if the disk is too full.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit

from filelock import FileLock, Timeout

from nnunet_fm import __version__
from nnunet_fm.errors import FMError
from nnunet_fm.weights.add import opened
from nnunet_fm.weights.cache import ChangedFileError, check_hash, pin, remember_hash, sha256

HUB_SCHEME = "hf://"
HUB_VARIABLE = "HF_ENDPOINT"
HUB = "https://huggingface.co"
LOCAL = ("localhost", "127.0.0.1", "::1")
CHUNK = 1 << 20
TIMEOUT = 60
"""Seconds without an answer after which a download fails."""

LARGEST = 2**36
"""Largest download in bytes if neither the model card nor the server knows the size."""

Progress = Callable[[int, int | None], None]
"""Called with bytes so far and bytes in all, None if the server does not say."""


class DownloadError(FMError, RuntimeError):
    """A download that failed; the message says what was tried, what happened and what to do."""


def resolve(url: str) -> str:
    """Address of a download: the hub's for ``hf://owner/repository/path``, else the URL itself.

    Raises:
        DownloadError: for anything but HTTPS, or HTTP on this machine.
    """
    if url.startswith(HUB_SCHEME):
        parts = url.removeprefix(HUB_SCHEME).split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise DownloadError(f"{url} is not of the form hf://owner/repository/file", code="url-form")
        owner, repository, path = parts
        url = f"{os.environ.get(HUB_VARIABLE, HUB).rstrip('/')}/{owner}/{repository}/resolve/main/{quote(path)}"
    split = urlsplit(url)
    if split.scheme != "https" and not (split.scheme == "http" and split.hostname in LOCAL):
        raise DownloadError(f"{url} is refused: weights are downloaded by HTTPS only", code="url-refused")
    return url


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    expected: Mapping[str, str | None] | None = None,
    members: Collection[str] = (),
    check: Callable[[Path], object] = lambda path: None,
    progress: Progress = lambda done, total: None,
) -> str:
    """Download to ``<target>.part``, check, rename and pin the hash; a later call resumes an interrupted one.

    Args:
        url: ``https://…`` or ``hf://owner/repository/file``.
        target: path of the finished file; its folder is created.
        size: bytes that the file must have, if known.
        expected: hashes that the file must have, see `check_hash`; a hash pinned earlier and that of the hub are added.
        members: names of the file in an archive, if the address is that of a zip.
        check: function that raises a ValueError for a complete file that cannot be used.
        progress: function called after every piece.

    Returns:
        SHA-256 of the file.

    Raises:
        DownloadError: if the download fails, or the file is not the expected one.
        ValueError: raised by ``check``; the file is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    archive = is_archive(url) and bool(members)
    partial = target.with_name(f"{PurePosixPath(urlsplit(url).path).name if archive else target.name}.part")
    try:
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
            told = _fetch(resolve(url), partial, None if archive else size, progress)
            published = {**(expected or {}), "that the hub gives": told if url.startswith(HUB_SCHEME) else None}
            try:
                with opened(partial, members) if archive else nullcontext((partial, "")) as (file, _):
                    check_hash(file, published, name=target.name)
                    check(file)
                    digest = sha256(file)
                    os.replace(file, target)
            except ValueError as error:
                _discard(partial)
                if not isinstance(error, ChangedFileError):
                    raise
                raise DownloadError(
                    f"{url} is not the file it should be, and was removed: {error}", code=error.code
                ) from None
            _discard(partial)
            remember_hash(target, digest)
            return pin(target)
    except Timeout:
        raise DownloadError(
            f"another process is downloading {target}: wait for it to end", code="download-running"
        ) from None


def is_archive(url: str) -> bool:
    """Whether an address is that of a zip."""
    return urlsplit(url).path.lower().endswith(".zip")


def _fetch(url: str, partial: Path, size: int | None, progress: Progress) -> str | None:
    """Complete ``partial``, from its end on if the server still has the same file; return the hub's hash."""
    have, tag = _unfinished(partial)
    if have and have == size:
        return None
    redirects = _Redirects()
    try:
        with _open(url, have, tag, redirects) as answer:
            total = _total(answer, url, size)
            have = have if answer.status == http.client.PARTIAL_CONTENT else 0
            _check_space(partial, have, total)
            _tag_file(partial).write_text(_validator(answer.headers), encoding="utf-8")
            with partial.open("ab" if have else "wb") as file:
                done = _copy(answer, file, have, total, progress)
            told = redirects.linked or _linked(answer.headers)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return None  # nothing is left to fetch
            _discard(partial)
            return _fetch(url, partial, size, progress)
        raise DownloadError(f"{url} answered {error.code} ({error.reason})", code="server-refused") from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        kept = f"; {partial} is kept, the same command goes on from there" if partial.exists() else ""
        raise DownloadError(
            f"{url} cannot be read ({getattr(error, 'reason', error)}){kept}", code="server-unreachable"
        ) from None
    if total is not None and done < total:
        raise DownloadError(
            f"the connection to {url} ended after {done:,} of {total:,} bytes; {partial} is kept, the same command "
            f"goes on from there",
            code="download-interrupted",
        )
    return told


def _open(url: str, have: int, tag: str, redirects: _Redirects) -> Any:
    headers = {"User-Agent": f"nnunet-fm/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    return urllib.request.build_opener(redirects).open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as far as `resolve` allows, and keeps the hash that the hub sends with one."""

    linked: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.linked = _linked(headers) or self.linked
        return super().redirect_request(req, fp, code, msg, headers, resolve(newurl))  # type: ignore[arg-type]


def _linked(headers: Message) -> str | None:
    """SHA-256 of a large file, as the Hugging Face hub sends it."""
    tag = headers.get("X-Linked-ETag", "").strip('"')
    return f"sha256:{tag}" if re.fullmatch("[0-9a-f]{64}", tag) else None


def _total(answer: Any, url: str, size: int | None) -> int | None:
    """Bytes of the whole file, from the server's answer."""
    if answer.headers.get_content_type() == "text/html":
        raise DownloadError(
            f"{url} answered with a web page instead of a file: download it by hand", code="download-web-page"
        )
    length = answer.headers.get("Content-Length")
    if answer.status == http.client.PARTIAL_CONTENT:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    total = int(length) if length and length.isdigit() else None
    if size is not None and total is not None and total != size:
        raise DownloadError(
            f"{url} has {total:,} bytes where {size:,} are expected: it is another file", code="download-size"
        )
    return size if total is None else total


def _check_space(partial: Path, have: int, total: int | None) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - have > free:
        raise DownloadError(
            f"{partial.parent} has {free:,} bytes left, the download needs {total - have:,}", code="disk-full"
        )


def _copy(answer: Any, file: IO[bytes], done: int, total: int | None, progress: Progress) -> int:
    progress(done, total)
    while chunk := answer.read(CHUNK):
        done += len(chunk)
        if done > (LARGEST if total is None else total):
            raise DownloadError(
                f"{answer.url} sends more than the {total or LARGEST:,} bytes that it may: it is another file",
                code="download-size",
            )
        file.write(chunk)
        progress(done, total)
    return done


def _unfinished(partial: Path) -> tuple[int, str]:
    """Bytes of an unfinished download, and the server's tag of the file's version; 0 bytes without a tag."""
    try:
        tag = _tag_file(partial).read_text(encoding="utf-8")
        return (partial.stat().st_size, tag) if tag else (0, "")
    except OSError:
        return 0, ""


def _validator(headers: Message) -> str:
    """The server's tag of this version of the file; empty if there is no exact one."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _tag_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag_file(partial).unlink(missing_ok=True)
