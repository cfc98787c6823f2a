"""Faults of the installation and of variables."""

from __future__ import annotations

from tests.faults.predicting import call
from tests.faults.registry import Bench, Seen, fault, seen_in

STAGE = "Installation and environment"


def planning(at: Bench) -> Seen:
    with at.unchanged():
        seen = at.fails("plan", "-d", "501", "-m", "stunet_s")
    return seen


@fault(STAGE, "nnUNet_raw is not set.", happens="refused, exit code 1", keeps="all files", code="dataset-missing")
def nnunet_raw_is_not_set(at: Bench) -> Seen:
    at.dataset()
    at.patch.delenv("nnUNet_raw")
    return planning(at)


@fault(
    STAGE,
    "nnUNet_preprocessed is not set.",
    happens="refused, exit code 1",
    keeps="all files",
    says="nnUNet_preprocessed is not defined",
)
def nnunet_preprocessed_is_not_set(at: Bench) -> Seen:
    at.dataset()
    at.patch.delenv("nnUNet_preprocessed")
    return planning(at)


@fault(
    STAGE, "nnUNet_preprocessed is a file.", happens="refused, exit code 1", keeps="all files", says="Not a directory"
)
def nnunet_preprocessed_is_a_file(at: Bench) -> Seen:
    at.dataset()
    at.preprocessed.rmdir()
    at.preprocessed.write_text("")
    return planning(at)


@fault(
    STAGE,
    "nnUNet_results is not set, and a model is given by dataset and trainer.",
    happens="refused, exit code 1",
    keeps="all files",
    code="variable-unset",
)
def nnunet_results_is_not_set(at: Bench) -> Seen:
    images = at.images()
    at.patch.delenv("nnUNet_results")
    with at.unchanged():
        seen = at.fails("predict", "-d", "501", "-i", images, "-o", at.root / "out", "-tr", "fm_trainer",
                           "-p", "FMPlans", "-c", "3d_fullres")  # fmt: skip
    return seen


@fault(
    STAGE,
    "The hook is switched off (NNUNET_FM_HOOK=0).",
    happens="nnunet-fm doctor names it, exit code 1",
    keeps="all files",
    says="NNUNET_FM_HOOK=0 is set",
    slow=True,
)
def the_hook_is_off(at: Bench) -> Seen:
    at.patch.setenv("NNUNET_FM_HOOK", "0")
    code, printed = at.command("doctor")
    assert code == 1, printed
    (line,) = [line for line in printed.splitlines() if "NNUNET_FM_HOOK" in line][:1]
    return seen_in(line)


@fault(
    STAGE,
    "A model folder is readable, its parent is not writable.",
    happens="predicted: nothing is written beside a model",
    keeps="the model",
)
def a_read_only_model(at: Bench) -> None:
    model, images = at.model(), at.images(1)
    with at.read_only(model.parent):
        code, printed = at.command(*call(model, images, at.root / "out"))
    assert code == 0, printed
