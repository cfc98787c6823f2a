"""The step that trains one fold: from the start, from where it was interrupted, or not at all if it is finished."""

from __future__ import annotations

import zipfile
from pathlib import Path

from nnunet_fm.studies.job_context import JobContext
from nnunet_fm.studies.process import StepError

FINAL = "checkpoint_final.pth"
CONTINUED = ("checkpoint_latest.pth", "checkpoint_best.pth")
"""What nnU-Net continues from, the first that is there."""


def train(context: JobContext) -> None:
    """Train a fold and validate it, as far as that is not done.

    Raises:
        StepError: if the command fails, or ends without a finished training.
    """
    what, fold = context.what, context.fold()
    if is_finished(fold):
        print(f"{fold} is trained and validated already.", flush=True)
        return
    words = [what["dataset"], what["configuration"], what["fold"], "-tr", what["trainer"], "-p", what["plans"]]
    context.run("nnUNetv2_train", *words, "-device", context.device, *continuation(fold))
    if not is_finished(fold):
        raise StepError(
            f"nnUNetv2_train ended, but {fold} holds no {FINAL} with a validation", code="validation-missing"
        )


def is_finished(fold: Path) -> bool:
    """Whether a fold is trained and its validation cases are predicted."""
    return (fold / FINAL).is_file() and (fold / "validation" / "summary.json").is_file()


def continuation(fold: Path) -> list[str]:
    """How the stock command goes on with a fold: ``--val``, ``--c``, or from the start.

    Checkpoints that were cut off when their training was killed are put aside first.
    """
    for name in (FINAL, *CONTINUED):
        file = fold / name
        if file.is_file() and not zipfile.is_zipfile(file):
            print(f"{file} was cut off and is put aside.", flush=True)
            file.replace(file.with_name(f"{name}.damaged"))
    if (fold / FINAL).is_file():
        return ["--val"]
    return ["--c"] if any((fold / name).is_file() for name in CONTINUED) else []
