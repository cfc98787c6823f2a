"""``nnunet-fm doctor``: is everything in place for nnU-Net to use this package, and if not, what cures it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from nnunet_fm.cli.checks.finding import OK, PROBLEM, Check
from nnunet_fm.cli.completion import complete_datasets
from nnunet_fm.cli.console import JsonObject, working

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
        raise typer.BadParameter("a forecast needs a dataset, too", param_hint="-d")
    fixed = list(_fix(as_json)) if fix else []
    checks: list[Check] = []
    with working("versions", quiet=as_json) as tell:
        for check in _all(dataset, configuration, plans, tell):
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
    from nnunet_fm.cli.checks.leftovers import fix

    for done in fix():
        if not as_json:
            print(f"{'fixed':8}{done}", flush=True)
        yield done


def _all(
    dataset: str | None, configuration: str | None, plans: str | None, tell: Callable[[str], None]
) -> Iterator[Check]:
    """All checks, each as soon as it is known: the first within a blink, the later ones import PyTorch.

    ``tell`` is told what is being looked at.
    """
    from nnunet_fm.cli.checks.folders import datasets, folders
    from nnunet_fm.cli.checks.hook import hook, not_portable
    from nnunet_fm.cli.checks.leftovers import left_behind
    from nnunet_fm.cli.checks.machine import main_memory, processor, shared_memory
    from nnunet_fm.cli.checks.versions import commands, versions

    yield from versions()
    yield from commands()
    tell("folders")
    yield from folders()
    yield from datasets()
    yield from left_behind()
    yield from main_memory()
    tell("asking nnU-Net for a class of this package")
    yield (alive := hook())
    yield from not_portable(alive.state == OK)
    tell("importing PyTorch")
    try:
        import torch  # noqa: F401  (the checks below need it)
    except ImportError as error:
        yield Check("torch", PROBLEM, f"cannot be imported: {error}", "cure the versions above first")
        return
    from nnunet_fm.cli.checks.gpu import gpu
    from nnunet_fm.cli.checks.weights import weights

    devices = list(gpu())
    yield from devices
    yield from processor(any(check.name in ("cuda", "mps") and check.state == OK for check in devices))
    tell("weights")
    yield from weights()
    if dataset is None:
        yield from shared_memory()
    else:
        yield from _forecast(dataset, configuration, plans, tell)


def _forecast(
    dataset: str, configuration: str | None, plans: str | None, tell: Callable[[str], None]
) -> Iterator[Check]:
    from nnunet_fm.cli.checks.dataset import UnknownDatasetError, read, training_data
    from nnunet_fm.cli.checks.forecast import predicting, preprocessed, training_batch
    from nnunet_fm.cli.checks.machine import shared_memory

    try:
        known = read(dataset, configuration, plans, tell)
    except UnknownDatasetError as error:
        yield from shared_memory()
        yield Check("dataset", PROBLEM, str(error), "pass the ID or name of a dataset that nnU-Net's folders have")
        return
    yield from shared_memory(training_batch(known))
    yield from training_data(known.name, tell)
    yield from preprocessed(known)
    yield from predicting(known)


def _print(check: Check) -> None:
    print(f"{check.state:8}{check.name:{WIDTH}}  {check.detail}", flush=True)
    if check.cure:
        what = "cure" if check.state == PROBLEM else "advice"
        print(f"{'':8}{'':{WIDTH}}  {what}: {check.cure}", flush=True)
