"""``nnunet-fm weights``: the official files that models start from, and full copies of what was trained from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.completion import complete_models
from nnunet_fm.cli.console import Json, Quiet, working
from nnunet_fm.cli.table import print_table

if TYPE_CHECKING:
    from nnunet_fm.models.official import Official

EPILOG = """
Examples:

  nnunet-fm weights list

  nnunet-fm weights pull suprem

  nnunet-fm weights add ~/Downloads/base_ep4k.model

  nnunet-fm weights bundle fm_trainer__FMPlans_suprem_freeze__3d_fullres
"""

PULL_EPILOG = """
Examples:

  nnunet-fm weights pull suprem

  nnunet-fm weights pull dinov2_vits14_pretrain stunet_b
"""

ADD_EPILOG = """
Examples:

  nnunet-fm weights add ~/Downloads/base_ep4k.model

  nnunet-fm weights add ~/Downloads/DAE_SSL_WEIGHTS.zip

  nnunet-fm weights add model.pth --as suprem_swinunetr --link
"""

VERIFY_EPILOG = """
Examples:

  nnunet-fm weights verify

  nnunet-fm weights verify stunet_b --json
"""

BUNDLE_EPILOG = """
Examples:

  nnunet-fm weights bundle fm_trainer__FMPlans_suprem_freeze__3d_fullres

  nnunet-fm weights bundle fm_trainer__FMPlans_suprem_freeze__3d_fullres/fold_0
"""

Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME|MODEL...", help="Weights, or models.", autocompletion=complete_models),
]
AnyNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME|MODEL...]", help="Weights, or models; all.", autocompletion=complete_models),
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, epilog=EPILOG)


@app.callback(help="Official weights: list, download, add, verify; and bundle trained folders.", epilog=EPILOG)
def _weights() -> None:
    pass


@app.command("list", epilog="Example:\n\n  nnunet-fm weights list --json")
def list_(as_json: Json = False) -> None:
    """List the official weights of all models: file, licence, whether at hand, hash, source."""
    from nnunet_fm.models.official import officials

    rows = [_row(official) for official in officials()]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        columns = ("name", "model", "file", "at hand", "size", "hash", "source", "licence")
        print_table([{column: str(row[column]) for column in columns} for row in rows])


@app.command(epilog=PULL_EPILOG)
def pull(names: Names, quiet: Quiet = False, as_json: Json = False) -> None:
    """Download weights into the weights folder; for files on drives, print where a person gets them."""
    from nnunet_fm.models.official import get_official

    _each([get_official(name) for name in names], partial(_pull, quiet=quiet), as_json, quiet)


@app.command(epilog=ADD_EPILOG)
def add(
    file: Annotated[Path, typer.Argument(help="A checkpoint, or a zip or folder that holds one.")],
    name: Annotated[
        str | None, typer.Option("--as", help="Name of the weights, if the file alone is ambiguous.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the file instead of copying it.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Put a downloaded file into the weights folder, after a check of every name and shape in it."""
    from nnunet_fm.models.official import check, get_official, officials
    from nnunet_fm.weights.add import install, opened
    from nnunet_fm.weights.cache import compute_sha256, sha256
    from nnunet_fm.weights.files import NotFiniteWeightsError, WeightsFileError

    known = [get_official(name)] if name else officials()
    names = {n for official in known for n in official.checkpoint.files}
    with working(f"checking {file.name}", quiet=quiet), opened(file, names) as (checkpoint, offered_as):
        if link and checkpoint != file:
            raise WeightsFileError(f"{file} is not the checkpoint itself: unpack it, or add it without --link")
        official = known[0] if name else _which(checkpoint, offered_as, known)
        try:
            report = check(official, checkpoint)
        except NotFiniteWeightsError:
            raise
        except ValueError as error:
            raise WeightsFileError(f"{file} is not '{official.checkpoint.name}': {error}") from None
        published = official.checkpoint.sha256
        if published is not None and (digest := compute_sha256(checkpoint)) != published:
            raise WeightsFileError(f"{file} has SHA-256 {digest}, but '{official.checkpoint.name}' has {published}")
        path = install(checkpoint, official.checkpoint.files[0], link=link)
    counts = report.sections[0].counts
    if as_json:
        print(json.dumps({**_row(official), "sha256": sha256(path), "counts": counts}, indent=2))
    elif not quiet:
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        print(f"{official.checkpoint.name}: {path} (tensors: {found}; SHA-256 {sha256(path)} is pinned)")


