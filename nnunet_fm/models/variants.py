"""Variant of a card on a dataset: spacing, intensities, length and learning rate for this dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nnunet_fm.io.dataset_names import short_name
from nnunet_fm.models.card import DatasetChoice, ModelCard, Variant
from nnunet_fm.models.registry import merge


def dataset_choice(datasets: Mapping[str, DatasetChoice], dataset_name: str) -> DatasetChoice:
    """Values of a variant that differ on a dataset.

    All keys at the beginning of the dataset's name apply; longer keys override shorter ones.

    Args:
        datasets: beginning of a name, in lower-case letters and digits -> values.
        dataset_name: nnU-Net's name of the dataset, such as ``Dataset501_HCP-T1``.
    """
    name = re.sub("[^a-z0-9]", "", short_name(dataset_name).lower())
    chosen: dict[str, Any] = {}
    for key in sorted((key for key in datasets if name.startswith(key)), key=len):
        chosen = merge(chosen, datasets[key].model_dump(exclude_unset=True))
    return DatasetChoice(**chosen)


def on_dataset(variant: Variant, dataset_name: str, adapter: str | None) -> Variant:
    """The variant with its spacing, intensities, epochs and learning rate on a dataset.

    The learning rate is the dataset's for the adapter, else the variant's for the adapter, else the dataset's
    default, else the recipe's.
    """
    choice = dataset_choice(variant.datasets, dataset_name)
    geometry, intensity, recipe = variant.geometry, variant.intensity, variant.recipe
    if choice.spacing is not None:
        in_plane = choice.spacing if isinstance(choice.spacing, str) else [choice.spacing] * 2
        geometry = geometry.model_copy(update={"spacing": in_plane})
    if choice.intensity is not None:
        intensity = intensity.model_copy(update={"ct": choice.intensity, "other": choice.intensity})
    by_adapter = (choice.learning_rate.get(adapter or ""), variant.learning_rate.get(adapter or ""))
    learning_rate = next(filter(None, (*by_adapter, choice.learning_rate.get("default"))), recipe.learning_rate)
    return variant.model_copy(
        update={
            "geometry": geometry,
            "intensity": intensity,
            "epochs": choice.epochs or variant.epochs,
            "recipe": recipe.model_copy(update={"learning_rate": learning_rate}),
        }
    )


def iterations_on(card: ModelCard, variant: Variant, dataset_name: str) -> int:
    """Optimiser steps on a dataset without epochs: the variant's number, else the card's for the dataset."""
    by_dataset = card.iterations.get(short_name(dataset_name).lower(), card.iterations["default"])
    return variant.iterations or by_dataset
