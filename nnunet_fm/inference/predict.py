"""nnU-Net's prediction with the same results, which times every step of every case and outlives a case that fails."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_fm.evaluation.machine import processor_name
from nnunet_fm.inference import inputs
from nnunet_fm.inference.inputs import PredictionInputError
from nnunet_fm.inference.times import CaseTimes, PredictionTimes, device_name
from nnunet_fm.inference.workers import (
    Case,
    Failure,
    Preprocessed,
    PreprocessedCases,
    Setting,
    export,
    failure,
    workers,
)

CUDA = torch.device("cuda")
ALL_FOLDS = (0, 1, 2, 3, 4)
QUEUED = 2
"""Results that may wait for a process to export them, as many as nnU-Net lets wait."""

OnCase = Callable[[str, CaseTimes | Failure], None]
OnProgress = Callable[[float, int], None]
"""``(cases done, with the part of the current one; all cases)``."""


class PredictionError(RuntimeError):
    """Some cases could not be predicted; all others were."""

    def __init__(self, failed: Mapping[str, str], times: PredictionTimes) -> None:
        reasons = "; ".join(f"{case} ({reason})" for case, reason in failed.items())
        super().__init__(f"{'1 case' if len(failed) == 1 else f'{len(failed)} cases'} failed: {reasons}")
        self.failed = dict(failed)
        """Name of a case -> reason."""
        self.times = times


@dataclass(frozen=True)
class _Logits:
    """Logits ``(K, Z, Y, X)`` of one case in half precision, and the seconds of all steps so far."""

    logits: np.ndarray
    properties: dict[str, Any]
    seconds: dict[str, float]


class FMPredictor(nnUNetPredictor):
    """An nnUNetPredictor whose `predict_from_files` times each case, and goes on when one fails.

    Takes the arguments of nnUNetPredictor. The steps of a case are `workers.preprocess`,
    `predict_logits_from_preprocessed_data` and what it calls, which are nnU-Net's own, and `workers.export`.
    """

    on_case: OnCase | None = None
    """Called when a case is done, with its seconds or why it failed."""
    on_progress: OnProgress | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with redirect_stdout(io.StringIO()):  # it prints that only CUDA can do everything on the device
            super().__init__(*args, **kwargs)
        self._cases = self._predicted = self._windows = self._window = 0

    @property
    def setting(self) -> Setting:
        return Setting(self.plans_manager, self.configuration_manager, self.dataset_json, self.verbose_preprocessing)

    def _manage_input_and_output_lists(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As nnU-Net's, but a folder is listed without a pool of twelve processes."""
        if isinstance(source, str):
            found = inputs.images_in(Path(source), self.dataset_json["file_ending"])
            source = [[str(file) for file in files] for files in found.values()]
        with nullcontext() if self.verbose else redirect_stdout(io.StringIO()):  # counts, which the end tells
            return super()._manage_input_and_output_lists(source, *args, **kwargs)

    def _internal_get_data_iterator_from_lists_of_filenames(
        self,
        input_list_of_lists: Any,
        seg_from_prev_stage_files: Any,
        output_filenames_truncated: Any,
        num_processes: int,
    ) -> Any:
        if output_filenames_truncated is None:  # results are wanted as arrays, which leave nothing to time
            return super()._internal_get_data_iterator_from_lists_of_filenames(
                input_list_of_lists, seg_from_prev_stage_files, output_filenames_truncated, num_processes
            )
        cases = [
            Case(files, previous, Path(output))
            for files, previous, output in zip(
                input_list_of_lists, seg_from_prev_stage_files, output_filenames_truncated, strict=True
            )
        ]
        return PreprocessedCases(self.setting, cases, num_processes)

    def predict_from_data_iterator(
        self,
        data_iterator: Any,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> Any:
        """Predict what `predict_from_files` has prepared; all else goes nnU-Net's way."""
        if not isinstance(data_iterator, PreprocessedCases):
            return super().predict_from_data_iterator(
                data_iterator, save_probabilities, num_processes_segmentation_export
            )
        self._cases, self._predicted = len(data_iterator.cases), 0
        processes = min(num_processes_segmentation_export, self._cases)
        exports: dict[Future[float | Failure], tuple[Case, dict[str, float]]] = {}
        with workers(processes, self.setting, "-nps") as pool, closing(iter(data_iterator)) as arriving:
            for case, preprocessed in arriving:
                result = preprocessed if isinstance(preprocessed, Failure) else self._logits(preprocessed)
                self._advance()
                if isinstance(result, Failure):
                    self._done(case, result)
                    continue
                self._collect(exports, at_most=processes + QUEUED - 1)
                arguments = (self.setting, case, result.logits, result.properties, save_probabilities)
                exports[pool.submit(export, *arguments)] = case, result.seconds
                del preprocessed, result, arguments  # volumes: the next one comes before these names are used again
            self._collect(exports, at_most=0)
        compute_gaussian.cache_clear()
        empty_cache(self.device)
        return None

    def _logits(self, case: Preprocessed) -> _Logits | Failure:
        start = perf_counter()
        try:
            # On the CPU at the end, so that a GPU has done its work when the time is taken.
            logits = self.predict_logits_from_preprocessed_data(torch.from_numpy(case.data)).cpu().numpy()
        except Exception as error:
            return failure(error, self.setting)
        seconds = perf_counter() - start
        so_far = {"reading": case.reading, "preprocessing": case.preprocessing, "inference": seconds}
        return _Logits(logits, case.properties, so_far)

    def _collect(self, exports: dict[Future[float | Failure], tuple[Case, dict[str, float]]], at_most: int) -> None:
        """Finish the cases that are exported, and wait until no more than `at_most` are not."""
        while exports:
            block = len(exports) > at_most
            done, _ = wait(exports, timeout=None if block else 0, return_when=FIRST_COMPLETED)
            for future in done:
                case, seconds = exports.pop(future)
                result = future.result()
                self._done(case, result if isinstance(result, Failure) else CaseTimes(**seconds, export=result))
            if not block:
                return

    def _done(self, case: Case, result: CaseTimes | Failure) -> None:
        if self.on_case is not None:
            self.on_case(case.name, result)

    # Progress within a case

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> Any:
        slicers = super()._internal_get_sliding_window_slicers(image_size)
        self._windows = len(slicers) * len(self.list_of_parameters)
        return slicers

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        prediction = super()._internal_maybe_mirror_and_predict(x)
        self._window += 1
        if self.on_progress is not None and self._cases:
            self.on_progress(self._predicted + min(self._window / self._windows, 1), self._cases)
        return prediction

    def _advance(self) -> None:
        self._predicted, self._window = self._predicted + 1, 0
        if self.on_progress is not None:
            self.on_progress(self._predicted, self._cases)


def load_predictor(
    model_folder: Path,
    folds: Sequence[int | str],
    checkpoint: str = "checkpoint_final.pth",
    *,
    device: torch.device = CUDA,
    tile_step_size: float = 0.5,
    mirroring: bool = True,
    on_device: bool = True,
    verbose: bool = False,
) -> FMPredictor:
    """A predictor with the networks of a trained model's folds.

    Raises:
        PredictionInputError: for a folder without the model, missing folds or checkpoints, or an absent device.
    """
    inputs.check_device(device)
    inputs.check_model_folder(model_folder, folds, checkpoint)
    predictor = FMPredictor(
        tile_step_size, True, mirroring, on_device, device, verbose, verbose_preprocessing=verbose, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds), checkpoint)
    return predictor


