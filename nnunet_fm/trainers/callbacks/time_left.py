"""Print how long an epoch takes and how long the training will go on; draw a bar of the epoch in a terminal."""

from __future__ import annotations

import sys
from collections import deque
from statistics import median
from time import monotonic

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.io.messages import duration
from nnunet_fm.trainers.budget import Budget
from nnunet_fm.trainers.callbacks import Callback, EpochResult

EPOCHS = 5
"""Last epochs whose median counts: the first one of a process is slower, and a machine gets busy."""
WIDTH = 30
"""Characters of the bar."""


class TimeLeft(Callback):
    """Line of text after each epoch, which goes to the log as well, and a bar of the iterations in a terminal."""

    def __init__(self, trainer: nnUNetTrainer) -> None:
        super().__init__(trainer)
        self._paces: deque[float] = deque(maxlen=EPOCHS)
        self._since, self._iteration, self._steps = 0.0, 0, 0

    def train_start(self) -> None:
        self._since, self._iteration = monotonic(), self.trainer.iteration

    def step_end(self, waited: float, total: float) -> None:
        self._steps += 1
        self._draw(self.trainer.num_iterations_per_epoch)

    def validation_end(self) -> None:
        self._draw(self._steps)  # an epoch that `max_minutes` has ended is shorter than its bar

    def epoch_end(self, result: EpochResult) -> None:
        now, done = monotonic(), self.trainer.iteration
        seconds, iterations = now - self._since, max(1, done - self._iteration)
        self._paces.append(seconds / iterations)
        self._since, self._iteration, self._steps = now, done, 0
        if not self.trainer.finished:
            pace, spent = median(self._paces), self.trainer.seconds_spent
            self.trainer.print_to_log_file(describe(self.trainer.budget, result.epoch + 1, done, pace, spent))

    def _draw(self, total: int) -> None:
        if self.trainer.local_rank == 0 and sys.stderr.isatty():
            draw_bar(self.trainer.current_epoch + 1, self._steps, total)


def describe(budget: Budget, epoch: int, done: int, pace: float, spent: float) -> str:
    """Return the line after an epoch: ``epoch 7 of 80, 45 s each, about 55 min left``.

    Args:
        budget: length of the training.
        epoch: number of the epoch, from 1.
        done: iterations so far.
        pace: seconds of an iteration, with its share of the validation.
        spent: training time so far in s.
    """
    left, of = pace * (budget.iterations - done), f" of {budget.epochs}"
    if budget.max_minutes is not None and (limit := 60 * budget.max_minutes - spent) < left:
        left, of = max(0.0, limit), ""
    bound = "at most" if budget.patience is not None else "about"
    each = duration(pace * min(budget.iterations_per_epoch, budget.iterations))
    return f"epoch {epoch}{of}, {each} each, {bound} {duration(left)} left"


def draw_bar(epoch: int, done: int, total: int) -> None:
    """Draw the bar of an epoch over the last one; the complete bar is erased."""
    full = WIDTH * done // max(1, total)
    line = f"epoch {epoch}  {'━' * full}{'─' * (WIDTH - full)}  {done} of {total}" if done < total else ""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
