"""``nnunet-fm demo``: plan, train and predict on bundled MRI with the commands that a user would type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nnunet_fm.cli.console import exit_on_sigterm
from nnunet_fm.cli.options import JsonObjectOnly, Quiet
from nnunet_fm.errors import ExistingFileError
from nnunet_fm.io.dataset_names import nnunet_folder

EPILOG = """
Examples:

  nnunet-fm demo

  nnunet-fm demo --minutes 2 --output /data/demo --json

  nnunet-fm demo --unpack 904
"""

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
Minutes = Annotated[float, typer.Option("--minutes", min=0.05, help="Minutes of training.")]
Unpack = Annotated[
    int | None,
    typer.Option(
        "--unpack", min=1, max=999, help="Only write the images, as this dataset number into nnUNet_raw.", metavar="ID"
    ),
]


def demo(
    output: Output = Path("nnunet_fm_demo"),
    minutes: Minutes = 6.0,
    unpack: Unpack = None,
    quiet: Quiet = False,
    as_json: JsonObjectOnly = False,
) -> None:
    """Plan, preprocess, train and predict on real hippocampus MRI, with Dice and pictures, on a CPU.

    Runs the stock nnU-Net commands and prints each, so that it can be repeated by hand. Trains a small STU-Net from
    random weights, and needs no network connection.
    """
    if unpack is not None:
        _unpack(unpack, quiet, as_json)
        return
    output = output.resolve()
    if output.exists() and any(output.iterdir()):
        raise ExistingFileError(
            f"{output} is not empty: choose another folder with --output, or remove it", code="folder-not-empty"
        )
    from nnunet_fm.studies.demo import Demo

    with exit_on_sigterm():
        result = Demo(output, as_json=as_json, quiet=quiet).run(minutes)
    if as_json:
        print(json.dumps(result))


def _unpack(dataset_id: int, quiet: bool, as_json: bool) -> None:
    from nnunet_fm.dataset_conversion.demo import CREDIT, unpack

    folder = unpack(nnunet_folder("nnUNet_raw"), dataset_id)
    if as_json:
        print(json.dumps({"folder": str(folder), "credit": CREDIT}))
    elif not quiet:
        print(f"{folder}: {CREDIT}")
