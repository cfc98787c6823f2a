"""Step that trains one fold, or continues an interrupted training."""

from __future__ import annotations

import zipfile
from pathlib import Path

from nnunet_fm.studies.job_context import JobContext
from nnunet_fm.studies.process import StepError

FINAL = "checkpoint_final.pth"
CONTINUED = ("checkpoint_latest.pth", "checkpoint_best.pth")
"""Checkpoints that nnU-Net continues from; the first that exists counts."""


def train(context: JobContext) -> None:
    """Train and validate a fold, unless this is done already.

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
    """Options that continue a fold: ``--val``, ``--c``, or none for a new training.

    Damaged checkpoints of killed trainings are renamed first.
    """
    for name in (FINAL, *CONTINUED):
        file = fold / name
        if file.is_file() and not zipfile.is_zipfile(file):
            print(f"{file} was cut off and is put aside.", flush=True)
            file.replace(file.with_name(f"{name}.damaged"))
    if (fold / FINAL).is_file():
        return ["--val"]
    return ["--c"] if any((fold / name).is_file() for name in CONTINUED) else []
