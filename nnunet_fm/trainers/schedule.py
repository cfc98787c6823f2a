"""Learning-rate schedules as a function of progress, the share of the training that is done (0 to 1)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer

from nnunet_fm.models.card import Recipe
from nnunet_fm.published_quirks import DECAY_END, WARMUP_START


def _poly(done: float, recipe: Recipe) -> float:
    return float((1 - done) ** recipe.poly_exponent)


def _cosine(done: float, recipe: Recipe) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _linear(done: float, recipe: Recipe) -> float:
    return 1 - done


def _constant(done: float, recipe: Recipe) -> float:
    return 1.0


_DECAY: dict[str, Callable[[float, Recipe], float]] = {
    "poly": _poly,
    "warmup_cosine": _cosine,
    "warmup_linear": _linear,
    "constant": _constant,
}


def learning_rate_factor(recipe: Recipe, progress: float) -> float:
    """Learning rate relative to the recipe's, at a progress of 0 to 1.

    During warm-up the factor rises linearly to 1. Then it decays over the rest of the training to the recipe's final
    learning rate (``constant`` stays at 1).

    A faithful ``warmup_linear`` is that of the thesis's code, which stretches the decay over twice the rest of the
    training (see `published_quirks`). There a step is an epoch, and the warm-up lasts at least one; here both are
    continuous.
    """
    progress = min(max(progress, 0.0), 1.0)
    faithful = recipe.faithful and recipe.schedule == "warmup_linear"
    if progress < recipe.warmup:
        start = WARMUP_START if faithful else 0.0
        return start + (1 - start) * progress / recipe.warmup
    final = DECAY_END if faithful else recipe.final_rate / recipe.learning_rate
    decay = _DECAY[recipe.schedule]((progress - recipe.warmup) / (1 - recipe.warmup), recipe)
    return final + (1 - final) * decay


class ProgressSchedule:
    """Set the learning rate of an optimiser from the progress of the training.

    Each parameter group keeps its own ratio to the recipe's learning rate until the end of the training.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self.optimizer, self.recipe = optimizer, recipe
        self._base = [group["lr"] for group in optimizer.param_groups]

    def step(self, progress: float) -> None:
        """Set the learning rates for this progress (0 to 1)."""
        factor = learning_rate_factor(self.recipe, progress)
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor
