"""``nnunet-fm``: the command line with all sub-commands."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import typer

from nnunet_fm.cli import adapt, convert, demo, doctor, evaluate, plan, predict, report, study, weights
from nnunet_fm.cli import list as listing
from nnunet_fm.cli.variadic import VariadicCommand, normalise
from nnunet_fm.cpu.limits import choose_waiting
from nnunet_fm.errors import one_line

DEBUG_SWITCH = "NNUNET_FM_DEBUG"
Command = TypeVar("Command", bound=Callable[..., None])


def _with_host(command: Command) -> Command:
    """Let a command check the version of nnU-Net first."""

    @wraps(command)
    def checked(*args: Any, **kwargs: Any) -> None:
        from nnunet_fm.host import check_host

        check_host()
        command(*args, **kwargs)

    return cast(Command, checked)


app = typer.Typer(
    name="nnunet-fm",
    help="Foundation models inside stock nnU-Net v2 commands.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": normalise},
)
app.command("list", epilog=listing.EPILOG)(listing.list_)
app.command("convert", epilog=convert.EPILOG)(_with_host(convert.convert))
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("plan", epilog=plan.EPILOG, cls=VariadicCommand)(_with_host(plan.plan))
app.command("adapt", epilog=adapt.EPILOG, cls=VariadicCommand)(_with_host(adapt.adapt))
app.command("predict", epilog=predict.EPILOG, cls=VariadicCommand)(_with_host(predict.predict))
app.command("evaluate", epilog=evaluate.EPILOG, cls=VariadicCommand)(evaluate.evaluate)
app.command("report", epilog=report.EPILOG, cls=VariadicCommand)(report.report)
app.command("study", epilog=study.EPILOG, context_settings={"allow_extra_args": True})(_with_host(study.study))
app.command("demo", epilog=demo.EPILOG)(_with_host(demo.demo))
app.add_typer(weights.app, name="weights")


def _version(asked: bool) -> None:
    if asked:
        from nnunet_fm import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed with a one-line reason, 2 bad usage, 3 some cases failed."""
    choose_waiting()
    atexit.register(gc.freeze)  # else a garbage collection of all imported modules delays the exit by a second
    try:
        app()
    except Exception as error:
        if os.environ.get(DEBUG_SWITCH) == "1":
            raise
        reason = one_line(error)
        if isinstance(error, OSError) and error.errno == errno.ENOTDIR:
            reason += ": a part of this path is a file, correct the variable or option that names it"
        print(f"nnunet-fm: {reason}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
