"""Output of commands: results on standard output; progress on standard error, and only in a terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout


@contextmanager
def results_only(*, as_json: bool, quiet: bool) -> Iterator[None]:
    """Keep what libraries print out of standard output: nowhere if quiet, on standard error with JSON."""
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # bars of nnU-Net, in its worker processes, too
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    elif as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


@contextmanager
def working(text: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show a spinner in a terminal around work that may take longer than two seconds.

    Yields a function that changes its text.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner, console = Spinner("dots", text), Console(stderr=True)
    # In a terminal, printed lines must not break the spinner's; in a file or pipe they cannot, and belong there.
    with Live(spinner, console=console, transient=True, redirect_stdout=sys.stdout.isatty()):
        yield lambda text: spinner.update(text=text)


@contextmanager
def bars(
    *, hidden: bool = False, in_bytes: bool = False
) -> Iterator[Callable[[str], Callable[[float, float | None], None]]]:
    """Show progress bars in a terminal.

    Yields a function that adds a bar of a name; that returns one that moves the bar: called with the numbers done and
    in all, None where the latter is unknown.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda name: lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )  # fmt: skip

    counts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:

        def add(name: str) -> Callable[[float, float | None], None]:
            task = bar.add_task(name, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield add


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit like Ctrl-C, so that temporary files are removed and started commands end."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def remark(text: str, *, quiet: bool = False) -> None:
    """Print a line beside the results, on standard error."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows of the same keys; columns are as wide as their content, in a terminal as in a file."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in widths}, {key: "-" * width for key, width in widths.items()}, *rows):
        print("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip())
