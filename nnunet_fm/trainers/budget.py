"""Length of a training as pure arithmetic: iterations of an epoch, progress, best score, patience, and the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic

from nnunet_fm.records.training import End


@dataclass(frozen=True)
class Budget:
    """Length of a training, and the cases that it trains on.

    Args:
        iterations: optimiser steps, met exactly.
        iterations_per_epoch: optimiser steps between two validations; the last epoch may be shorter.
        validation_iterations: batches of a validation.
        seed: of the training, and of the order from which the first ``train_cases`` cases are taken.
        train_cases: number of training cases of the fold; None for all.
        max_minutes: time after which the training ends early.
        patience: number of epochs in a row without a new best moving average of the Dice, after which the training
            ends.
        save_every: epochs between two writings of ``checkpoint_latest``.
    """

    iterations: int
    iterations_per_epoch: int
    validation_iterations: int
    seed: int
    train_cases: int | None = None
    max_minutes: float | None = None
    patience: int | None = None
    save_every: int = 50

    @property
    def epochs(self) -> int:
        """Number of epochs; the last one may be short."""
        return -(-self.iterations // self.iterations_per_epoch)

    def iterations_of_epoch(self, done: int) -> int:
        """Iterations of the epoch that begins after ``done`` iterations."""
        return min(self.iterations_per_epoch, self.iterations - done)

    def progress(self, done: int, seconds: float) -> float:
        """Share of the training that is done, 0 to 1: of the iterations or, if that is more, of ``max_minutes``."""
        share = done / self.iterations
        if self.max_minutes is not None:
            share = max(share, seconds / (60 * self.max_minutes))
        return min(share, 1.0)

    def ended_by(self, done: int, seconds: float, without_best: int) -> End | None:
        """Reason why the training ends now; None while it goes on.

        Args:
            done: iterations so far.
            seconds: training time so far.
            without_best: epochs in a row without a new best score, see `epochs_without_best`.
        """
        if done >= self.iterations:
            return "iterations"
        if self.progress(done, seconds) >= 1:
            return "max_minutes"
        if self.patience is not None and without_best >= self.patience:
            return "patience"
        return None


def is_best(score: float, best: float | None) -> bool:
    """Whether a score beats the best so far; the first one does."""
    return best is None or score > best


def epochs_without_best(before: int, score: float, best: float | None) -> int:
    """Epochs in a row without a new best score, after one more epoch.

    NaN means that the validation patches showed no class; patience does not count such an epoch.
    """
    return 0 if is_best(score, best) or math.isnan(score) else before + 1


class Stopwatch:
    """Training time in s, over all interruptions."""

    def __init__(self) -> None:
        self.before = 0.0
        """Time of the earlier parts of the training."""
        self._started = monotonic()

    def start(self) -> None:
        """Measure the present part from now on."""
        self._started = monotonic()

    @property
    def seconds(self) -> float:
        return self.before + monotonic() - self._started
