"""Prediction of a folder or of listed cases: everything checked first, label maps as nnU-Net's, times beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_fm.cpu.limits import startable, threads, usable_cores
from nnunet_fm.inference import inputs
from nnunet_fm.inference.inputs import PredictionInputError
from nnunet_fm.inference.predictor import CUDA, OnCase, OnProgress, load_predictor, only_predict
from nnunet_fm.inference.workers import Failure
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.image_folders import left_out_words
from nnunet_fm.records.machine import processor_name
from nnunet_fm.records.prediction import CaseTimes, PredictionTimes, device_name

ALL_FOLDS = (0, 1, 2, 3, 4)
COLOUR_READERS = ("NaturalImage2DIO",)
"""nnU-Net's readers that may find several channels in one file."""


class PredictionError(RuntimeError):
    """Some cases could not be predicted, or some files of the input folder are no cases; all others were predicted."""

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
    loading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PredictionTimes:
    """Predict cases and write nnU-Net's label maps, and ``prediction_times.json``, to a folder.

    Args:
        model_folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>``.
        images: a folder in nnU-Net's layout, an image in it (with its other channels), or the channel files of each
            case. Images of models that read one file per case need no channel number in their names.
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
        loading: makes the context in which the model's code is imported and its weights are loaded.

    Returns:
        What the folder's file of times holds now.

    Raises:
        PredictionInputError: for anything wrong with what was given, before anything is written.
        PredictionError: if cases failed or files of the folder are no cases, after all others were predicted.
    """
    model_folder, output = Path(model_folder), Path(output)
    if not 0 <= part_id < num_parts:
        raise PredictionInputError(f"-part_id {part_id} is not one of -num_parts {num_parts}: parts count from 0")
    if not 0 < tile_step_size <= 1:
        raise PredictionInputError(f"-step_size {tile_step_size} is not in (0, 1]")
    inputs.check_device(device)
    inputs.check_model_folder(model_folder, folds, checkpoint)
    dataset_json = inputs.read_dataset_json(model_folder / "dataset.json")
    ending = dataset_json["file_ending"]
    reader = PlansManager(str(model_folder / "plans.json")).image_reader_writer_class()
    folder = Path(images) if isinstance(images, (str, os.PathLike)) else None
    left_out: dict[str, str] = {}
    if folder is not None:
        one_file = len(channel_names(dataset_json)) == 1 or type(reader).__name__ in COLOUR_READERS
        listed = inputs.images_in(folder, ending, numbered=not one_file)
        found, left_out = listed.cases, listed.left_out
        if cases is not None:  # who names the cases leaves the others out on purpose
            found, left_out = inputs.only(found, cases, folder), {}
        if left_out:
            print(f"WARNING: not predicted: {left_out_words(left_out)}", file=sys.stderr)
    else:
        found = inputs.named(images, cases, ending)  # type: ignore[arg-type]
    inputs.check_channels(found, dataset_json, reader, numbered=folder is not None)
    inputs.check_output(output, folder if folder is None or folder.is_dir() else folder.parent)
    PredictionTimes.read(output)
    with loading():
        predictor = load_predictor(
            model_folder, folds, checkpoint, device=device, tile_step_size=tile_step_size, mirroring=mirroring,
            on_device=on_device, verbose=verbose, checked=True,
        )  # fmt: skip
    only_predict(predictor)
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
        # Then nnU-Net's record of the call has the folder's name, as usual.
        whole = (
            folder is not None and folder.is_dir() and cases is None and all(map(_is_numbered, found, found.values()))
        )
        preprocessing, exporting = default_processes(len(mine))
        preprocessing = preprocessing if processes_preprocessing is None else processes_preprocessing
        exporting = exporting if processes_export is None else processes_export
        if not startable(max(preprocessing, exporting), 0):
            preprocessing = exporting = 0
        predictor.predict_from_files(
            str(folder) if whole else [[str(file) for file in files] for files in found.values()],
            str(output) if whole else [str(output / name) for name in found],
            save_probabilities,
            overwrite,
            preprocessing,
            exporting,
            None if previous_stage is None else str(previous_stage),
            num_parts,
            part_id,
        )
    together = PredictionTimes.read(output) or times
    if failed or left_out:
        raise PredictionError(failed, together, left_out)
    return together


def _is_numbered(case: str, files: Sequence[Path]) -> bool:
    """Whether the first file of a case has a channel's number in its name, as nnU-Net's own listing needs it."""
    return files[0].name.startswith(f"{case}_0000")


def default_processes(cases: int) -> tuple[int, int]:
    """Worker processes for preprocessing and for export where the user does not say.

    ``nnUNet_npp`` and ``nnUNet_nps`` as in nnU-Net, else its three each where the processor has a core for every one
    and for the network, fewer on smaller machines, and none for a single case, which nothing could run beside.
    """
    each = min(3, (usable_cores() - 1) // 2) if cases > 1 else 0
    preprocessing, exporting = (os.environ.get(name, "") for name in ("nnUNet_npp", "nnUNet_nps"))
    return (
        int(preprocessing) if preprocessing.isdigit() else each,
        int(exporting) if exporting.isdigit() else each,
    )


@contextmanager
def _threads(device: torch.device) -> Iterator[None]:
    """PyTorch's threads as nnU-Net's command sets them: all cores for a CPU, one beside a GPU.

    ``OMP_NUM_THREADS`` and the limits of a container are respected, though: threads that wait for a core are slower
    than fewer threads.
    """
    before = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    elif device.type == "cpu":
        torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
