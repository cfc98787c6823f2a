"""Official files in the weights folder: describe, download, add and verify them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_fm.errors import MissingFileError, code_of
from nnunet_fm.models.official import Official, check, get_official, officials, recognise
from nnunet_fm.weights.cache import (
    HASH_NAMES,
    cache_folder,
    check_hash,
    compute_hash,
    find,
    known_hash,
    pin,
    pinned,
    sha256,
    split_hash,
)

NOT_PINNED, NOT_CHECKED, CHANGED = "not pinned", "not checked", "CHANGED"
"""States of a hash: unknown, known but not computed for this file, and another one than expected."""
AS_PUBLISHED, AS_PINNED = "as published", "publisher's unknown"
"""States of a good file: its hash is the publisher's, or the one that it had when it was added."""
FITS = "shapes fit, publisher's hash unknown"
"""State of a file after a check, where the publisher gives no hash."""
Bar = Callable[[str], Callable[[float, float | None], None]]
"""Adds a progress bar of a name; returns a function of the bytes so far and in all."""


@dataclass(frozen=True)
class AddedFile:
    """A file that was put into the weights folder.

    Attributes:
        official: what it is.
        path: where it is.
        counts: number of its tensors of each kind, from the load report.
        doubt: difference from the publisher's MD5 or first digits, in words; empty without one.
    """

    official: Official
    path: Path
    counts: dict[str, int]
    doubt: str = ""


def cached(official: Official) -> Path | None:
    """Path of the file in the weights folder, None if it is not there."""
    return find(official.checkpoint.files)


def describe(official: Official) -> dict[str, Any]:
    """Row of a table: licence, path, size, source and state of the hash, found without reading the file."""
    checkpoint, path = official.checkpoint, cached(official)
    size = path.stat().st_size if path else checkpoint.bytes
    return {
        "name": checkpoint.name,
        "model": official.card.name,
        "file": path.name if path else checkpoint.files[0],
        "licence": checkpoint.licence,
        "at hand": "yes" if path else "no",
        "path": str(path) if path else None,
        "bytes": size,
        "size": file_size(size) if size else "?",
        "hash": hash_state(official, path),
        "source": next(iter(checkpoint.urls), checkpoint.page),
        "page": checkpoint.page,
        "note": checkpoint.note,
    }


def file_size(count: int) -> str:
    """A number of bytes as GB or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def hash_state(official: Official, path: Path | None) -> str:
    """State of a file's hash as far as it is known without computing it; without a file, whether one is published."""
    published = official.checkpoint.published
    if path is None:
        return "published" if published else "none published"
    wanted = published or pinned(path)
    if wanted is None:
        return NOT_PINNED
    algorithm, first = split_hash(wanted)
    found = known_hash(path, algorithm)
    if found is None:
        return NOT_CHECKED
    return CHANGED if not found.startswith(first) else AS_PUBLISHED if published else AS_PINNED


def pull(official: Official, bar: Bar) -> dict[str, Any]:
    """Download a file into the weights folder, unless it is there; its addresses are tried in order.

    Raises:
        DownloadError: if it cannot be downloaded; the message says how to get it by hand.
    """
    from nnunet_fm.weights.download import DownloadError, download

    checkpoint, file = official.checkpoint, official.checkpoint.files[0]
    present = cached(official)
    if present is not None:
        return {"status": "at hand", "path": str(present)}
    by_hand = f"download {file} from {checkpoint.page} and run `nnunet-fm weights add FILE"
    by_hand += f" --as {checkpoint.name}`"
    if not checkpoint.urls:
        raise DownloadError(
            f"its publisher gives a page, but no address of the file: {by_hand}, which puts it into {cache_folder()}",
            code="download-by-hand",
        )
    faults: list[DownloadError] = []
    for url in checkpoint.urls:
        try:
            digest = download(
                url,
                cache_folder() / file,
                size=checkpoint.bytes,
                expected={"from its publisher": checkpoint.published},
                members=checkpoint.files,
                check=lambda path: check(official, path),
                progress=bar(file),
            )
        except DownloadError as error:
            faults.append(error)
        else:
            return {"status": "pulled", "path": str(cache_folder() / file), "sha256": digest}
    tried, last = "; ".join(str(fault) for fault in faults), faults[-1]
    raise DownloadError(f"{tried}. By hand: {by_hand}", code=last.code)


def add(file: Path, name: str | None = None, *, link: bool = False) -> AddedFile:
    """Put a file that a person has downloaded into the weights folder, after a check of every name and shape in it.

    Args:
        file: a checkpoint, or an archive or folder that holds one.
        name: of the official file; None recognises it.
        link: make a symbolic link instead of a copy.

    Raises:
        WeightsFileError: for a file that is not the official one, or could be several.
    """
    from nnunet_fm.weights.add import install, opened
    from nnunet_fm.weights.files import NotFiniteWeightsError, WeightsFileError

    known = [get_official(name)] if name else officials()
    names = {n for official in known for n in official.checkpoint.files}
    with opened(file, names) as (checkpoint, offered_as):
        if link and checkpoint != file:
            raise WeightsFileError(
                f"{file} is not the checkpoint itself: unpack it, or add it without --link", code="weights-packed"
            )
        official = known[0] if name else _which(checkpoint, offered_as, known)
        try:
            report = check(official, checkpoint)
        except NotFiniteWeightsError:
            raise
        except ValueError as error:
            raise WeightsFileError(
                f"{file} is not '{official.checkpoint.name}': {error}", code=code_of(error, "weights-mismatch")
            ) from None
        algorithm, first = split_hash(official.checkpoint.published or "")
        doubt = ""
        if first and not (digest := compute_hash(checkpoint, algorithm)).startswith(first):
            doubt = f"{file} has {HASH_NAMES[algorithm]} {digest}, but '{official.checkpoint.name}' has {first}"
            if official.checkpoint.required:
                raise WeightsFileError(doubt, code="weights-changed")
        path = install(checkpoint, official.checkpoint.files[0], link=link)
    return AddedFile(official, path, report.sections[0].counts, doubt)


def verify(official: Official, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Check a file in the weights folder: hash against the published or pinned one, names and shapes, and pin its hash.

    Args:
        official: the file.
        progress: called with what is being checked.

    Raises:
        FileNotFoundError: if it is not there.
        ChangedFileError: if its hash is another one.
        WeightsFileError, WeightsMismatchError: as `check`.
    """
    path = cached(official)
    if path is None:
        raise MissingFileError(
            f"{' or '.join(official.checkpoint.files)} is not in {cache_folder()}", code="weights-missing"
        )
    progress(f"checking {path.name}")
    check_hash(path, {"from its publisher": official.checkpoint.published})
    check(official, path)
    if pinned(path) is None:
        with suppress(OSError):  # a folder shared read-only
            pin(path)
    state = AS_PUBLISHED if official.checkpoint.published else FITS
    return {"status": "good", "hash": state, "path": str(path), "sha256": sha256(path)}


def _which(checkpoint: Path, offered_as: str, known: Sequence[Official]) -> Official:
    """The official file that a checkpoint is: by its name, or by names and shapes of its tensors."""
    from nnunet_fm.weights.files import WeightsFileError

    named = [official for official in known if offered_as in official.checkpoint.files]
    if len(named) == 1:
        return named[0]
    fitting = recognise(checkpoint, named or known)
    names = ", ".join(official.checkpoint.name for official in fitting)
    if not fitting:
        raise WeightsFileError(
            f"{offered_as} fits no model; `--as NAME` says why not, `nnunet-fm weights list` names all",
            code="weights-unrecognised",
        )
    if len(fitting) > 1:
        raise WeightsFileError(
            f"{offered_as} could be any of {names}: say which with --as NAME", code="weights-ambiguous"
        )
    return fitting[0]
