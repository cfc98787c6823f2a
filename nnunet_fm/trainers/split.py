"""Few-shot splits: the first cases of an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_cases(cases: Sequence[str], count: int, seed: int) -> list[str]:
    """The first cases of an order that depends on nothing but the names of the cases and the seed.

    With one seed the three first are among the five first, whatever the trainer.

    Raises:
        ValueError: if there are not so many.
    """
    if count > len(cases):
        raise ValueError(f"{count} cases are wanted, but there are {len(cases)}")
    ordered = sorted(cases)
    return [ordered[index] for index in np.random.RandomState(seed % 2**32).permutation(len(ordered))[:count]]
