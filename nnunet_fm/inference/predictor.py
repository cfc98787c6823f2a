"""nnU-Net's predictor, which times every step of every case and outlives a case that fails."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_fm.cpu.malloc import give_back_freed_memory, keep_freed_memory
from nnunet_fm.cpu.prepacked_weights import prepack_weights
from nnunet_fm.cpu.skip_initialisation import WithoutRandomWeights
from nnunet_fm.inference import inputs
from nnunet_fm.inference.cases import CaseFailure, CaseFiles, PlannedModel, killed
from nnunet_fm.inference.export import export
from nnunet_fm.inference.preprocess import Preprocessed, preprocess_cases
from nnunet_fm.inference.sliding_window import Sums, Window, mirrored_mean, predictions
from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.io.worker_processes import InThisProcess, worker_processes
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.planfile.schema import PlanKey, unseen_mirroring
from nnunet_fm.records.prediction import CaseTimes
from nnunet_fm.weights.files import data_only, shape_mismatch

QUEUED = 2
"""Results that may wait for a process to export them, as many as nnU-Net lets wait."""

SENT_BYTES = 2**30
"""Logits beyond this are exported in this process: on their way to another they would be in memory four times."""

OnCase = Callable[[str, CaseTimes | CaseFailure], None]
OnProgress = Callable[[float, int], None]
"""``(cases done, with the part of the current one; all cases)``."""

Exports = dict["Future[float | CaseFailure]", tuple[CaseFiles, dict[str, float]]]
"""Running export of a case -> the case, and the seconds of its other steps."""


@dataclass(frozen=True)
class _Logits:
    """Logits ``(K, Z, Y, X)`` of one case in half precision, and the seconds of all steps so far."""

    logits: np.ndarray
    properties: dict[str, Any]
    seconds: dict[str, float]


class FMPredictor(nnUNetPredictor):
    """An nnUNetPredictor whose `predict_from_files` times each case, and goes on when one fails.

    Takes the arguments of nnUNetPredictor. The steps of a case are `preprocess`, nnU-Net's
    `predict_logits_from_preprocessed_data` with another sliding window, and `export`.
    """

    on_case: OnCase | None = None
    """Called by `predict_from_files` when a case is done, with its seconds or its failure."""
    on_progress: OnProgress | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with redirect_stdout(io.StringIO()):  # it prints that only CUDA can do everything on the device
            super().__init__(*args, **kwargs)
        self._cases = self._predicted = self._windows = self._window = 0

    def predict_from_files(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = default_num_processes,
        num_processes_segmentation_export: int = default_num_processes,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
    ) -> Any:
        """Predict files as nnU-Net does, but time each case and go on when one fails.

        Images are listed without nnU-Net's twelve processes, label maps of a previous stage have the names of the
        outputs, and damaged results do not count as results. Without outputs, nnU-Net returns the label maps as arrays.
        """
        call = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        source, outputs = list_of_lists_or_source_folder, output_folder_or_list_of_truncated_output_files
        ending = self.dataset_json["file_ending"]
        if isinstance(source, str):
            source = [list(map(str, files)) for files in inputs.images_in(Path(source), ending).cases.values()]
        if outputs is None:
            return super().predict_from_files(**{**call, "list_of_lists_or_source_folder": source})
        if isinstance(outputs, str):
            cut = len(ending) + len("_0000")
            outputs = [str(Path(outputs, Path(files[0]).name[:-cut])) for files in source]
        if (stage := self.configuration_manager.previous_stage_name) is not None:
            folder = folder_with_segs_from_prev_stage
            names = [Path(output).name for output in outputs]
            inputs.check_previous_stage(stage, None if folder is None else Path(folder), names, ending)
        self.record_call(call)
        cases = inputs.cases_of_call(source, outputs, folder_with_segs_from_prev_stage, ending, part_id, num_parts)
        if self.verbose:
            inputs.tell_counts(len(source), len(cases), part_id, num_parts)
        if not overwrite:
            cases = inputs.unfinished(cases, ending, probabilities=save_probabilities)
        processes = num_processes_preprocessing, num_processes_segmentation_export
        with closing(self.predict_cases(cases, *processes, save_probabilities=save_probabilities)) as results:
            for case, result in results:
                if self.on_case is not None:
                    self.on_case(case, result)
        return None

    def record_call(self, call: Mapping[str, Any]) -> None:
        """Write nnU-Net's record of a call of `predict_from_files`, with dataset and plans, to the output folder.

        Args:
            call: arguments by name.
        """
        output = call["output_folder_or_list_of_truncated_output_files"]
        folder = Path(output if isinstance(output, str) else os.path.dirname(output[0]))
        folder.mkdir(parents=True, exist_ok=True)
        arguments = deepcopy(dict(call))
        recursive_fix_for_json_export(arguments)
        save_json(arguments, str(folder / "predict_from_raw_data_args.json"))
        save_json(self.dataset_json, str(folder / "dataset.json"), sort_keys=False)
        save_json(self.plans_manager.plans, str(folder / "plans.json"), sort_keys=False)

    def predict_cases(
        self, cases: Sequence[CaseFiles], preprocessing: int, exporting: int, *, save_probabilities: bool = False
    ) -> Generator[tuple[str, CaseTimes | CaseFailure], None, None]:
        """Preprocess, predict and export cases; yield the name of each finished one with its seconds or its failure.

        Args:
            cases: to predict.
            preprocessing: worker processes that read and preprocess; 0 for this process.
            exporting: worker processes that write results; likewise.
            save_probabilities: whether to write class probabilities as well.

        Raises:
            RuntimeError: if a worker process was killed.
        """
        model = PlannedModel(
            self.plans_manager, self.configuration_manager, self.dataset_json, self.verbose_preprocessing
        )
        self._cases, self._predicted = len(cases), 0
        exporting = min(exporting, len(cases))
        exports: Exports = {}
        with (
            worker_processes(exporting, model.prepare, killed=killed("-nps"), prints_to_stderr=True) as pool,
            closing(preprocess_cases(model, cases, preprocessing)) as arriving,
        ):
            for case, preprocessed in arriving:
                result = preprocessed if isinstance(preprocessed, CaseFailure) else self._logits(preprocessed, model)
                self._advance()
                if isinstance(result, CaseFailure):
                    yield case.name, result
                    continue
                yield from _exported(exports, at_most=exporting + QUEUED - 1)
                arguments = (model, case, result.logits, result.properties, save_probabilities)
                executor = pool if result.logits.nbytes <= SENT_BYTES else InThisProcess()
                exports[executor.submit(export, *arguments)] = case, result.seconds
                del preprocessed, result, arguments  # volumes: the next one comes before these names are used again
            yield from _exported(exports, at_most=0)
        compute_gaussian.cache_clear()
        empty_cache(self.device)

    def _logits(self, case: Preprocessed, model: PlannedModel) -> _Logits | CaseFailure:
        start = perf_counter()
        try:
            # On the CPU at the end, so that a GPU has done its work when the time is taken.
            logits = self.predict_logits_from_preprocessed_data(torch.from_numpy(case.data)).cpu().numpy()
        except Exception as error:
            return CaseFailure.of(error, model)
        give_back_freed_memory()  # the export has volumes of its own
        seconds = perf_counter() - start
        so_far = {"reading": case.reading, "preprocessing": case.preprocessing, "inference": seconds}
        return _Logits(logits, case.properties, so_far)

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


def _exported(exports: Exports, at_most: int) -> Iterator[tuple[str, CaseTimes | CaseFailure]]:
    """Yield the cases that are exported, and wait until no more than `at_most` are not."""
    while exports:
        block = len(exports) > at_most
        done, _ = wait(exports, timeout=None if block else 0, return_when=FIRST_COMPLETED)
        for future in done:
            case, seconds = exports.pop(future)
            result = future.result()
            yield case.name, result if isinstance(result, CaseFailure) else CaseTimes(**seconds, export=result)
        if not block:
            return


def load_predictor(
    model_folder: Path,
    folds: Sequence[int | str],
    checkpoint: str = "checkpoint_final.pth",
    *,
    device: torch.device = inputs.CUDA,
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
        raise shape_mismatch(error, f"{checkpoint} in {model_folder}") or error from None
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


def prepare_for_cpu(predictor: FMPredictor) -> None:
    """Lay out weights and memory for prediction on a CPU; afterwards no part of the network can be used by itself."""
    if predictor.device.type != "cpu":
        return
    keep_freed_memory()
    network = getattr(predictor.network, "_orig_mod", predictor.network)  # without the wrapper of a compiled one
    if isinstance(network, FoundationNetwork):  # which computes in bfloat16 where the processor gains from it
        prepack_weights(network)
