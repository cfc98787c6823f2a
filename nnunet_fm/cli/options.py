"""Options that several commands share, and the reading of ``--set``."""

from __future__ import annotations

import json
from typing import Annotated, Any, NamedTuple

import typer

from nnunet_fm.cli.option_error import OptionError

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonObjectOnly = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Replace plans that have trained models.")]
Processes = Annotated[int, typer.Option("-npfp", min=1, help="Processes for a fingerprint that is missing.")]


class SetOptions(NamedTuple):
    """Changed recipe fields and network arguments."""

    recipe: dict[str, Any]
    network: dict[str, Any]


def read_settings(words: list[str] | None) -> SetOptions:
    """Read ``recipe.max_minutes=30`` as ``{"max_minutes": 30}``; values are JSON where they can be, else text.

    Raises:
        OptionError: for a word of another form.
    """
    settings = SetOptions({}, {})
    for word in words or []:
        key, equals, text = word.partition("=")
        owner, dot, name = key.partition(".")
        if not equals or not dot or owner not in ("recipe", "network"):
            raise OptionError(
                f"'{word}' is not of the form recipe.<field>=<value> or network.<argument>=<value>",
                param_hint="--set",
                code="option-value",
            )
        changed = settings.recipe if owner == "recipe" else settings.network
        try:
            changed[name] = json.loads(text)
        except json.JSONDecodeError:
            changed[name] = text
    return settings
