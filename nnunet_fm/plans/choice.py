"""Choice of a model by FMPlanner: a table of rules over the fingerprint; the first that applies decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.models.parts import official_parts
from nnunet_fm.models.registry import get_card
from nnunet_fm.weights.cache import find


@dataclass(frozen=True)
class Facts:
    """Properties of a dataset for the rules: spacing in mm, volume in voxels, memory in GB."""

    modality: str
    anisotropy: float
    slices: int
    volume: float
    classes: int
    memory_gb: float

    @classmethod
    def of(cls, fingerprint: Mapping[str, Any], dataset_json: Mapping[str, Any], memory_gb: float) -> Facts:
        """Facts of a dataset from its fingerprint and dataset.json."""
        spacing = np.median(np.vstack(fingerprint["spacings"]), axis=0)
        shape = np.median(np.vstack(fingerprint["shapes_after_crop"]), axis=0)
        thick = int(np.argmax(spacing))
        channels = [name.casefold() for name in channel_names(dataset_json)]
        return cls(
            modality="CT" if all(name == "ct" for name in channels) else "other",
            anisotropy=float(spacing[thick] / np.median(spacing)),
            slices=int(shape[thick] if spacing[thick] > 1.25 * np.median(spacing) else shape.min()),
            volume=float(shape.prod()),
            classes=len(dataset_json["labels"]),
            memory_gb=memory_gb,
        )


@dataclass(frozen=True)
class Rule:
    """If ``applies``: choose the first of ``models`` with cached official files, else the first of open licence."""

    condition: str
    applies: Callable[[Facts], bool]
    models: tuple[str, ...]
    reason: str


RULES = (
    Rule(
        "a single slice, or slices more than 3 times as thick as the in-plane spacing",
        lambda f: f.slices < 8 or f.anisotropy > 3,
        ("dinov2_b", "dinov2_s", "dinov2_l"),
        "slices are too few or too thick for a 3D network pre-trained on near-isotropic data",
    ),
    Rule(
        "median image below 64³ voxels, or less than 6 GB",
        lambda f: f.volume < 64**3 or f.memory_gb < 6,
        ("stunet_s", "stunet_b"),
        "small images or little memory: the small network suffices and trains fastest",
    ),
    Rule(
        "not CT",
        lambda f: f.modality != "CT",
        ("misfm", "stunet_b", "dae"),
        "self-supervised weights that z-score every image and were first shown on MR do not expect Hounsfield units",
    ),
    Rule(
        "CT, at least 24 GB, and more than 20 classes or more than 300³ voxels",
        lambda f: f.memory_gb >= 24 and (f.classes > 20 or f.volume > 300**3),
        ("stunet_l", "stunet_b", "suprem"),
        "CT with much to tell apart, and memory for the large network pre-trained on 104 structures in CT",
    ),
    Rule(
        "CT with slices more than twice as thick as the in-plane spacing",
        lambda f: f.anisotropy > 2,
        ("spadnet", "stunet_b", "dae"),
        "spatially adaptive weights have seen thick slices",
    ),
    Rule(
        "CT, median image below 96³ voxels",
        lambda f: f.volume < 96**3,
        ("swinmm", "stunet_b", "stunet_s"),
        "the image is hardly larger than a patch of 64³, for which multi-view weights were trained",
    ),
    Rule(
        "CT, at most 10 classes",
        lambda f: f.classes <= 10,
        ("suprem", "dae", "stunet_b"),
        "few structures in CT: a transformer pre-trained on abdominal CT, supervised if its file is at hand",
    ),
    Rule(
        "everything else",
        lambda f: True,
        ("stunet_b", "stunet_s", "stunet_l"),
        "a 3D network supervised on 104 structures is the best start for CT of near-isotropic voxels",
    ),
)


def choose_model(
    fingerprint: Mapping[str, Any], dataset_json: Mapping[str, Any], *, memory_gb: float
) -> tuple[str, str]:
    """Name of the model for a dataset, and the reason in one sentence."""
    facts = Facts.of(fingerprint, dataset_json, memory_gb)
    rule = next(rule for rule in RULES if rule.applies(facts))
    model = _pick(rule.models)
    seen = (
        f"{facts.modality}, anisotropy {facts.anisotropy:.1f}, {facts.volume / 1e6:.2f} million voxels, "
        f"{facts.classes} classes, {facts.memory_gb:g} GB"
    )
    weights = "official weights at hand" if _cached(model) else "official weights not at hand yet"
    passed = [name for name in rule.models[: rule.models.index(model)]]
    instead = f"; {', '.join(passed)} would come first with its file in the weights folder" if passed else ""
    return model, (
        f"{rule.reason} ({seen}; {weights}; licence of the weights: {get_card(model).weights_licence}{instead})"
    )


def _pick(models: tuple[str, ...]) -> str:
    """The first model with cached files, whose terms the user has accepted; else the first of open licence."""
    for name in models:
        if _cached(name):
            return name
    return next(name for name in models if get_card(name).weights_use == "open")


def _cached(name: str) -> bool:
    """Whether all official files of a model with its default head and adapter are in the weights folder."""
    card = get_card(name)
    parts = official_parts(card, card.default_head, card.default_adapter, card.network.arguments)
    return bool(parts) and all(find(part.checkpoint.files) for part in parts)
