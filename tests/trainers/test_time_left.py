"""What a training says of its time: the line after an epoch, and the bar in a terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_fm.io.messages import duration
from nnunet_fm.trainers.budget import Budget
from nnunet_fm.trainers.callbacks import EpochResult, time_left
from nnunet_fm.trainers.callbacks.time_left import TimeLeft, describe

LENGTH = {"iterations": 20_000, "iterations_per_epoch": 250, "validation_iterations": 5, "seed": 0}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.4 s"),
        (45, "45 s"),
        (3300, "55 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (187_200, "2 d 4 h"),
        (172_800, "2 d"),
    ],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "epoch 7 of 80, 45 s each, about 55 min left"),
        ({"patience": 10}, "epoch 7 of 80, 45 s each, at most 55 min left"),
        ({"max_minutes": 15.0}, "epoch 7, 45 s each, about 10 min left"),
        ({"max_minutes": 600.0}, "epoch 7 of 80, 45 s each, about 55 min left"),
    ],
)
def test_the_line_after_an_epoch(more: dict[str, Any], line: str) -> None:
    assert describe(Budget(**LENGTH, **more), 7, 7 * 250, 45 / 250, 300) == line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_training_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 90.0, 130.0, 170.0])
    monkeypatch.setattr(time_left, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    lines: list[str] = []
    trainer: Any = SimpleNamespace(
        iteration=0,
        current_epoch=0,
        local_rank=0,
        num_iterations_per_epoch=4,
        finished=False,
        seconds_spent=0.0,
        budget=Budget(iterations=12, iterations_per_epoch=4, validation_iterations=1, seed=0),
        print_to_log_file=lines.append,
    )
    callback = TimeLeft(trainer)
    callback.train_start()
    for epoch in range(3):
        for _ in range(4):
            callback.step_end(0.0, 1.0)
            trainer.iteration += 1
        trainer.finished = epoch == 2
        callback.validation_end()
        callback.epoch_end(EpochResult(epoch, 0.0, 0.0, new_best=False))
    assert lines == ["epoch 1 of 3, 2 min each, about 3 min left", "epoch 2 of 3, 65 s each, about 65 s left"]
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert drawn[2].endswith("2 of 4") and "━" * 15 + "─" * 15 in drawn[2] and drawn[4] == ""
