"""Models, heads and adapters of all cards as rows of tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnunet_fm.models.parts import official_parts
from nnunet_fm.models.registry import cards
from nnunet_fm.weights.cache import find


def model_rows() -> list[dict[str, Any]]:
    """Each model with its size, heads, adapters, and the state of its official files."""
    rows = []
    for name, card in cards().items():
        parts = official_parts(card, card.default_head, card.default_adapter, card.network.arguments)
        missing = dict.fromkeys(part.checkpoint.name for part in parts if not find(part.checkpoint.files))
        classes, parameters = next(iter(card.parameters.items()))
        rows.append(
            {
                "name": name,
                "title": card.title,
                "dim": card.dim,
                "parameters": parameters,
                "classes": classes,
                "heads": card.heads,
                "adapters": card.adapters,
                "aliases": card.aliases,
                "weights": f"missing: {', '.join(missing)}" if missing else "at hand" if parts else "none needed",
                "weights licence": card.weights_licence,
            }
        )
    return rows


def head_rows() -> list[dict[str, Any]]:
    """Each decode head with the models that can have it."""
    heads = sorted({head for card in cards().values() for head in card.heads})
    return [{"name": head, "models": [n for n, c in cards().items() if head in c.heads]} for head in heads]


def adapter_rows() -> list[dict[str, Any]]:
    """Each adapter with the models that can have it."""
    adapters = sorted({adapter for card in cards().values() for adapter in card.adapters})
    return [{"name": a, "models": [n for n, c in cards().items() if a in c.adapters]} for a in adapters]


def parameter_rows(classes: int, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Each model with the number of its parameters, and of those that each head and each adapter trains.

    Args:
        classes: of the segmentation.
        progress: called with the number of models that are counted, and of all.
    """
    from nnunet_fm.models import count

    rows = []
    for number, (name, card) in enumerate(cards().items(), 1):
        rows.append(
            {
                "name": name,
                "classes": classes,
                "parameters": count.parameters(card, classes),
                "trained_by_head": count.trained_by_head(card, classes),
                "trained_by_adapter": count.trained_by_adapter(card, classes),
            }
        )
        progress(number, len(cards()))
    return rows
