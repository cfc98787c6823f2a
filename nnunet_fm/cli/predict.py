"""``nnunet-fm predict``: like ``nnUNetv2_predict``, with a record of the seconds of each case."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from nnunet_fm.cli.completion import (
    complete_configurations,
    complete_datasets,
    complete_plans,
    complete_trainers,
)
from nnunet_fm.cli.console import bars, results_only
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import Quiet
from nnunet_fm.cpu.lazy_imports import importing_lightly, without_collection
from nnunet_fm.errors import one_line

if TYPE_CHECKING:
    from nnunet_fm.inference.cases import CaseFailure
    from nnunet_fm.inference.inputs import PredictionRequest
    from nnunet_fm.records.prediction import CaseTimes, PredictionTimes

EPILOG = """
Examples:

  nnunet-fm predict -i IN -o OUT -d 501 -c 3d_fullres -tr fm_trainer -p FMPlans_stunet_b -f 0

  nnunet-fm predict -i IN -o OUT -m /models/fm_trainer__FMPlans_dinov2_b__2d -f 0 1 2 -chk checkpoint_best.pth

  nnunet-fm predict -i imagesTr -o OUT -d 501 -c 2d -f 0 --cases case_03 case_07 -device cpu -npp 0 -nps 0

OUT/prediction_times.json has the seconds of each case; -npp 0 -nps 0 times them undisturbed.

Exit codes: 0 all done, 1 nothing was predicted, 2 bad options, 3 some cases failed or files were left out,
130 interrupted.
"""


Images = Annotated[
    Path,
    typer.Option(
        "-i", "--input", help="Folder of images, or one: CASE_0000.nii.gz; CASE.nii.gz for models of one channel."
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Output folder; made if it is missing.")]
Dataset = Annotated[
    str | None,
    typer.Option("-d", "--dataset", help="Dataset ID or name of the model.", autocompletion=complete_datasets),
]
Plans = Annotated[str, typer.Option("-p", "--plans", help="Plans of the model.", autocompletion=complete_plans)]
Trainer = Annotated[
    str, typer.Option("-tr", "--trainer", help="Trainer of the model.", autocompletion=complete_trainers)
]
Configuration = Annotated[
    str | None,
    typer.Option("-c", "--configuration", help="Configuration of the model.", autocompletion=complete_configurations),
]
ModelFolder = Annotated[Path | None, typer.Option("-m", help="Folder of the model, in place of -d, -p, -tr and -c.")]
Folds = Annotated[
    list[str] | None,
    typer.Option("-f", "--folds", help="Folds to average over.  [default: 0 1 2 3 4]", metavar="FOLD …"),
]
StepSize = Annotated[float, typer.Option("-step_size", help="Distance of windows as a share of the patch, at most 1.")]
DisableTta = Annotated[bool, typer.Option("--disable_tta", help="Do not average over mirrored images.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print more; errors come with a traceback.")]
SaveProbabilities = Annotated[
    bool, typer.Option("--save_probabilities", help="Write class probabilities as well, for ensembles.")
]
ContinuePrediction = Annotated[
    bool, typer.Option("--continue_prediction", "--c", help="Skip cases that have results already.")
]
Checkpoint = Annotated[str, typer.Option("-chk", "--checkpoint", help="Name of the checkpoint.")]
Preprocessing = Annotated[
    int | None,
    typer.Option("-npp", min=0, help="Processes that preprocess; 0: in this process.  [default: by cores, ≤ 3]"),
]
Exporting = Annotated[
    int | None,
    typer.Option("-nps", min=0, help="Processes that export; 0: in this process.  [default: by cores, ≤ 3]"),
]
PreviousStage = Annotated[
    Path | None, typer.Option("-prev_stage_predictions", help="Predictions of a cascade's previous stage.")
]
NumParts = Annotated[int, typer.Option("-num_parts", min=1, help="Number of calls that share the cases.")]
PartId = Annotated[int, typer.Option("-part_id", min=0, help="Number of this call among them, from 0.")]
Device = Annotated[str, typer.Option("-device", help="cuda, cpu or mps; choose a GPU with CUDA_VISIBLE_DEVICES.")]
DisableProgressBar = Annotated[bool, typer.Option("--disable_progress_bar", help="Show no progress bar.")]
NotOnDevice = Annotated[
    bool, typer.Option("--not_on_device", help="Keep logits in main memory instead of the GPU's, for large cases.")
]
Cases = Annotated[
    list[str] | None,
    typer.Option("--cases", help="Predict only these cases of the input folder.", metavar="NAME …"),
]
Log = Annotated[
    Path | None, typer.Option("--log", help="File to add a line to for each case and for the end, with the time.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print times, failed cases, skipped files and the error as JSON.")]


def predict(
    images: Images,
    output: Output,
    dataset: Dataset = None,
    plans: Plans = "nnUNetPlans",
    trainer: Trainer = "nnUNetTrainer",
    configuration: Configuration = None,
    model: ModelFolder = None,
    folds: Folds = None,
    step_size: StepSize = 0.5,
    disable_tta: DisableTta = False,
    verbose: Verbose = False,
    save_probabilities: SaveProbabilities = False,
    continue_prediction: ContinuePrediction = False,
    checkpoint: Checkpoint = "checkpoint_final.pth",
    preprocessing: Preprocessing = None,
    exporting: Exporting = None,
    previous_stage: PreviousStage = None,
    num_parts: NumParts = 1,
    part_id: PartId = 0,
    device: Device = "cuda",
    disable_progress_bar: DisableProgressBar = False,
    not_on_device: NotOnDevice = False,
    cases: Cases = None,
    log: Log = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict as nnUNetv2_predict does, record the seconds of each case, and go on when one fails."""
    _check_model(model, dataset, configuration, plans, trainer)
    _check_values(folds, device, step_size, num_parts, part_id)
    report = _Report(log)
    failure: Exception | None = None
    times: PredictionTimes | None = None
    with results_only(as_json=as_json, quiet=quiet):
        try:
            with without_collection():
                import torch
            with importing_lightly():
                from nnunet_fm.inference.inputs import ALL_FOLDS, ModelName, PredictionRequest

            request = PredictionRequest(
                model or ModelName(str(dataset), trainer, plans, str(configuration)), images, output,
                folds=[int(fold) if fold.isdigit() else fold for fold in folds] if folds else ALL_FOLDS,
                checkpoint=checkpoint, cases=cases, device=torch.device(device), tile_step_size=step_size,
                mirroring=not disable_tta, save_probabilities=save_probabilities, overwrite=not continue_prediction,
                processes_preprocessing=preprocessing, processes_export=exporting, previous_stage=previous_stage,
                num_parts=num_parts, part_id=part_id, on_device=not not_on_device, verbose=verbose,
            )  # fmt: skip
            times = _predict(request, report, hidden=disable_progress_bar or quiet)
        except KeyboardInterrupt:
            report.interrupted()
            raise typer.Exit(130) from None
        except Exception as error:
            failure, times = error, getattr(error, "times", None)
    _print_times(times, failure, as_json=as_json, quiet=quiet)
    report.end(times, failure)
    if failure is not None:
        raise failure


