"""Prediction of a folder or of listed cases: everything checked first, label maps as nnU-Net's, times beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from nnunetv2.configuration import default_num_processes

from nnunet_fm.cpu.limits import startable, usable_cores
from nnunet_fm.cpu.limits import threads as usable_threads
from nnunet_fm.errors import FMError
from nnunet_fm.inference.cases import CaseFailure
from nnunet_fm.inference.inputs import CheckedPrediction, PredictionRequest, check_prediction
from nnunet_fm.inference.predictor import OnCase, OnProgress, load_predictor, prepare_for_cpu
from nnunet_fm.io.image_folders import left_out_words
from nnunet_fm.records.prediction import PredictionTimes

Loading = Callable[[], AbstractContextManager[None]]
"""Makes the context in which the model's code is imported and its weights are loaded."""


class PredictionError(FMError, RuntimeError):
    """Some cases could not be predicted, or some files of the input folder are no cases; all others were predicted."""

    code = "cases-failed"
    exit_code = 3
    """Exit code of a command that this error ends."""

    def __init__(
        self, failed: Mapping[str, str], times: PredictionTimes, left_out: Mapping[str, str] | None = None
    ) -> None:
        left_out = left_out or {}
        reasons = "; ".join(f"{case} ({reason})" for case, reason in failed.items())
        parts = [f"{_count(failed, 'case')} failed: {reasons}"] if failed else []
        parts += [f"{_count(left_out, 'file')} left out: {left_out_words(left_out)}"] if left_out else []
        super().__init__(". ".join(parts))
        self.failed = dict(failed)
        """Name of a case -> reason."""
        self.left_out = dict(left_out)
        """Name of a file -> reason."""
        self.times = times


def _count(names: Collection[str], what: str) -> str:
    return f"{len(names)} {what}{'s' * (len(names) != 1)}"


def predict_folder(
    model_folder: Path,
    images: Path | Sequence[Sequence[Path]],
    output: Path,
    *,
    on_case: OnCase | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> PredictionTimes:
    """Predict cases and write nnU-Net's label maps, and ``prediction_times.json``, to a folder.

    Args:
        model_folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>``.
        images: a folder in nnU-Net's layout, an image in it, or the channel files of each case.
        output: folder of the results.
        on_case: called when a case is done, with its name and its seconds or its `CaseFailure`.
        on_progress: called after every sliding window with the cases done, as a fraction, and all cases.
        options: the other fields of `PredictionRequest`.

    Returns:
        The times of all cases that the folder's file holds now.

    Raises:
        PredictionInputError: for anything wrong with the inputs, before anything is written.
        PredictionError: if cases failed or files of the folder are no cases, after all others were predicted.
    """
    request = PredictionRequest(Path(model_folder), images, output, **options)
    return predict_request(request, on_case=on_case, on_progress=on_progress)


def predict_request(
    request: PredictionRequest,
    *,
    on_case: OnCase | None = None,
    on_progress: OnProgress | None = None,
    loading: Loading = nullcontext,
) -> PredictionTimes:
    """Check a request, then predict it as `predict_folder` does.

    Args:
        request: what to predict, by which model, and how.
        on_case: see `predict_folder`.
        on_progress: likewise.
        loading: context in which the model is loaded.
    """
    prediction = check_prediction(request)
    output = Path(request.output)
    threads = _thread_count(request.device)
    times, before = PredictionTimes.start(output, request.device, min(threads, default_num_processes))
    with loading():
        predictor = load_predictor(
            prediction.model, request.folds, request.checkpoint, device=request.device,
            tile_step_size=request.tile_step_size, mirroring=request.mirroring, on_device=request.on_device,
            verbose=request.verbose, checked=True,
        )  # fmt: skip
    prepare_for_cpu(predictor)
    predictor.on_progress = on_progress
    processes = _processes(request, prediction.share)
    failed: dict[str, str] = {}
    together = before or times
    with _threads(threads):
        predictor.record_call(_call(request, prediction, processes))
        results = predictor.predict_cases(prediction.cases, *processes, save_probabilities=request.save_probabilities)
        with closing(results):
            for case, result in results:
                if isinstance(result, CaseFailure):
                    failed[case] = result.reason
                else:
                    together = times.model_copy(update={"cases": {case: result}}).add_to(output)
                if on_case is not None:
                    on_case(case, result)
    if failed or prediction.left_out:
        raise PredictionError(failed, together, prediction.left_out)
    return together


def _call(request: PredictionRequest, prediction: CheckedPrediction, processes: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments with which nnU-Net's `predict_from_files` would do the same."""
    return {
        "list_of_lists_or_source_folder": prediction.source,
        "output_folder_or_list_of_truncated_output_files": prediction.target,
        "save_probabilities": request.save_probabilities,
        "overwrite": request.overwrite,
        "num_processes_preprocessing": processes[0],
        "num_processes_segmentation_export": processes[1],
        "folder_with_segs_from_prev_stage": None if request.previous_stage is None else str(request.previous_stage),
        "num_parts": request.num_parts,
        "part_id": request.part_id,
    }


def _processes(request: PredictionRequest, cases: int) -> tuple[int, int]:
    """Worker processes for preprocessing and for export; none where the machine cannot start as many."""
    preprocessing, exporting = default_processes(cases)
    if request.processes_preprocessing is not None:
        preprocessing = request.processes_preprocessing
    if request.processes_export is not None:
        exporting = request.processes_export
    return (preprocessing, exporting) if startable(max(preprocessing, exporting), 0) else (0, 0)


def default_processes(cases: int) -> tuple[int, int]:
    """Worker processes for preprocessing and for export where the user does not say.

    ``nnUNet_npp`` and ``nnUNet_nps`` as in nnU-Net, else three each where there is a core for every one and for the
    network. Smaller machines get fewer. A single case gets none: there is nothing to overlap.
    """
    each = min(3, (usable_cores() - 1) // 2) if cases > 1 else 0
    preprocessing, exporting = (os.environ.get(name, "") for name in ("nnUNet_npp", "nnUNet_nps"))
    return (
        int(preprocessing) if preprocessing.isdigit() else each,
        int(exporting) if exporting.isdigit() else each,
    )


def _thread_count(device: torch.device) -> int:
    """Threads as nnU-Net's command sets them: all cores for a CPU, one beside a GPU.

    Unlike nnU-Net, respect ``OMP_NUM_THREADS`` and the limits of a container.
    """
    return {"cuda": 1, "cpu": usable_threads()}.get(device.type, torch.get_num_threads())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let PyTorch use this many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