def predict_folder(
    model_folder: Path,
    images: Path | Sequence[Sequence[Path]],
    output: Path,
    *,
    folds: Sequence[int | str] = ALL_FOLDS,
    checkpoint: str = "checkpoint_final.pth",
    cases: Sequence[str] | None = None,
    device: torch.device = CUDA,
    tile_step_size: float = 0.5,
    mirroring: bool = True,
    save_probabilities: bool = False,
    overwrite: bool = True,
    processes_preprocessing: int | None = None,
    processes_export: int | None = None,
    previous_stage: Path | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    on_device: bool = True,
    verbose: bool = False,
    on_case: OnCase | None = None,
    on_progress: OnProgress | None = None,
) -> PredictionTimes:
    """Predict cases and write nnU-Net's label maps, and ``prediction_times.json``, to a folder.

    Args:
        model_folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>``.
        images: a folder in nnU-Net's layout, or the channel files of each case.
        output: where results go.
        folds: numbers, or ``all``; the logits of several are averaged.
        checkpoint: name of the file in each fold's folder.
        cases: of a folder, the cases to predict; of lists of files, the name of each.
        device: where the networks run.
        tile_step_size: distance of sliding windows, as a share of the patch.
        mirroring: whether to average over mirrored images, where the training allows it.
        save_probabilities: whether to write ``.npz`` and ``.pkl`` files as well, for ensembles.
        overwrite: False leaves cases alone that have results already.
        processes_preprocessing: worker processes that read and preprocess; 0 for this process, None for
            `default_processes`.
        processes_export: worker processes that write results; likewise.
        previous_stage: label maps of the previous stage, for a cascade.
        num_parts: number of calls that share the cases.
        part_id: which of them this is, from 0.
        on_device: whether a GPU holds the whole volume's logits.
        verbose: whether nnU-Net prints what it does, and errors come with a traceback.
        on_case: called when a case is done, with its name and its seconds or its `Failure`.
        on_progress: called after every sliding window with the cases done, as a fraction, and all cases.

    Returns:
        What the folder's file of times holds now.

    Raises:
        PredictionInputError: for anything wrong with what was given, before anything is written.
        PredictionError: if cases failed, after all others were predicted.
    """
    model_folder, output = Path(model_folder), Path(output)
    if not 0 <= part_id < num_parts:
        raise PredictionInputError(f"-part_id {part_id} is not one of -num_parts {num_parts}: parts count from 0")
    if not 0 < tile_step_size <= 1:
        raise PredictionInputError(f"-step_size {tile_step_size} is not in (0, 1]")
    inputs.check_device(device)
    inputs.check_model_folder(model_folder, folds, checkpoint)
    dataset_json = inputs.read_json(model_folder / "dataset.json")
    ending = dataset_json["file_ending"]
    folder = Path(images) if isinstance(images, (str, os.PathLike)) else None
    if folder is not None:
        found = inputs.images_in(folder, ending)
        found = found if cases is None else inputs.only(found, cases, folder)
    else:
        found = inputs.named(images, cases, ending)  # type: ignore[arg-type]
    reader = PlansManager(str(model_folder / "plans.json")).image_reader_writer_class()
    inputs.check_channels(found, dataset_json, reader, numbered=folder is not None)
    inputs.check_output(output, folder)
    PredictionTimes.read(output)
    predictor = load_predictor(
        model_folder, folds, checkpoint, device=device, tile_step_size=tile_step_size, mirroring=mirroring,
        on_device=on_device, verbose=verbose,
    )  # fmt: skip
    stage = predictor.configuration_manager.previous_stage_name
    inputs.check_previous_stage(stage, previous_stage, found, ending)

    mine = list(found)[part_id::num_parts]
    failed: dict[str, str] = {}
    with _threads(device):
        times = PredictionTimes(
            processor=processor_name(),
            device=device_name(device),
            threads=min(torch.get_num_threads(), default_num_processes),
        )

        def record(case: str, result: CaseTimes | Failure) -> None:
            if isinstance(result, Failure):
                failed[case] = result.reason
            else:
                times.model_copy(update={"cases": {case: result}}).add_to(output)
            if on_case is not None:
                on_case(case, result)

        predictor.on_case, predictor.on_progress = record, on_progress
        whole = (
            folder is not None and cases is None
        )  # then nnU-Net's record of the call has the folder's name, as usual
        defaults = default_processes(len(mine))
        predictor.predict_from_files(
            str(folder) if whole else [[str(file) for file in files] for files in found.values()],
            str(output) if whole else [str(output / name) for name in found],
            save_probabilities,
            overwrite,
            defaults[0] if processes_preprocessing is None else processes_preprocessing,
            defaults[1] if processes_export is None else processes_export,
            None if previous_stage is None else str(previous_stage),
            num_parts,
            part_id,
        )
    together = PredictionTimes.read(output) or times
    if failed:
        raise PredictionError(failed, together)
    return together


def default_processes(cases: int) -> tuple[int, int]:
    """Worker processes for preprocessing and for export where the user does not say.

    ``nnUNet_npp`` and ``nnUNet_nps`` as in nnU-Net, else its three each where the processor has a core for every one
    and for the network, fewer on smaller machines, and none for a single case, which nothing could run beside.
    """
    each = min(3, (_cores() - 1) // 2) if cases > 1 else 0
    preprocessing, exporting = (os.environ.get(name, "") for name in ("nnUNet_npp", "nnUNet_nps"))
    return (
        int(preprocessing) if preprocessing.isdigit() else each,
        int(exporting) if exporting.isdigit() else each,
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads(device: torch.device) -> Iterator[None]:
    """PyTorch's threads as nnU-Net's command sets them: all cores for a CPU, one beside a GPU."""
    before = torch.get_num_threads()
    if device.type != "mps":
        torch.set_num_threads(1 if device.type == "cuda" else _cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
