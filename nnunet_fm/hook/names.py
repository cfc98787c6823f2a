"""Names of classes and functions that are ours, or nearly so."""

from __future__ import annotations

TRAINERS = "fm_trainer"
"""Beginning of the names of our trainers."""

_NORMALISERS = ("ScaleIntensity", "AdvancedNormalization")
"""Normalisers whose names carry no prefix of ours: a source of this project published them so."""
ALIKE = 0.75
"""How alike a name and one of ours are, of 1, for the first to be a misspelling."""


def home(name: str) -> str | None:
    """Module that answers for a class or function name, None for the names that are nnU-Net's business."""
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
    """Whether a name is nearly one of our trainers or planners: ``fmtrainer_stunet_b``, ``FM-planer``."""
    letters = "".join(sign for sign in name.lower() if sign.isalpha())
    if not letters.startswith(("f", "trainer", "planner")):
        return False
    from difflib import SequenceMatcher

    return any(SequenceMatcher(None, letters[: len(o)], o).ratio() >= ALIKE for o in ("fmtrainer", "fmplanner"))
