"""Length of a training: iterations of epochs, progress, best score, patience and what ends it, without a network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from nnunet_fm.trainers import budget as budget_module
from nnunet_fm.trainers.budget import Budget, Stopwatch, epochs_without_best, is_best

TEN = Budget(iterations=10, iterations_per_epoch=4, validation_iterations=2, seed=1)
NAN = math.nan


@pytest.mark.parametrize(
    ("iterations", "per_epoch", "epochs"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 250, [3]), (1, 1, [1])]
)
def test_epochs_meet_the_iterations_exactly(iterations: int, per_epoch: int, epochs: list[int]) -> None:
    budget = replace(TEN, iterations=iterations, iterations_per_epoch=per_epoch)
    assert budget.epochs == len(epochs)
    assert [budget.iterations_of_epoch(sum(epochs[:n])) for n in range(len(epochs))] == epochs


@pytest.mark.parametrize(
    ("minutes", "done", "seconds", "progress"),
    [(None, 0, 10**9, 0.0), (None, 5, 0, 0.5), (2, 5, 30, 0.5), (2, 5, 90, 0.75), (2, 5, 500, 1.0), (2, 10, 0, 1.0)],
)
def test_progress_is_the_larger_share_of_iterations_and_time(
    minutes: float | None, done: int, seconds: float, progress: float
) -> None:
    assert replace(TEN, max_minutes=minutes).progress(done, seconds) == progress


@pytest.mark.parametrize(
    ("limits", "done", "seconds", "without_best", "ended_by"),
    [
        ({}, 9, 10**9, 99, None),
        ({}, 10, 0, 0, "iterations"),
        ({"max_minutes": 1}, 9, 59.9, 0, None),
        ({"max_minutes": 1}, 9, 60, 0, "max_minutes"),
        ({"patience": 3}, 9, 0, 2, None),
        ({"patience": 3}, 9, 0, 3, "patience"),
        ({"max_minutes": 1, "patience": 3}, 9, 60, 3, "max_minutes"),
        ({"max_minutes": 1, "patience": 3}, 10, 60, 3, "iterations"),
    ],
)
def test_the_first_reason_ends_the_training(
    limits: dict[str, Any], done: int, seconds: float, without_best: int, ended_by: str | None
) -> None:
    assert replace(TEN, **limits).ended_by(done, seconds, without_best) == ended_by


def test_patience_counts_epochs_in_a_row_without_a_new_best() -> None:
    best, without, counted = None, 0, []
    for score in (0.5, 0.4, NAN, 0.5, 0.6, 0.6, NAN, 0.1):
        without = epochs_without_best(without, score, best)
        best = score if is_best(score, best) else best
        counted.append(without)
    assert (best, counted) == (0.6, [0, 1, 0, 1, 0, 1, 0, 1])


def test_time_counts_over_interruptions_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(budget_module, "monotonic", lambda: now)
    watch = Stopwatch()
    watch.before = 7.0
    now = 150.0
    watch.start()
    now = 160.0
    assert watch.seconds == 17
