"""``nnunet-fm list``: the models, heads, adapters and trainers that exist, printed from the cards."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any

import typer

from nnunet_fm.cli.console import Json
from nnunet_fm.cli.table import print_table

SHOWN = 3
"""Names of a list that the table shows; JSON has all of them."""

EPILOG = """
Examples:

  nnunet-fm list

  nnunet-fm list trainers

  nnunet-fm list models --json

  nnunet-fm list models --parameters --classes 3
"""


class What(str, Enum):
    """What can be listed."""

    models = "models"
    heads = "heads"
    adapters = "adapters"
    trainers = "trainers"


def list_(
    what: Annotated[What, typer.Argument(help="What to list.")] = What.models,
    as_json: Json = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Models: how many parameters each head and adapter trains.")
    ] = False,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes to count parameters for.")] = 15,
) -> None:
    """List what this installation has."""
    if parameters:
        if what is not What.models:
            raise typer.BadParameter("only models have parameters", param_hint="--parameters")
        _print_parameters(classes, as_json)
        return
    rows = {What.models: _models, What.heads: _heads, What.adapters: _adapters, What.trainers: _trainers}[what]()
    if as_json:
        print(json.dumps(rows, indent=2))
    elif what is What.trainers:
        print("\n".join(row["name"] for row in rows))
    else:
        print_table([{k: _text(v) for k, v in row.items() if k not in ("classes", "aliases")} for row in rows])


def _models() -> list[dict[str, Any]]:
    from nnunet_fm.models.parts import official_parts
    from nnunet_fm.models.registry import cards
    from nnunet_fm.weights.cache import find

    rows = []
    for name, card in cards().items():
        parts = official_parts(card, card.default_head, card.default_adapter, card.network.arguments)
        missing = dict.fromkeys(part.checkpoint.name for part in parts if not find(part.checkpoint.files))
        at_hand = f"missing: {', '.join(missing)}" if missing else "at hand" if parts else "none needed"
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
                "weights": at_hand,
                "weights licence": card.weights_licence,
            }
        )
    return rows


def _print_parameters(classes: int, as_json: bool) -> None:
    """What each head and each adapter trains; for people one line per part."""
    from rich.console import Console
    from rich.progress import track

    from nnunet_fm.models import count
    from nnunet_fm.models.registry import cards

    console = Console(stderr=True)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "classes": classes,
            "parameters": count.parameters(card, classes),
            "trained_by_head": count.trained_by_head(card, classes),
            "trained_by_adapter": count.trained_by_adapter(card, classes),
        }
        for name, card in track(cards().items(), "Counting", console=console, transient=True)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    lines = []
    for row in rows:
        parts = {"all": row["parameters"], **row["trained_by_head"], **row["trained_by_adapter"]}
        lines += [{"name": row["name"], "part": part, "parameters": f"{n:,}"} for part, n in parts.items()]
    print_table(lines)


def _heads() -> list[dict[str, Any]]:
    from nnunet_fm.models.registry import cards

    heads = sorted({head for card in cards().values() for head in card.heads})
    return [{"name": head, "models": [n for n, c in cards().items() if head in c.heads]} for head in heads]


def _adapters() -> list[dict[str, Any]]:
    from nnunet_fm.models.registry import cards

    adapters = sorted({adapter for card in cards().values() for adapter in card.adapters})
    return [{"name": a, "models": [n for n, c in cards().items() if a in c.adapters]} for a in adapters]


def _trainers() -> list[dict[str, Any]]:
    from nnunet_fm.models.registry import grammar
    from nnunet_fm.trainers import describe

    return [{"name": name, "description": describe(spec)} for name, spec in grammar().trainers.items()]


def _text(value: Any) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - SHOWN} more" if len(value) > SHOWN + 1 else ""
        return ", ".join(value[:SHOWN] if more else value) + more or "-"
    return f"{value / 1e6:,.2f}M" if isinstance(value, int) and value > 1000 else str(value)
