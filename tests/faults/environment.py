"""Faults of the installation and of variables."""

from __future__ import annotations

from tests.faults.predicting import call
from tests.faults.registry import Bench, Outcome, fault

STAGE = "Installation and environment"


def planning(at: Bench) -> Outcome:
    with at.unchanged():
        message = at.fails("plan", "-d", "501", "-m", "stunet_s")
    return Outcome("refused, exit code 1", "all files", message)


@fault(STAGE, "nnUNet_raw is not set.")
def nnunet_raw_is_not_set(at: Bench) -> Outcome:
    at.dataset()
    at.patch.delenv("nnUNet_raw")
    return planning(at)


@fault(STAGE, "nnUNet_preprocessed is not set.")
def nnunet_preprocessed_is_not_set(at: Bench) -> Outcome:
    at.dataset()
    at.patch.delenv("nnUNet_preprocessed")
    return planning(at)


@fault(STAGE, "nnUNet_preprocessed is a file.")
def nnunet_preprocessed_is_a_file(at: Bench) -> Outcome:
    at.dataset()
    at.preprocessed.rmdir()
    at.preprocessed.write_text("")
    return planning(at)


@fault(STAGE, "nnUNet_results is not set, and a model is given by dataset and trainer.")
def nnunet_results_is_not_set(at: Bench) -> Outcome:
    images = at.images()
    at.patch.delenv("nnUNet_results")
    with at.unchanged():
        message = at.fails("predict", "-d", "501", "-i", images, "-o", at.root / "out", "-tr", "fm_trainer",
                           "-p", "FMPlans", "-c", "3d_fullres")  # fmt: skip
    return Outcome("refused, exit code 1", "all files", message)


@fault(STAGE, "The hook is switched off (NNUNET_FM_HOOK=0).", slow=True)
def the_hook_is_off(at: Bench) -> Outcome:
    at.patch.setenv("NNUNET_FM_HOOK", "0")
    code, printed = at.command("doctor")
    assert code == 1, printed
    (line,) = [line for line in printed.splitlines() if "NNUNET_FM_HOOK" in line][:1]
    return Outcome("nnunet-fm doctor names it, exit code 1", "all files", at.shown(line))


@fault(STAGE, "A model folder is readable, its parent is not writable.")
def a_read_only_model(at: Bench) -> Outcome:
    model, images = at.model(), at.images(1)
    with at.read_only(model.parent):
        code, printed = at.command(*call(model, images, at.root / "out"))
    assert code == 0, printed
    return Outcome("predicted: nothing is written beside a model", "the model")
