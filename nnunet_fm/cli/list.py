"""``nnunet-fm list``: print models, heads, adapters and trainers."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Any

import typer

from nnunet_fm.cli.completion import complete_models
from nnunet_fm.cli.console import bars, print_table
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import Json

KINDS = ("models", "heads", "adapters", "trainers")
EPILOG = """
Examples:

  nnunet-fm list

  nnunet-fm list stunet_b

  nnunet-fm list 'dino*'

  nnunet-fm list trainers 'fm_trainer_sam_b_*_lora*'

  nnunet-fm list heads

  nnunet-fm list models --parameters --classes 3
"""


def list_(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND] [NAME|PATTERN]",
            help="models (default), heads, adapters or trainers; a name, or a pattern with * and ? in quotes.",
            autocompletion=complete_models,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Models: how many parameters each head and adapter trains.")
    ] = False,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes to count parameters for.")] = 15,
) -> None:
    """List models by family, all of one model, heads, adapters or trainers."""
    kind, pattern = _what(words or [])
    if parameters and kind != "models":
        raise OptionError("only models have parameters", param_hint="--parameters", code="option-conflict")
    rows = [row for row in (_parameters(classes) if parameters else _rows(kind)) if _fits(row, pattern)]
    if not rows:
        raise _unknown(kind, str(pattern))
    if as_json:
        print(json.dumps(rows, indent=2))
    elif parameters:
        print_table(_parts(rows))
    elif kind == "trainers":
        print("\n".join(row["name"] for row in rows))
    elif kind != "models":
        print("\n".join(f"{row['name']:<18}{row['what']}" for row in rows))
    elif pattern is None:
        _print_families()
    elif len(rows) == 1:
        _print_facts(rows[0]["name"])
    else:
        print_table([_short(row) for row in rows])


def _what(words: list[str]) -> tuple[str, str | None]:
    """Kind and pattern of the command's words."""
    kind = words[0] if words and words[0] in KINDS else "models"
    rest = words[1:] if words and words[0] in KINDS else words
    if len(rest) > 1:
        raise OptionError(f"give one name or pattern, in quotes, not {' '.join(rest)}", code="option-value")
    return kind, rest[0] if rest else None


def _rows(kind: str) -> list[dict[str, Any]]:
    from nnunet_fm.models import overview

    if kind == "trainers":
        from nnunet_fm.models.registry import grammar
        from nnunet_fm.trainers import describe

        return [{"name": name, "description": describe(spec)} for name, spec in grammar().trainers.items()]
    return {"models": overview.model_rows, "heads": overview.head_rows, "adapters": overview.adapter_rows}[kind]()


def _fits(row: dict[str, Any], pattern: str | None) -> bool:
    return pattern is None or any(fnmatchcase(name, pattern) for name in (row["name"], *row.get("aliases", ())))


def _unknown(kind: str, pattern: str) -> Exception:
    """The error for a name or pattern that fits nothing."""
    from nnunet_fm.models.names import UnknownNameError

    if any(sign in pattern for sign in "*?["):
        return OptionError(f"no {kind} fit '{pattern}'", code="option-value")
    hint = f"Kinds are {', '.join(KINDS)}; `nnunet-fm list {kind}` prints all."
    return UnknownNameError(pattern, [row["name"] for row in _rows(kind)], hint)


def _parameters(classes: int) -> list[dict[str, Any]]:
    from nnunet_fm.models.overview import parameter_rows

    with bars() as bar:
        return parameter_rows(classes, bar("Counting"))


def _parts(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One row for each head and each adapter of a model."""
    return [
        {"name": row["name"], "part": part, "parameters": f"{number:,}"}
        for row in rows
        for part, number in {"all": row["parameters"], **row["trained_by_head"], **row["trained_by_adapter"]}.items()
    ]


def _short(row: dict[str, Any]) -> dict[str, str]:
    """Row of one model that fits a terminal."""
    size = f"{row['parameters'] / 1e6:,.1f} M"
    weights = row["weights"].partition(":")[0]
    return {"name": row["name"], "title": row["title"], "parameters": size, "weights": weights, "use": row["use"]}


def _print_families() -> None:
    from nnunet_fm.models.overview import family_rows

    print_table(family_rows())
    print(
        "\n`nnunet-fm list NAME` prints all of a model, `nnunet-fm list 'dino*'` each size of a family."
        "\nUse of the official weights: open, research only, or ask the authors."
    )


def _print_facts(name: str) -> None:
    from nnunet_fm.models.overview import model_facts

    width = max(60, get_terminal_size((100, 24)).columns)
    for heading, words in model_facts(name).items():
        print(fill(words, width, initial_indent=f"{heading:<15}", subsequent_indent=" " * 15, break_long_words=False))
