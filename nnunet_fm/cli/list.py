"""``nnunet-fm list``: print all models, heads, adapters and trainers."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any

import typer

from nnunet_fm.cli.console import bars, print_table
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import Json
from nnunet_fm.io.messages import listed

SHOWN = 3
"""Names of a long list that the table shows; JSON has all of them."""

EPILOG = """
Examples:

  nnunet-fm list

  nnunet-fm list trainers

  nnunet-fm list models --json

  nnunet-fm list models --parameters --classes 3
"""


class What(str, Enum):
    """Kinds of things to list."""

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
    """List models, heads, adapters or trainers of this installation."""
    if parameters and what is not What.models:
        raise OptionError("only models have parameters", param_hint="--parameters", code="option-conflict")
    rows = _parameters(classes) if parameters else _rows(what)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif what is What.trainers:
        print("\n".join(row["name"] for row in rows))
    else:
        print_table(_parts(rows) if parameters else _readable(rows))


def _rows(what: What) -> list[dict[str, Any]]:
    from nnunet_fm.models import overview

    if what is What.trainers:
        from nnunet_fm.models.registry import grammar
        from nnunet_fm.trainers import describe

        return [{"name": name, "description": describe(spec)} for name, spec in grammar().trainers.items()]
    return {
        What.models: overview.model_rows,
        What.heads: overview.head_rows,
        What.adapters: overview.adapter_rows,
    }[what]()


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


def _readable(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{k: _text(v) for k, v in row.items() if k not in ("classes", "aliases")} for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return listed(value, most=SHOWN if len(value) > SHOWN + 1 else SHOWN + 1) or "-"
    return f"{value / 1e6:,.2f}M" if isinstance(value, int) and value > 1000 else str(value)
