"""Faults of trained models that are adapted to another dataset."""

from __future__ import annotations

from pathlib import Path

from tests.faults.registry import Bench, Seen, cut_in_half, fault

STAGE = "Adapting"


def refused(at: Bench, source: Path, dataset: int = 501) -> Seen:
    with at.unchanged():
        seen = at.fails("adapt", "--source", source, "-d", str(dataset), "--method", "selftraining")
    return seen


@fault(
    STAGE,
    "The model to adapt is not there.",
    happens="refused, exit code 1",
    keeps="all files; no plan is written",
    code="model-incomplete",
)
def a_source_that_is_missing(at: Bench) -> Seen:
    at.dataset()
    return refused(at, at.results / "Dataset500_Source" / "fm_trainer__FMPlans__3d_fullres")


@fault(
    STAGE,
    "The model to adapt was trained by stock nnU-Net.",
    happens="refused, exit code 1",
    keeps="all files; no plan is written",
    code="model-trainer",
)
def a_source_of_stock_nnunet(at: Bench) -> Seen:
    at.dataset()
    return refused(at, at.model())


@fault(
    STAGE,
    "The plans of the model to adapt are cut off.",
    happens="refused, exit code 1",
    keeps="all files; no plan is written",
    code="json-invalid",
)
def a_source_with_half_a_plan(at: Bench) -> Seen:
    at.dataset()
    model = at.model()
    cut_in_half(model / "plans.json")
    return refused(at, model)
