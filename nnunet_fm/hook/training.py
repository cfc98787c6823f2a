"""nnU-Net's training command around a trainer of ours: the short form, several GPUs that are not there, Ctrl-C."""

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
    """Call nnU-Net's training entry point; exits with one line where that says all."""
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
    """The command that goes on with what these arguments began."""
    kept = list(arguments)
    if "-pretrained_weights" in kept:  # nnU-Net refuses them where a training is continued
        place = kept.index("-pretrained_weights")
        del kept[place : place + 2]
    return shlex.join([short_form.COMMAND, *kept, *([] if {"--c", "--val"} & set(kept) else ["--c"])])


def _check_gpus(arguments: list[str]) -> None:
    """Exit with code 2 where more GPUs are asked for than there are: each of nnU-Net's processes would end alone."""
    try:
        wanted = int(vars(short_form.parse(arguments)[0]).get("-num_gpus", 1))
    except (argparse.ArgumentError, ValueError):
        return  # nnU-Net says what is wrong
    if wanted < 2:
        return
    import torch

    if (there := torch.cuda.device_count()) < wanted:
        what = f"{there} GPU{'s' * (there != 1)}" if there else "no GPU"
        print(f"{short_form.COMMAND}: error: -num_gpus {wanted}: PyTorch finds {what} on this machine", file=sys.stderr)
        sys.exit(2)
