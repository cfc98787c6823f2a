"""The registry: every card of ``plans/cards`` by name, and the grammar of names that follows from them."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.names import Grammar, UnknownNameError

CARDS_PACKAGE = "nnunet_fm.plans.cards"


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Deep merge of two card fragments: mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read(stem: str) -> dict[str, Any]:
    """A card file as a mapping, with the file that it ``extends`` underneath."""
    text = resources.files(CARDS_PACKAGE).joinpath(f"{stem}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    parent = content.pop("extends", None)
    return merge(_read(parent), content) if parent else content


def _variants_complete(content: dict[str, Any]) -> dict[str, Any]:
    """A variant holds only what differs from ``mission``; fill in the rest."""
    mission = content["variants"]["mission"]
    content["variants"] = {name: merge(mission, change or {}) for name, change in content["variants"].items()}
    return content


@lru_cache(maxsize=1)
def cards() -> dict[str, ModelCard]:
    """All model cards by canonical name: 3D first, then by family and size.

    Files that start with ``_`` hold parts that several cards share.
    """
    files = [entry.name for entry in resources.files(CARDS_PACKAGE).iterdir()]
    stems = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
    found = {stem: ModelCard(**_variants_complete(_read(stem))) for stem in stems if not stem.startswith("_")}
    for stem, card in found.items():
        if card.name != stem:
            raise ValueError(f"card file {stem}.yaml describes a model called '{card.name}'")
    return dict(sorted(found.items(), key=lambda item: (-item[1].dim, item[1].family, *item[1].parameters.values())))


@lru_cache(maxsize=1)
def grammar() -> Grammar:
    """Grammar over the models that exist."""
    return Grammar({name: card.parts for name, card in cards().items()})


def get_card(name: str) -> ModelCard:
    """Card of a model by canonical name or alias; raises `UnknownNameError` with the nearest names."""
    by_name = cards()
    if name in by_name:
        return by_name[name]
    aliases = {alias: card for card in by_name.values() for alias in card.aliases}
    if name in aliases:
        return aliases[name]
    raise UnknownNameError(name, [*by_name, *aliases], "`nnunet-fm list models` prints all models.")
