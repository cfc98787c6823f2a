"""Registry of model cards from ``plans/cards`` and a folder of the user, and the grammar of names over them."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from nnunet_fm.errors import FMError
from nnunet_fm.io.messages import validation_faults
from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.names import Grammar, UnknownNameError

if TYPE_CHECKING:
    from importlib.abc import Traversable

CARDS_PACKAGE = "nnunet_fm.plans.cards"
CARDS_VARIABLE = "NNUNET_FM_CARDS"
"""Environment variable with the path of a folder of further model cards."""
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Every command reads the cards; libyaml, if PyYAML has it, is many times as fast."""


class CardError(FMError, ValueError):
    """A card that cannot be read; the message names the file and what is wrong in it."""


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Deep merge of two card fragments: mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _folders() -> list[Traversable]:
    """Folders of cards: the user's, if it is set, and that of this package."""
    package = resources.files(CARDS_PACKAGE)
    own = os.environ.get(CARDS_VARIABLE)
    if not own:
        return [package]
    if not Path(own).is_dir():
        raise CardError(
            f"{CARDS_VARIABLE} names {own}, which is not a folder: correct or unset it", code="cards-folder"
        )
    return [Path(own), package]


def _read(stem: str, folders: list[Traversable]) -> dict[str, Any]:
    """Read a card file from the first folder that has it, merged over the file that it ``extends``."""
    files = [file for folder in folders if (file := folder.joinpath(f"{stem}.yaml")).is_file()]
    if not files:
        raise CardError(f"there is no card file {stem}.yaml for another card to extend", code="card-missing")
    try:
        content = yaml.load(files[0].read_text(encoding="utf-8"), _SafeLoader)
    except yaml.YAMLError as error:
        raise CardError(f"{files[0]} is no YAML: {' '.join(str(error).split())}", code="card-content") from None
    if not isinstance(content, dict):
        raise CardError(f"{files[0]} holds no mapping of a card's fields to values", code="card-content")
    parent = content.pop("extends", None)
    return merge(_read(parent, folders), content) if parent else content


def _variants_complete(content: dict[str, Any]) -> dict[str, Any]:
    """Complete each variant, which only has differences from ``mission``."""
    mission = content.get("variants", {}).get("mission")
    if not isinstance(mission, dict):
        raise CardError(
            f"card '{content.get('name', '?')}' lacks variants.mission, which the other variants change",
            code="card-content",
        )
    content["variants"] = {name: merge(mission, change or {}) for name, change in content["variants"].items()}
    return content


@lru_cache(maxsize=1)
def cards() -> dict[str, ModelCard]:
    """All model cards by canonical name: 3D first, then by family and size.

    Files that start with ``_`` hold parts that several cards share. Cards of the user are read from the folder in
    ``NNUNET_FM_CARDS``; they may extend those of this package.

    Raises:
        CardError: for a card that is not legal, or two cards of one name.
    """
    found: dict[str, ModelCard] = {}
    folders = _folders()
    for number, folder in enumerate(folders):
        stems = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
        for stem in stems:
            if stem.startswith(("_", ".")):
                continue
            if stem in found:
                raise CardError(
                    f"{CARDS_VARIABLE} holds {stem}.yaml, the name of a model of nnunet-fm: rename yours",
                    code="card-name",
                )
            found[stem] = _card(stem, folders[number:])  # a card of ours extends none of the user's
    return dict(sorted(found.items(), key=lambda item: (-item[1].dim, item[1].family, *item[1].parameters.values())))


def _card(stem: str, folders: list[Traversable]) -> ModelCard:
    try:
        card = ModelCard(**_variants_complete(_read(stem, folders)))
    except ValidationError as error:
        raise CardError(f"card file {stem}.yaml: {validation_faults(error)}", code="card-content") from None
    if card.name != stem:
        raise CardError(f"card file {stem}.yaml describes a model called '{card.name}'", code="card-name")
    return card


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
