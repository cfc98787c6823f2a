"""Run a command of a step: in a process group of its own that the step's lock names, with a number of cores."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import NoReturn

from nnunet_fm.cpu.limits import environment
from nnunet_fm.errors import FMError
from nnunet_fm.io.locks import Lock

GRACE = 20.0
"""Seconds between SIGTERM and SIGKILL for a command that is interrupted."""


class StepError(FMError, RuntimeError):
    """A step that failed; the message is one line."""


class CommandError(StepError):
    """A failed command of a step, whose output has the reason."""

    code = "command-failed"


def run_command(words: Sequence[str], lock: Lock, variables: Mapping[str, str]) -> None:
    """Run a command and wait for it; it shares this process's output.

    Args:
        words: a console command of an installed package, and its arguments.
        lock: lock that the command holds while it runs, even if this process is killed.
        variables: additional environment variables.

    Raises:
        CommandError: if the command fails.
    """
    print(f"$ {shlex.join(words)}", flush=True)
    process = subprocess.Popen(
        program(words[0], words[1:]),
        env={**environment(), **variables},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process only, which ends the command
    )
    lock.add(process.pid)
    try:
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    if code != 0:
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        raise CommandError(f"{words[0]} {ended}")


def thread_variables(threads: int, *, gpu: bool) -> dict[str, str]:
    """Environment variables that limit nnU-Net and its libraries to a number of cores.

    With a GPU, loader processes prepare batches beside the training. Without one, the training loads batches itself,
    because loader processes would take the cores from the network.
    """
    loaders = max(1, threads - 1) if gpu else 0
    computing = 1 if gpu else threads
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(names, str(computing)),
        "nnUNet_n_proc_DA": str(loaders),
        "nnUNet_def_n_proc": str(threads),
    }


def interrupt_on_signals() -> None:
    """Let SIGTERM raise KeyboardInterrupt like Ctrl-C, so that started commands are ended."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def program(name: str, arguments: Sequence[str]) -> list[str]:
    """Command line of a console command of this interpreter's environment, which need not be activated."""
    found = next(iter(entry_points(group="console_scripts", name=name)), None)
    target = found.value if found else "nnunet_fm.cli.app:main" if name == "nnunet-fm" else None
    if target is None:
        raise StepError(f"{name} is not installed", code="command-missing")
    module, function = target.split(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return [sys.executable, "-c", code, *arguments]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
            return
