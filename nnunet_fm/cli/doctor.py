"""``nnunet-fm doctor``: is everything in place for nnU-Net to use this package, and if not, what cures it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from nnunet_fm.checks.all_checks import all_checks
from nnunet_fm.checks.finding import PROBLEM, Check
from nnunet_fm.cli.completion import complete_datasets
from nnunet_fm.cli.console import working
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import JsonObject

EPILOG = """
Examples:

  nnunet-fm doctor

  nnunet-fm doctor -d 501 -c 3d_fullres

  nnunet-fm doctor --fix

  nnunet-fm doctor --json

Exits with 1 if something must be cured.
"""

WIDTH = 30
"""Columns of a finding's name."""


def doctor(
    dataset: Annotated[
        str | None,
        typer.Option(
            "-d",
            "--dataset",
            help="Dataset ID or name: check its training data, forecast the memory that predicting it takes.",
            autocompletion=complete_datasets,
        ),
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("-c", "--configuration", help="Configuration of the forecast; 3d_fullres by default.")
    ] = None,
    plans: Annotated[
        str | None, typer.Option("-p", "--plans", help="Plans of the forecast; the newest by default.")
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Make nnU-Net's folders, remove what killed commands left; never data or results."),
    ] = False,
    as_json: JsonObject = False,
) -> None:
    """Check versions, the import hook, nnU-Net's folders and the machine; each problem comes with its cure."""
    if dataset is None and (configuration or plans):
        raise OptionError("a forecast needs a dataset, too", param_hint="-d", code="option-incomplete")
    fixed = list(_fix(as_json)) if fix else []
    checks: list[Check] = []
    with working("versions", quiet=as_json) as progress:
        for check in all_checks(dataset, configuration, plans, progress):
            checks.append(check)
            if not as_json:
                _print(check)
    usable = all(check.state != PROBLEM for check in checks)
    if as_json:
        print(json.dumps({"usable": usable, "fixed": fixed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print("\nReady." if usable else "\nNot ready: see the problems above.")
    if not usable:
        raise typer.Exit(1)


def _fix(as_json: bool) -> Iterator[str]:
    from nnunet_fm.checks.leftovers import fix

    for done in fix():
        if not as_json:
            print(f"{'fixed':8}{done}", flush=True)
        yield done


def _print(check: Check) -> None:
    print(f"{check.state:8}{check.name:{WIDTH}}  {check.detail}", flush=True)
    if check.cure:
        what = "cure" if check.state == PROBLEM else "advice"
        print(f"{'':8}{'':{WIDTH}}  {what}: {check.cure}", flush=True)
