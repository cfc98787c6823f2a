"""Trainings from random weights: a recipe of their own, what a user changes of it, and the variant for little time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm.models.card import Recipe, ScratchRecipe
from nnunet_fm.models.names import Spec
from nnunet_fm.models.registry import cards
from nnunet_fm.planfile.schema import KEY, PlanKey, changed_recipe
from nnunet_fm.planfile.training_config import resolve
from nnunet_fm.plans.pipeline import FEW_CASES
from nnunet_fm.plans.planner import Options, planner_class
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails

SCRATCH = Spec(scratch=True)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Plan small images, of which only the fingerprint exists."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def run(planner: str, cases: int = 3, **options: Any) -> dict[str, Any]:
        folder = write_dataset(
            variables["nnUNet_raw"], 501, cases=1, test_cases=0, name="Small", channels=("MRI",), shape=(8, 8, 8)
        )
        write_fingerprint(folder, [(36, 50, 35)] * cases, [(1.0, 1.0, 1.0)] * cases)
        return planner_class(planner)(501, 8, options=Options(**options)).plan_experiment()

    return run


def test_every_pre_trained_model_has_a_recipe_for_random_weights() -> None:
    """Rates for fine-tuning hardly move random weights, which would bias every comparison of the two."""
    for card in cards().values():
        recipe = card.variants["mission"].recipe
        scratch = recipe.from_scratch()
        if card.checkpoints:  # the others are trained with the rates that were published
            assert scratch.learning_rate >= 5e-4, card.name
        assert scratch.from_scratch() == scratch  # nothing is left to change
        assert Recipe(**scratch.model_dump()) == scratch


def test_the_trainer_from_scratch_follows_its_recipe(plan: Callable[..., dict[str, Any]]) -> None:
    plans = plan("FMPlanner_stunet_s")
    published = cards()["stunet_s"].variants["mission"].recipe
    assert published.scratch is not None
    for field, value in published.scratch.changes().items():
        assert getattr(resolve(plans, SCRATCH).recipe, field) == value
    fine_tuning = resolve(plans, Spec()).recipe
    assert (fine_tuning.optimizer, fine_tuning.learning_rate) == ("sgd", 1e-3)
    del plans[KEY]["recipe"]["scratch"]
    for rate, expected in ((5e-4, 5e-4), (None, 1e-3)):  # plans of earlier versions train as they did
        plans[KEY]["recipe"]["scratch_rate"] = rate
        older = resolve(plans, SCRATCH).recipe
        assert (older.optimizer, older.learning_rate) == ("sgd", expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # A learning rate belongs to its optimiser: the user's holds, with the recipe that the plan prints.
        ({"learning_rate": 0.02}, {"optimizer": "sgd", "learning_rate": 0.02}),
        ({"optimizer": "adam"}, {"optimizer": "adam", "learning_rate": 1e-3}),
        ({"weight_decay": 0.5}, {"optimizer": "adamw", "learning_rate": 4e-3, "weight_decay": 0.5}),
        ({"scratch.learning_rate": 2e-3}, {"optimizer": "adamw", "learning_rate": 2e-3}),
        ({"scratch": {"learning_rate": 2e-3}}, {"optimizer": "adamw", "learning_rate": 2e-3}),
        ({"scratch": None}, {"optimizer": "sgd", "learning_rate": 1e-3}),
        ({"scratch_rate": 2e-3}, {"learning_rate": 2e-3}),
    ],
)
def test_what_a_user_sets_holds_for_random_weights(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    card = ScratchRecipe(optimizer="adamw", learning_rate=4e-3, weight_decay=1e-2)
    recipe = changed_recipe(Recipe(optimizer="sgd", learning_rate=1e-3, scratch=card), changes).from_scratch()
    assert {field: getattr(recipe, field) for field in expected} == expected


def test_an_unknown_field_is_named() -> None:
    with fails("recipe-field", "recipe.scratch.lr"):
        changed_recipe(Recipe(), {"scratch.lr": 1.0})


def test_the_quick_variant_is_planned_by_name(plan: Callable[..., dict[str, Any]]) -> None:
    plans = plan("FMPlanner_stunet_s_quick")
    key = PlanKey.read(plans)
    assert plans["plans_name"] == "FMPlans_stunet_s_quick" and key is not None
    assert (key.variant, key.iterations, key.recipe.augmentation) == ("quick", 1500, "light")
    assert resolve(plans, SCRATCH).recipe.learning_rate == 4e-3


def test_a_model_without_the_quick_variant_says_so(plan: Callable[..., dict[str, Any]]) -> None:
    with fails("name-unknown", "FMPlanner_dinov2_s_quick"):
        planner_class("FMPlanner_dinov2_s_quick")


@pytest.mark.parametrize(
    ("planner", "cases", "minutes", "gpu", "proposed"),
    [
        ("FMPlanner_stunet_s", 24, 30, True, True),
        ("FMPlanner_stunet_s", FEW_CASES + 1, 30, True, False),
        ("FMPlanner_stunet_s", 24, 600, True, False),
        ("FMPlanner_stunet_s", 24, None, False, True),
        ("FMPlanner_stunet_s", 24, None, True, False),
        ("FMPlanner_stunet_s_quick", 24, 30, True, False),
        ("FMPlanner_stunet_s_official", 24, 30, True, False),
    ],
)
def test_quick_is_proposed_for_few_cases_and_little_time(
    plan: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    planner: str,
    cases: int,
    minutes: float | None,
    gpu: bool,
    proposed: bool,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    plans = plan(planner, cases, recipe={} if minutes is None else {"max_minutes": minutes})
    reason = plans[KEY]["reasons"].get("variant")
    assert (reason is not None) == proposed
    if reason is not None:
        assert f"{cases} training cases" in reason and "--variant quick" in reason