def _predict(request: PredictionRequest, report: _Report, *, hidden: bool) -> PredictionTimes:
    with importing_lightly():
        from nnunet_fm.inference.predict import predict_request
    with bars(hidden=hidden) as bar:
        return predict_request(request, on_case=report.case, on_progress=bar("cases"), loading=importing_lightly)


def _print_times(times: PredictionTimes | None, failure: Exception | None, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(_content(times, failure), indent=1))
    elif times is not None and not quiet:
        print(times.summary())


class _Report:
    """Lines about the cases of a prediction: printed, and added to a log file with the time.

    Args:
        log: file of the log; None for no log.
    """

    def __init__(self, log: Path | None) -> None:
        self._log, self._done = log, 0
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)

    def case(self, case: str, result: CaseTimes | CaseFailure) -> None:
        """Report that a case is done, or why it failed."""
        if isinstance(reason := getattr(result, "reason", None), str):
            self._write(f"{case} failed: {reason}", to=sys.stderr)
        else:
            self._done += 1
            self._write(f"{case} done, {cast('CaseTimes', result).total:.1f} s")

    def interrupted(self) -> None:
        """Report how much is done, and how to go on."""
        done = "1 case is done" if self._done == 1 else f"{self._done} cases are done"
        self._write(f"interrupted, {done}: the same command with --continue_prediction goes on", to=sys.stderr)

    def end(self, times: PredictionTimes | None, failure: Exception | None) -> None:
        """Add the end to the log; it is printed elsewhere."""
        if times is not None:
            self._add(times.summary())
        if failure is not None:
            self._add(one_line(failure))

    def _write(self, line: str, to: TextIO | None = None) -> None:
        print(line, file=to or sys.stdout, flush=True)
        self._add(line)

    def _add(self, line: str) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")


def _content(times: PredictionTimes | None, failure: Exception | None) -> dict[str, Any]:
    """Return what ``--json`` prints: times of the cases, failed cases, skipped files and the error."""
    return {
        **({"cases": {}} if times is None else times.model_dump()),
        "failed": getattr(failure, "failed", {}),
        "skipped": getattr(failure, "left_out", {}),
        "error": None if failure is None else {"code": getattr(failure, "code", "error"), "message": str(failure)},
    }


def _check_model(model: Path | None, dataset: str | None, configuration: str | None, plans: str, trainer: str) -> None:
    """Raise an OptionError unless the model is named once, by its folder or by the names of its parts."""
    given = {"-d": dataset, "-c": configuration, "-p": plans != "nnUNetPlans", "-tr": trainer != "nnUNetTrainer"}
    if model is not None and any(given.values()):
        raise OptionError(
            f"-m names the model already: drop {', '.join(k for k, v in given.items() if v)}", code="option-conflict"
        )
    if model is None and (dataset is None or configuration is None):
        raise OptionError(
            "name the model: -d and -c, mostly with -tr and -p; or its folder with -m", code="option-incomplete"
        )


def _check_values(folds: list[str] | None, device: str, step_size: float, num_parts: int, part_id: int) -> None:
    """Raise an OptionError for the first option with an illegal value."""
    if wrong := [fold for fold in folds or () if fold != "all" and not fold.isdigit()]:
        raise OptionError(f"'{wrong[0]}' is neither a number nor 'all'", param_hint="-f", code="option-value")
    if device not in ("cuda", "cpu", "mps"):
        hint = "; choose a GPU with CUDA_VISIBLE_DEVICES" if device.startswith("cuda:") else ""
        raise OptionError(f"'{device}' is not one of cuda, cpu, mps{hint}", param_hint="-device", code="option-value")
    if not 0 < step_size <= 1:
        raise OptionError(f"{step_size} is not above 0 and at most 1", param_hint="-step_size", code="option-value")
    if part_id >= num_parts:
        raise OptionError(
            f"{part_id} is too large: parts count from 0 to {num_parts - 1}", param_hint="-part_id", code="option-value"
        )