@app.command(epilog=VERIFY_EPILOG)
def verify(names: AnyNames = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Check the files at hand: hash against the published or pinned one, names and shapes against the network."""
    from nnunet_fm.models.official import get_official, officials

    wanted = [get_official(name) for name in names] if names else [o for o in officials() if _at_hand(o)]
    with working("checking files", quiet=quiet) as tell:
        _each(wanted, partial(_verify, tell=tell), as_json, quiet)
    if not wanted and not as_json:
        from nnunet_fm.weights.cache import cache_folder

        print(f"no official weights in {cache_folder()}")


@app.command(epilog=BUNDLE_EPILOG)
def bundle(
    folder: Annotated[Path, typer.Argument(help="A trained folder: fm_trainer__PLANS__CONFIGURATION, or one fold_X.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rewrite a trained folder's slim checkpoints as full ones, which need no official file to predict."""
    from nnunet_fm.weights.bundle import bundle as rewrite

    rows = []
    with working(f"rewriting {folder.name}", quiet=quiet):
        for done in rewrite(folder):
            rows.append(
                {
                    "path": str(done.path),
                    "bundled": bool(done.bases),
                    "from": list(done.bases),
                    "bytes before": done.bytes_before,
                    "bytes": done.bytes_after,
                }
            )
            if not (as_json or quiet):
                sizes = f"{_size(done.bytes_before)} -> {_size(done.bytes_after)}"
                with_what = f"with {', '.join(done.bases)}, {sizes}" if done.bases else "was full already"
                print(f"{done.path}: {with_what}")
    if as_json:
        print(json.dumps(rows, indent=2))


# What a command does with one official file


def _pull(official: Official, quiet: bool) -> dict[str, Any]:
    from nnunet_fm.models.official import check
    from nnunet_fm.weights.cache import cache_folder
    from nnunet_fm.weights.download import DownloadError, download

    checkpoint, file = official.checkpoint, official.checkpoint.files[0]
    present = _at_hand(official)
    if present is not None:
        return {"status": "at hand", "path": str(present)}
    by_hand = f"download {file} from {checkpoint.page} and run `nnunet-fm weights add FILE"
    by_hand += f" --as {checkpoint.name}`"
    if checkpoint.url is None:
        raise DownloadError(f"no program can download this file; {by_hand}, which puts it into {cache_folder()}")
    try:
        with _progress(file, hidden=quiet) as progress:
            digest = download(
                checkpoint.url,
                cache_folder() / file,
                size=checkpoint.bytes,
                expected={"from its publisher": checkpoint.sha256},
                check=lambda path: check(official, path),
                progress=progress,
            )
    except DownloadError as error:
        raise DownloadError(f"{error}. By hand: {by_hand}") from None
    return {"status": "pulled", "path": str(cache_folder() / file), "sha256": digest}


def _verify(official: Official, tell: Callable[[str], None]) -> dict[str, Any]:
    from nnunet_fm.models.official import check
    from nnunet_fm.weights.cache import cache_folder, check_hash, pin, pinned, sha256

    path = _at_hand(official)
    if path is None:
        raise FileNotFoundError(f"{' or '.join(official.checkpoint.files)} is not in {cache_folder()}")
    tell(f"checking {path.name}")
    check_hash(path, {"from its publisher": official.checkpoint.sha256})
    check(official, path)
    if pinned(path) is None:
        with suppress(OSError):  # a folder shared read-only
            pin(path)
    return {"status": "good", "path": str(path), "sha256": sha256(path)}


def _each(wanted: Sequence[Official], act: Callable[[Official], dict[str, Any]], as_json: bool, quiet: bool) -> None:
    """Do the same with each file, faults notwithstanding; the first fault is the command's reason to fail."""
    rows, faults = [], []
    for official in wanted:
        name = official.checkpoint.name
        try:
            row = {"name": name, **act(official)}
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            row = {"name": name, "status": "failed", "reason": reason}
            faults.append(f"{name}: {reason}")
        rows.append(row)
        if not (as_json or quiet) and "reason" not in row:
            print(f"{name}: {row['status']}, {row['path']}")
    if as_json:
        print(json.dumps(rows, indent=2))
    for fault in faults[:-1]:
        print(f"nnunet-fm: {fault}", file=sys.stderr)
    if faults:
        raise RuntimeError(faults[-1])


def _which(checkpoint: Path, offered_as: str, known: Sequence[Official]) -> Official:
    """The official file that this is: by its name, or by names and shapes in it."""
    from nnunet_fm.models.official import recognise
    from nnunet_fm.weights.files import WeightsFileError

    named = [official for official in known if offered_as in official.checkpoint.files]
    if len(named) == 1:
        return named[0]
    fitting = recognise(checkpoint, named or known)
    names = ", ".join(official.checkpoint.name for official in fitting)
    if not fitting:
        raise WeightsFileError(
            f"{offered_as} fits no model; `--as NAME` says why not, `nnunet-fm weights list` names all"
        )
    if len(fitting) > 1:
        raise WeightsFileError(f"{offered_as} could be any of {names}: say which with --as NAME")
    return fitting[0]


def _at_hand(official: Official) -> Path | None:
    from nnunet_fm.weights.cache import find

    return find(official.checkpoint.files)


def _row(official: Official) -> dict[str, Any]:
    checkpoint, path = official.checkpoint, _at_hand(official)
    size = path.stat().st_size if path else checkpoint.bytes
    return {
        "name": checkpoint.name,
        "model": official.card.name,
        "file": path.name if path else checkpoint.files[0],
        "licence": checkpoint.licence,
        "at hand": "yes" if path else "no",
        "path": str(path) if path else None,
        "bytes": size,
        "size": _size(size) if size else "?",
        "hash": _hash_state(official, path),
        "source": checkpoint.url or checkpoint.page,
        "page": checkpoint.page,
        "note": checkpoint.note,
    }


def _hash_state(official: Official, path: Path | None) -> str:
    """Of a file at hand, as far as its hash is known without computing it."""
    from nnunet_fm.weights.cache import known_sha256, pinned

    published = official.checkpoint.sha256
    if path is None:
        return "published" if published else "none published"
    wanted, found = published or pinned(path), known_sha256(path)
    if wanted is None:
        return "not pinned"
    if found is None:
        return "not checked"
    return "CHANGED" if found != wanted else "as published" if published else "as pinned"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def _progress(title: str, *, hidden: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error, told by bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
