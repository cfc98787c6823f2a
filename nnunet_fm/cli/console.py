"""What commands say, and where: results on standard output, progress on standard error in a terminal, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonObjectOnly = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]


@contextmanager
def results_only(*, as_json: bool, quiet: bool) -> Iterator[None]:
    """While libraries work: what they print leaves standard output to the JSON object, and nobody sees it if quiet."""
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
    """A turning sign on standard error, if that is a terminal, around what may take longer than two seconds.

    Yields a function that changes its text.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    spinner, console = Spinner("dots", text), Console(stderr=True)
    # What is printed meanwhile must not break the line of the sign; in a file or pipe it cannot, and belongs there.
    with Live(spinner, console=console, transient=True, redirect_stdout=sys.stdout.isatty()):
        yield lambda text: spinner.update(text=text)


@contextmanager
def bars(*, hidden: bool = False) -> Iterator[Callable[[str], Callable[[float, int], None]]]:
    """Bars on standard error, if that is a terminal.

    Yields a function that adds a bar of a name and returns what moves it: called with the numbers done and of all.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda name: lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def add(name: str) -> Callable[[float, int], None]:
            task = bar.add_task(name, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield add
