"""nnU-Net's predictor, which times every step of every case and outlives a case that fails."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, nullcontext, redirect_stdout
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

from nnunet_fm.cpu.malloc import give_back_freed_memory, keep_freed_memory
from nnunet_fm.cpu.prepacked_weights import lay_out_weights
from nnunet_fm.cpu.skip_initialisation import WithoutRandomWeights
from nnunet_fm.inference import inputs
from nnunet_fm.inference.sliding_window import Sums, Window, mirrored_mean, predictions
from nnunet_fm.inference.workers import (
    Case,
    Failure,
    InThisProcess,
    Preprocessed,
    PreprocessedCases,
    Setting,
    export,
    failure,
    has_result,
    workers,
)
from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.planfile.schema import PlanKey, unseen_mirroring
from nnunet_fm.records.prediction import CaseTimes
from nnunet_fm.weights.files import data_only, misfit

CUDA = torch.device("cuda")
QUEUED = 2
"""Results that may wait for a process to export them, as many as nnU-Net lets wait."""

SENT_BYTES = 2**30
"""Logits beyond this are exported in this process: on their way to another they would be in memory four times."""

OnCase = Callable[[str, CaseTimes | Failure], None]
OnProgress = Callable[[float, int], None]
"""``(cases done, with the part of the current one; all cases)``."""


@dataclass(frozen=True)
class _Logits:
    """Logits ``(K, Z, Y, X)`` of one case in half precision, and the seconds of all steps so far."""

    logits: np.ndarray
    properties: dict[str, Any]
    seconds: dict[str, float]


class FMPredictor(nnUNetPredictor):
    """An nnUNetPredictor whose `predict_from_files` times each case, and goes on when one fails.

    Takes the arguments of nnUNetPredictor. The steps of a case are `workers.preprocess`,
    `predict_logits_from_preprocessed_data`, nnU-Net's own but for the sliding window, and `workers.export`.
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

    def _manage_input_and_output_lists(
        self,
        source: Any,
        outputs: Any,
        previous_folder: str | None = None,
        overwrite: bool = True,
        part_id: int = 0,
        num_parts: int = 1,
        save_probabilities: bool = False,
    ) -> Any:
        """List images without nnU-Net's twelve processes, and a previous stage's label maps by the outputs' names.

        Where results are not overwritten, those that are not whole do not count as results.
        """
        ending = self.dataset_json["file_ending"]
        if isinstance(source, str):
            found = inputs.images_in(Path(source), ending).cases
            source = [[str(file) for file in files] for files in found.values()]
        with nullcontext() if self.verbose else redirect_stdout(io.StringIO()):  # counts, which the end tells
            images, outputs, previous = super()._manage_input_and_output_lists(
                source, outputs, previous_folder, True, part_id, num_parts, save_probabilities
            )
        if outputs is None:
            return images, outputs, previous
        cases = [
            # nnU-Net cuts a channel's number off the images' names, which some have not
            (files, output, before and str(Path(before).with_name(Path(output).name + ending)))
            for files, output, before in zip(images, outputs, previous, strict=True)
            if overwrite or not has_result(Path(output), ending, Path(files[0]), save_probabilities)
        ]
        return tuple(map(list, zip(*cases, strict=True))) or ([], [], [])

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
                executor = pool if result.logits.nbytes <= SENT_BYTES else InThisProcess()
                exports[executor.submit(export, *arguments)] = case, result.seconds
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
        give_back_freed_memory()  # the export has volumes of its own
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

    # Windows

    def _internal_get_sliding_window_slicers(self, image_size: tuple[int, ...]) -> Any:
        slicers = super()._internal_get_sliding_window_slicers(image_size)
        self._windows = len(slicers) * len(self.list_of_parameters)
        return slicers

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: Sequence[Window], do_on_device: bool = True
    ) -> torch.Tensor:
        """Logits ``(K, Z, Y, X)`` of padded data, in half precision and window by window as nnU-Net adds them up."""
        empty_cache(self.device)
        sums = Sums(
            self.label_manager.num_segmentation_heads, data.shape[1:], self.configuration_manager.patch_size,
            self.device if do_on_device else torch.device("cpu"), gaussian=self.use_gaussian,
        )  # fmt: skip
        data = data.to(sums.device)
        for window, prediction in zip(slicers, predictions(data, slicers, self._predict_windows), strict=True):
            sums.add(window, prediction)
            self._window += 1
            if self.on_progress is not None and self._cases:
                self.on_progress(self._predicted + min(self._window / self._windows, 1), self._cases)
        return sums.mean()

    def _predict_windows(self, x: torch.Tensor) -> torch.Tensor:
        return self._internal_maybe_mirror_and_predict(x.to(self.device))

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        """Mean over the mirrored versions of windows ``(B, C, …)``, several of them in one batch."""
        if not self.use_mirroring or self.allowed_mirroring_axes is None:
            return self.network(x)
        return mirrored_mean(self.network, x, self.allowed_mirroring_axes)

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
    checked: bool = False,
) -> FMPredictor:
    """A predictor with the networks of a trained model's folds.

    Device and folder are looked at first, unless they have been `checked`.

    Raises:
        PredictionInputError: for a folder without the model, missing folds or checkpoints, or an absent device.
        PlanError, WeightsFileError: for plans or a checkpoint that would run code; none of it is run. Or for a
            checkpoint of another network than the plans have.
    """
    if not checked:
        inputs.check_device(device)
        inputs.check_model_folder(model_folder, folds, checkpoint)
    predictor = FMPredictor(
        tile_step_size, True, mirroring, on_device, device, verbose, verbose_preprocessing=verbose, allow_tqdm=False
    )
    try:
        with data_only(), WithoutRandomWeights():
            predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds), checkpoint)
    except RuntimeError as error:
        raise misfit(error, f"{checkpoint} in {model_folder}") or error from None
    _mirror_as_trained(predictor)
    predictor.dataset_json = canonical(predictor.dataset_json)
    return predictor


def _mirror_as_trained(predictor: FMPredictor) -> None:
    """Leave out axes that the training did not flip: files of older versions may name them (see `unseen_mirroring`)."""
    plans, axes = predictor.plans_manager.plans, predictor.allowed_mirroring_axes
    key = PlanKey.read(plans)
    if key is None or not axes:
        return
    flipped = key.recipe.flipped_axes(len(predictor.configuration_manager.patch_size))
    seen = tuple(axis for axis in axes if axis in flipped)
    if len(seen) < len(axes) and predictor.use_mirroring and not unseen_mirroring(plans):  # which the network has said
        print(
            f"WARNING: the checkpoint allows mirroring along axes {list(axes)}, but its training flipped "
            f"{list(flipped) or 'none'}: images are mirrored along {list(seen) or 'none'}",
            file=sys.stderr,
        )
    predictor.allowed_mirroring_axes = seen or None


def only_predict(predictor: FMPredictor) -> None:
    """Have weights and memory as prediction on a CPU wants them: no part of the network can be used by itself then."""
    if predictor.device.type != "cpu":
        return
    keep_freed_memory()
    network = getattr(predictor.network, "_orig_mod", predictor.network)  # without the wrapper of a compiled one
    if isinstance(network, FoundationNetwork):  # which computes in bfloat16 where the processor gains from it
        lay_out_weights(network)
