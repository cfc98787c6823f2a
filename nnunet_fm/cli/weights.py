"""``nnunet-fm weights``: list, download, add and verify official files; bundle trained folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.completion import complete_models
from nnunet_fm.cli.console import bars, print_table, working
from nnunet_fm.cli.options import Json, Quiet
from nnunet_fm.errors import FailedError, FMError, code_of, one_line

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
    from nnunet_fm.models.official_files import describe

    rows = [describe(official) for official in officials()]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        columns = ("name", "model", "file", "at hand", "size", "hash", "source", "licence")
        print_table([{column: str(row[column]) for column in columns} for row in rows])


@app.command(epilog=PULL_EPILOG)
def pull(names: Names, quiet: Quiet = False, as_json: Json = False) -> None:
    """Download weights into the weights folder; for files on drives, print where a person gets them."""
    from nnunet_fm.models.official import get_official
    from nnunet_fm.models.official_files import pull as download

    with bars(hidden=quiet, in_bytes=True) as bar:
        _each([get_official(name) for name in names], lambda official: download(official, bar), as_json, quiet)


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
    from nnunet_fm.models.official_files import add as put
    from nnunet_fm.models.official_files import describe
    from nnunet_fm.weights.cache import sha256

    with working(f"checking {file.name}", quiet=quiet):
        added = put(file, name, link=link)
    digest = sha256(added.path)
    if added.doubt:
        print(f"WARNING: {added.doubt}: it is not the file of its publisher", file=sys.stderr)
    if as_json:
        print(json.dumps({**describe(added.official), "sha256": digest, "counts": added.counts}, indent=2))
    elif not quiet:
        found = ", ".join(f"{count} {kind}" for kind, count in added.counts.items())
        print(f"{added.official.checkpoint.name}: {added.path} (tensors: {found}; SHA-256 {digest} is pinned)")


@app.command(epilog=VERIFY_EPILOG)
def verify(names: AnyNames = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Check the files at hand: hash against the published or pinned one, names and shapes against the network."""
    from nnunet_fm.models.official import get_official, officials
    from nnunet_fm.models.official_files import cached
    from nnunet_fm.models.official_files import verify as check

    wanted = [get_official(name) for name in names] if names else [o for o in officials() if cached(o)]
    with working("checking files", quiet=quiet) as progress:
        _each(wanted, lambda official: check(official, progress), as_json, quiet)
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
    from nnunet_fm.models.official_files import file_size
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
                sizes = f"{file_size(done.bytes_before)} -> {file_size(done.bytes_after)}"
                with_what = f"with {', '.join(done.bases)}, {sizes}" if done.bases else "was full already"
                print(f"{done.path}: {with_what}")
    if as_json:
        print(json.dumps(rows, indent=2))


def _each(wanted: Sequence[Official], act: Callable[[Official], dict[str, Any]], as_json: bool, quiet: bool) -> None:
    """Do the same with each file and go on after a fault; the last fault is the command's reason to fail."""
    rows, faults = [], []
    for official in wanted:
        name = official.checkpoint.name
        try:
            row = {"name": name, **act(official)}
        except (OSError, ValueError, RuntimeError) as error:
            reason, code = " ".join(str(error).split()), code_of(error, FMError.code)
            row = {"name": name, "status": "failed", "reason": reason, "code": code}
            faults.append(FailedError(f"{name}: {reason}", code=code))
        rows.append(row)
        if not (as_json or quiet) and "reason" not in row:
            state = f"{row['status']} ({row['hash']})" if "hash" in row else row["status"]
            print(f"{name}: {state}, {row['path']}")
    if as_json:
        print(json.dumps(rows, indent=2))
    for fault in faults[:-1]:
        print(f"nnunet-fm: {one_line(fault)}", file=sys.stderr)
    if faults:
        raise faults[-1]
