"""Faults of trained models that are adapted to another dataset."""

from __future__ import annotations

from pathlib import Path

from tests.faults.registry import Bench, Outcome, cut_in_half, fault

STAGE = "Adapting"


def refused(at: Bench, source: Path, dataset: int = 501) -> Outcome:
    with at.unchanged():
        message = at.fails("adapt", "--source", source, "-d", str(dataset), "--method", "selftraining")
    return Outcome("refused, exit code 1", "all files; no plan is written", message)


@fault(STAGE, "The model to adapt is not there.")
def a_source_that_is_missing(at: Bench) -> Outcome:
    at.dataset()
    return refused(at, at.results / "Dataset500_Source" / "fm_trainer__FMPlans__3d_fullres")


@fault(STAGE, "The model to adapt was trained by stock nnU-Net.")
def a_source_of_stock_nnunet(at: Bench) -> Outcome:
    at.dataset()
    return refused(at, at.model())


@fault(STAGE, "The plans of the model to adapt are cut off.")
def a_source_with_half_a_plan(at: Bench) -> Outcome:
    at.dataset()
    model = at.model()
    cut_in_half(model / "plans.json")
    return refused(at, model)
