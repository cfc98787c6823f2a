"""Wrap nnU-Net's training command: short form, check of the number of GPUs, Ctrl-C."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

from nnunet_fm.hook import short_form

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ends."""
EARLY = " (where no checkpoint has been saved yet, type the former command: --c starts without -pretrained_weights)"


def run(entry: Callable[[], Any]) -> Any:
    """Call nnU-Net's training entry point; known errors exit with one line."""
    return short_form.run(lambda: _guarded(entry))


def _guarded(entry: Callable[[], Any]) -> Any:
    _check_gpus(sys.argv[1:])
    try:
        return entry()
    except KeyboardInterrupt:
        hint = again(sys.argv[1:]) + (EARLY if "-pretrained_weights" in sys.argv else "")
        print(f"\n{short_form.COMMAND}: interrupted; go on with: {hint}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def again(arguments: list[str]) -> str:
    """Command that continues the training of these arguments."""
    kept = list(arguments)
    if "-pretrained_weights" in kept:  # nnU-Net refuses them for continued trainings
        place = kept.index("-pretrained_weights")
        del kept[place : place + 2]
    return shlex.join([short_form.COMMAND, *kept, *([] if {"--c", "--val"} & set(kept) else ["--c"])])


def _check_gpus(arguments: list[str]) -> None:
    """Exit with code 2 if there are fewer GPUs than requested; else each of nnU-Net's processes would fail alone."""
    try:
        wanted = int(vars(short_form.parse(arguments)[0]).get("-num_gpus", 1))
    except (argparse.ArgumentError, ValueError):
        return  # nnU-Net reports the error
    if wanted < 2:
        return
    import torch

    if (there := torch.cuda.device_count()) < wanted:
        what = f"{there} GPU{'s' * (there != 1)}" if there else "no GPU"
        print(f"{short_form.COMMAND}: error: -num_gpus {wanted}: PyTorch finds {what} on this machine", file=sys.stderr)
        sys.exit(2)
