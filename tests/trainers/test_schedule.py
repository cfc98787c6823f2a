"""Learning-rate schedules over the progress of a training."""

from __future__ import annotations

import pytest
import torch

from nnunet_fm.models.card import Recipe
from nnunet_fm.trainers.schedule import ProgressSchedule, learning_rate_factor


@pytest.mark.parametrize("schedule", ["poly", "warmup_cosine", "warmup_linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_rises_then_falls_to_zero(schedule: str, warmup: float) -> None:
    recipe = Recipe(schedule=schedule, warmup=warmup)
    factors = [learning_rate_factor(recipe, i / 200) for i in range(201)]
    peak = factors.index(max(factors))
    assert factors[0] == (0 if warmup else 1) and factors[-1] == 0
    assert factors[peak] == pytest.approx(1) and peak == round(200 * warmup)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_values_of_the_published_formulas() -> None:
    assert learning_rate_factor(Recipe(schedule="poly", poly_exponent=0.9), 0.25) == pytest.approx(0.75**0.9)
    assert learning_rate_factor(Recipe(schedule="warmup_cosine", warmup=0.5), 0.75) == pytest.approx(0.5)
    assert learning_rate_factor(Recipe(schedule="warmup_linear", warmup=0.2), 0.6) == pytest.approx(0.5)
    assert learning_rate_factor(Recipe(schedule="constant"), 0.9) == 1


def test_groups_keep_their_ratio() -> None:
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    schedule = ProgressSchedule(optimizer, Recipe(schedule="warmup_linear"))
    schedule.step(0.5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5, 0.05])
    schedule.step(0.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("schedule", ["poly", "warmup_cosine", "warmup_linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_falls_to_the_final_rate(schedule: str, warmup: float) -> None:
    recipe = Recipe(schedule=schedule, warmup=warmup, learning_rate=1e-3, final_rate=1e-5)
    rates = [1e-3 * learning_rate_factor(recipe, i / 200) for i in range(round(200 * warmup), 201)]
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-5)
    assert rates == sorted(rates, reverse=True)


def test_the_final_rate_shifts_and_squeezes_the_published_formulas() -> None:
    cosine = Recipe(schedule="warmup_cosine", learning_rate=1e-4, final_rate=1e-6)
    assert 1e-4 * learning_rate_factor(cosine, 0.5) == pytest.approx((1e-4 + 1e-6) / 2)
    assert learning_rate_factor(Recipe(schedule="constant", final_rate=1e-6), 1.0) == 1


def test_groups_keep_their_ratio_down_to_the_final_rate() -> None:
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.025}])
    schedule = ProgressSchedule(
        optimizer, Recipe(schedule="warmup_cosine", warmup=0.2, learning_rate=0.1, final_rate=0.01)
    )
    for progress in (0.1, 0.4, 0.9, 1.0):
        schedule.step(progress)
        head, first = (group["lr"] for group in optimizer.param_groups)
        assert first == pytest.approx(head / 4)
    assert head == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 1 / 3), (0.025, 2 / 3), (0.05, 1.0), (0.5, 1 - 0.45 / 0.95 / 2), (1.0, 0.5)]
)
def test_the_rate_of_the_code_of_the_2d_thesis(progress: float, factor: float) -> None:
    published = {"schedule": "warmup_linear", "warmup": 0.05}
    faithful = Recipe(**published, faithful=True)
    assert learning_rate_factor(faithful, progress) == pytest.approx(factor)
    # Epochs of the code: PyTorch's LinearLR from 1/3 over 6 of 120 epochs, then from 1 to 0 over 2 × 114.
    epoch = 120 * progress
    assert factor == pytest.approx(1 / 3 + 2 / 3 * epoch / 6 if epoch < 6 else 1 - (epoch - 6) / (2 * 114))
    intended = Recipe(**published)
    assert learning_rate_factor(intended, progress) == pytest.approx(
        progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
    )


def test_other_schedules_have_nothing_to_be_faithful_to() -> None:
    for schedule in ("poly", "warmup_cosine", "constant"):
        one, other = (Recipe(schedule=schedule, warmup=0.1, faithful=faithful) for faithful in (True, False))
        assert [learning_rate_factor(one, i / 20) for i in range(21)] == [
            learning_rate_factor(other, i / 20) for i in range(21)
        ]
