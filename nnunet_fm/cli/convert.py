"""``nnunet-fm convert``: convert the download of a public dataset to an nnU-Net raw folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.completion import complete_converters
from nnunet_fm.cli.console import bars, exit_on_sigterm, print_table
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import JsonObject, Quiet
from nnunet_fm.dataset_conversion import CONVERTERS, get_converter
from nnunet_fm.io.dataset_names import nnunet_folder

if TYPE_CHECKING:
    from nnunet_fm.dataset_conversion.problems import ConversionError, Problem
    from nnunet_fm.dataset_conversion.run import Report

EPILOG = """
Examples:

  nnunet-fm convert aortaseg24 ~/Downloads/training.zip -d 501 --dry-run

  nnunet-fm convert aortaseg24 ~/Downloads/AortaSeg24 -d 501 -np 4

Then: nnUNetv2_plan_and_preprocess -d 501 -pl FMPlanner_stunet_b --verify_dataset_integrity
"""


Dataset = Annotated[
    str,
    typer.Argument(help=f"One of {', '.join(CONVERTERS)}.", show_default=False, autocompletion=complete_converters),
]
Source = Annotated[Path, typer.Argument(help="Folder, zip or tar as downloaded; only read.", show_default=False)]
DatasetId = Annotated[int, typer.Option("-d", "--dataset-id", min=1, max=999, help="Dataset number, 1 to 999.")]
Domain = Annotated[str | None, typer.Option("--domain", help="Domain to convert, if the dataset has several, e.g. t1.")]
LabelSet = Annotated[str | None, typer.Option("--labels", help="Set of labels, if the dataset has several.")]
Split = Annotated[str | None, typer.Option("--split", help="Split: official, thesis, or a JSON, CSV or text file.")]
Thesis = Annotated[bool, typer.Option("--thesis", help="Use intensities, pixel size and image size of the thesis.")]
N4 = Annotated[bool | None, typer.Option("--n4/--no-n4", help="Correct the bias field.", show_default=False)]
SkullStrip = Annotated[
    str | None, typer.Option("--skull-strip", help="Brain masks: labels, no, or a folder or table of masks.")
]
Outside = Annotated[str | None, typer.Option("--outside", help="Treatment of voxels that one channel does not show.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="List all problems and write nothing.")]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="Leave out cases that cannot be converted.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder of the same name.")]
Processes = Annotated[
    int, typer.Option("-np", min=1, help="Cases converted at the same time, each with up to 4 GB of memory.")
]


def convert(
    dataset: Dataset,
    source: Source,
    dataset_id: DatasetId,
    domain: Domain = None,
    labels: LabelSet = None,
    split: Split = None,
    thesis: Thesis = False,
    n4: N4 = None,
    skull_strip: SkullStrip = None,
    outside: Outside = None,
    dry_run: DryRun = False,
    skip_invalid: SkipInvalid = False,
    force: Force = False,
    processes: Processes = 2,
    quiet: Quiet = False,
    as_json: JsonObject = False,
) -> None:
    """Convert a downloaded dataset to nnUNet_raw/Dataset<ID>_<Name>, with labels, split and a record of what was done.

    The folder appears complete or not at all; an interrupted run is continued by the next one.
    """
    from nnunet_fm.dataset_conversion.problems import ConversionError, UnknownConverterError, UsageError
    from nnunet_fm.dataset_conversion.run import convert as run

    try:
        converter = get_converter(dataset)
        options = converter.options(
            domain=domain, labels=labels, split=split, thesis=thesis, n4=n4, skull_strip=skull_strip, outside=outside
        )
    except (UnknownConverterError, UsageError) as error:
        raise OptionError(str(error), code=error.code) from None
    raw = None if dry_run and not os.environ.get("nnUNet_raw") else nnunet_folder("nnUNet_raw")
    try:
        with exit_on_sigterm(), bars(hidden=quiet) as bar:
            report = run(
                converter, source, dataset_id, options, raw, dry_run=dry_run,
                skip_invalid=skip_invalid, force=force, processes=processes, progress=bar("cases"),
            )  # fmt: skip
    except ConversionError as error:
        _print_failure(error, as_json)
        raise
    _print(report, as_json, quiet)
    if dry_run and report.problems and not skip_invalid:
        raise ConversionError(f"{len(report.problems)} problems in {source}", code="problems-found")


def _print_failure(error: ConversionError, as_json: bool) -> None:
    if as_json:
        failure = {"status": "failed", "reason": str(error), "code": error.code, "problems": _rows(error.problems)}
        print(json.dumps(failure, indent=2))
    elif len(error.problems) > 1:  # printed with --quiet, too
        _print_problems(error.problems)


def _print(report: Report, as_json: bool, quiet: bool) -> None:
    if as_json:
        content = {**asdict(report), "folder": None if report.folder is None else str(report.folder)}
        print(json.dumps(content, indent=2))
    if as_json or quiet:
        return
    if report.problems:
        _print_problems(report.problems)
    for note in report.notes:
        print(f"* {note}")
    for case, reason in report.left_out.items():
        print(f"* {case} is left out: {reason}")
    if report.unused:
        print(f"* {len(report.unused)} cases are not in the split: {', '.join(report.unused)}")
    counts = f"{report.training} training cases, {report.test} test cases"
    if report.kept:
        counts += f" ({report.kept} of an interrupted run)"
    ending = {
        "converted": f"{report.folder}: {counts}",
        "unchanged": f"{report.folder} is the same conversion of the same files, nothing to do: {counts}",
        "checked": f"{report.dataset} would have {counts}; nothing was written",
    }
    print(ending[report.status])


def _print_problems(problems: tuple[Problem, ...]) -> None:
    print_table([{key: str(value or "") for key, value in row.items()} for row in _rows(problems)])


def _rows(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [{"case": problem.case, "file": problem.file, "rule": problem.rule} for problem in problems]
