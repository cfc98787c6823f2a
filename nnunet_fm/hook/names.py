"""Names of classes and functions of this package, and names that resemble them."""

from __future__ import annotations

TRAINERS = "fm_trainer"
"""Prefix of the names of our trainers."""

_NORMALISERS = ("ScaleIntensity", "AdvancedNormalization")
"""Normalisers without our prefix, named as published."""
ALIKE = 0.75
"""Similarity (0 to 1) from which a name counts as a misspelling of ours."""


def home(name: str) -> str | None:
    """Module of a class or function of this package by its name; None for other names."""
    if name.startswith(TRAINERS):
        return "nnunet_fm.trainers"
    if name.startswith("FMPlanner"):
        return "nnunet_fm.plans.planner"
    if name == "FMPreprocessor":
        return "nnunet_fm.preprocessing.preprocessor"
    if (name.startswith("FM") and name.endswith("Normalization")) or name in _NORMALISERS:
        return "nnunet_fm.preprocessing.normalization"
    if name.startswith("fm_resample_"):
        return "nnunet_fm.preprocessing.resampling"
    return None


def resembles_ours(name: str) -> bool:
    """Whether a name resembles those of our trainers or planners: ``fmtrainer_stunet_b``, ``FM-planer``."""
    letters = "".join(sign for sign in name.lower() if sign.isalpha())
    if not letters.startswith(("f", "trainer", "planner")):
        return False
    from difflib import SequenceMatcher

    return any(SequenceMatcher(None, letters[: len(o)], o).ratio() >= ALIKE for o in ("fmtrainer", "fmplanner"))
