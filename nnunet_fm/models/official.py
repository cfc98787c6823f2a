"""The official files of all cards: find them by name, and check them on their networks.

Only functions that read a file import PyTorch, so that listing names is fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.models.card import Checkpoint, ModelCard
from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.models.registry import cards, get_card

if TYPE_CHECKING:
    from torch import Tensor

    from nnunet_fm.networks.base import FoundationNetwork
    from nnunet_fm.weights.report import LoadReport


@dataclass(frozen=True)
class Official:
    """An official file and a model that starts from it."""

    card: ModelCard
    checkpoint: Checkpoint


def officials() -> list[Official]:
    """All checkpoints of all cards in their order; a checkpoint of several models is listed once."""
    found: dict[str, Official] = {}
    for card in cards().values():
        for checkpoint in card.checkpoints:
            found.setdefault(checkpoint.name, Official(card, checkpoint))
    return list(found.values())


def find_official(name: str) -> Checkpoint:
    """The checkpoint of this name; raises LookupError for a name that no card describes."""
    for official in officials():
        if official.checkpoint.name == name:
            return official.checkpoint
    raise LookupError(f"no model card describes the official file '{name}'")


def get_official(name: str) -> Official:
    """A checkpoint by its own name, or the default checkpoint of a model.

    Raises:
        UnknownNameError: for another name, with the nearest legal ones.
        ValueError: for a model without pre-training.
    """
    by_name = {official.checkpoint.name: official for official in officials()}
    if name in by_name:
        return by_name[name]
    try:
        card = get_card(name)
    except UnknownNameError:
        legal = [*by_name, *cards()]
        raise UnknownNameError(name, legal, "`nnunet-fm weights list` prints all weights.") from None
    if card.checkpoint is None:
        raise InvalidValueError(
            f"'{card.name}' has no official weights: it is trained from scratch", code="weights-none"
        )
    return Official(card, card.checkpoint)


def check(official: Official, path: Path) -> LoadReport:
    """Check a file on its network, both on the meta device, and return the load report.

    Raises:
        WeightsFileError: for a file that cannot be read.
        WeightsMismatchError: for names or shapes that are not accounted for.
    """
    from nnunet_fm.weights.files import read_state_dict

    return _account(official, read_state_dict(path, official.checkpoint.container), path)


def _account(official: Official, state_dict: Mapping[str, Tensor], path: Path) -> LoadReport:
    from nnunet_fm.weights.load import FileRules, match_official

    checkpoint = official.checkpoint
    rules = FileRules(checkpoint.prefix, checkpoint.drop, checkpoint.new)
    return match_official(_network(official.card), state_dict, rules, file=path).report


def recognise(path: Path, among: Sequence[Official]) -> list[Official]:
    """Checkpoints that a file may be, by the names and shapes of its tensors.

    Raises:
        WeightsFileError: for a file that cannot be read at all.
    """
    from nnunet_fm.weights.files import NotFiniteWeightsError, WeightsFileError, read_state_dict
    from nnunet_fm.weights.load import WeightsMismatchError

    fitting = []
    state_dict = read_state_dict(path, [key for official in among for key in official.checkpoint.container])
    for official in among:
        try:
            _account(official, state_dict, path)
        except NotFiniteWeightsError:
            raise
        except (WeightsMismatchError, WeightsFileError):
            continue
        fitting.append(official)
    return fitting


def _network(card: ModelCard) -> FoundationNetwork:
    """The card's network in its official geometry, with one input channel, on the meta device."""
    from nnunet_fm.models.build import official_architecture

    return _built(json.dumps(official_architecture(card)), min(card.parameters))


@lru_cache(maxsize=64)
def _built(entry: str, classes: int) -> FoundationNetwork:
    import torch

    from nnunet_fm.models.build import build_network

    with torch.device("meta"):
        return build_network(json.loads(entry), 1, classes)
