"""The two ends of a prediction, files to network input and logits to files, timed, in processes or in this one."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import traceback
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.data_iterators import PreprocessAdapter
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_fm.cpu.limits import threads
from nnunet_fm.inference.label_map import label_map
from nnunet_fm.io.atomic_write import partial_folder
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.image_faults import why
from nnunet_fm.io.image_files import check_whole, fault_of_result
from nnunet_fm.io.orphans import end_with_parent
from nnunet_fm.preprocessing.intensities import unlike_training
from nnunet_fm.preprocessing.whole_images import WholeImagesPlans

T = TypeVar("T")

THREADS = min(torch.get_num_threads(), threads(), default_num_processes)
"""Threads of an export: as many as nnU-Net's, but no more than cores, or than ``OMP_NUM_THREADS`` allows."""


@dataclass(frozen=True)
class Setting:
    """What both ends need to know of a model."""

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    verbose: bool = False

    @property
    def channels(self) -> int:
        """Image channels, without those that a cascade adds."""
        return len(channel_names(self.dataset_json))

    def doubts(self, images: np.ndarray) -> list[str]:
        """Why images ``(C, Z, Y, X)`` are probably of another modality than those of the training."""
        trained = self.plans.plans.get("foreground_intensity_properties_per_channel", {})
        channels = enumerate(zip(channel_names(self.dataset_json), images, strict=True))
        found = [unlike_training(name, trained.get(str(number), {}), image) for number, (name, image) in channels]
        return [reason for reason in found if reason]


@dataclass(frozen=True)
class Case:
    """A case's channel files, the label map of a cascade's previous stage, and where the result goes.

    ``output`` has no ending, as nnU-Net wants it.
    """

    files: Sequence[str]
    previous: str | None
    output: Path

    @property
    def name(self) -> str:
        return self.output.name


@dataclass(frozen=True)
class Preprocessed:
    """The network's input ``(C, Z, Y, X)`` in float32, what export needs to undo the preprocessing, and seconds."""

    data: np.ndarray
    properties: dict[str, Any]
    reading: float
    preprocessing: float


@dataclass(frozen=True)
class Failure:
    """Why a case has no result."""

    reason: str


class PreprocessedCases:
    """Cases in order, each read and preprocessed when it is asked for, or ahead of that by worker processes.

    Args:
        setting: of the model.
        cases: what to preprocess.
        processes: number of workers; each is at most two cases ahead. 0 works in this process.
    """

    def __init__(self, setting: Setting, cases: Sequence[Case], processes: int) -> None:
        self.setting = setting
        self.cases = cases
        self.processes = min(processes, len(cases))

    def __iter__(self) -> Generator[tuple[Case, Preprocessed | Failure], None, None]:
        ahead = max(1, 2 * self.processes)
        waiting: deque[tuple[Case, Future[Preprocessed | Failure]]] = deque()
        coming = iter(self.cases)
        with workers(self.processes, self.setting, "-npp") as pool:
            while True:
                while len(waiting) < ahead and (case := next(coming, None)) is not None:
                    waiting.append((case, pool.submit(preprocess, self.setting, case)))
                if not waiting:
                    return
                case, result = waiting.popleft()
                yield case, result.result()
                del result  # a volume that the next one need not lie beside


class InThisProcess(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def workers(processes: int, setting: Setting, flag: str) -> Iterator[Executor]:
    """An executor with so many spawned processes, or, for 0, this one.

    Args:
        processes: number of them.
        setting: of the model they will work for.
        flag: the option that sets their number, for messages.

    Raises:
        RuntimeError: if a process was killed.
    """
    if processes == 0:
        _prepare(setting)
        yield InThisProcess()
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(setting,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process ended without a word, probably killed for lack of memory: use fewer ({flag} 1), or none "
            f"({flag} 0); --continue_prediction keeps what is done"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(setting: Setting) -> None:
    end_with_parent()
    sys.stdout = sys.stderr  # standard output belongs to the command's own result
    _prepare(setting)


def _prepare(setting: Setting) -> None:
    """Have nnU-Net import now what it looks up by name, so that no case is charged for it."""
    _ = setting.plans.image_reader_writer_class, setting.configuration.preprocessor_class
    _ = setting.configuration.resampling_fn_data, setting.configuration.resampling_fn_probabilities


def preprocess(setting: Setting, case: Case) -> Preprocessed | Failure:
    """Read and preprocess one case as nnU-Net does."""
    preprocessor = setting.configuration.preprocessor_class(verbose=setting.verbose)
    stock = preprocessor.run_case_npy
    was_read = math.inf

    def run_case_npy(images: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        # nnU-Net calls this with what it has just read: all before is reading, all after is preprocessing.
        nonlocal was_read
        was_read = perf_counter()
        if len(images) != setting.channels:
            raise ValueError(f"{len(images)} channels, but the model was trained with {setting.channels}")
        for warning in setting.doubts(images):
            print(f"WARNING: {case.name}: {warning}", file=sys.stderr)
        return stock(images, *args, **kwargs)

    preprocessor.run_case_npy = run_case_npy
    adapter = PreprocessAdapter(
        [list(case.files)], [case.previous], preprocessor, [str(case.output)], WholeImagesPlans(setting.plans),
        setting.dataset_json, setting.configuration,
    )  # fmt: skip
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):  # readers print what is wrong with a file, and raise an error without a message
            start = perf_counter()
            item = next(adapter)
            data = np.ascontiguousarray(item["data"].numpy(), dtype=np.float32)
            end = perf_counter()
            was_read = min(was_read, end)
    except Exception as error:
        return failure(error, setting, printed.getvalue())
    print(printed.getvalue(), end="", file=sys.stderr)
    if spoiled := [file for file, channel in zip(case.files, data, strict=False) if not np.isfinite(channel.sum())]:
        # The network would make one label of the whole image, or noise.
        names = ", ".join(os.path.basename(file) for file in spoiled)
        return Failure(f"{names} has voxels that are NaN or infinite: replace them, say by the value of air")
    return Preprocessed(data, item["data_properties"], was_read - start, end - was_read)


def export(
    setting: Setting, case: Case, logits: np.ndarray, properties: dict[str, Any], save_probabilities: bool
) -> float | Failure:
    """Write one case's result from its logits ``(K, Z, Y, X)`` as nnU-Net does; returns the seconds it took.

    Label maps come from `label_map` where that knows the plan's resampling; probabilities always go nnU-Net's way.
    The files appear under their names when they are complete, the label map last.
    """
    start = perf_counter()
    try:
        with partial_folder(case.output) as partial:
            _export(setting, case, logits, properties, save_probabilities, partial)
    except Exception as error:
        return failure(error, setting)
    return perf_counter() - start


def _export(
    setting: Setting,
    case: Case,
    logits: np.ndarray,
    properties: dict[str, Any],
    save_probabilities: bool,
    partial: Path,
) -> None:
    """Write a case's files into a folder, then move them to their places."""
    name = case.name + setting.dataset_json["file_ending"]
    labels = setting.plans.get_label_manager(setting.dataset_json)
    segmentation = None
    if not save_probabilities:
        with _all_threads():
            segmentation = label_map(logits, properties, setting.configuration, setting.plans, labels)
    if segmentation is None:
        export_prediction_from_logits(
            logits, properties, setting.configuration, setting.plans, setting.dataset_json,
            str(partial / case.name), save_probabilities,
        )  # fmt: skip
    else:
        setting.plans.image_reader_writer_class().write_seg(segmentation, str(partial / name), properties)
    _check_written(setting, partial / name)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == name):
        os.replace(file, case.output.with_name(file.name))


def has_result(output: Path, ending: str, image: Path, probabilities: bool) -> bool:
    """Whether a case has been predicted; what is there but not whole is named and does not count.

    Args:
        output: of the case, without an ending.
        ending: of label maps.
        image: of the case.
        probabilities: whether these are wanted too.
    """
    label_map = output.with_name(output.name + ending)
    archive = output.with_name(output.name + ".npz")
    if not label_map.is_file() or (probabilities and not archive.is_file()):
        return False
    fault = fault_of_result(label_map, image)
    if fault is None and probabilities and not _is_whole_archive(archive):
        fault = f"{archive.name} is damaged or cut off"
    if fault is not None:
        print(f"WARNING: {output.name} is predicted again: {fault}", file=sys.stderr)
    return fault is None


def _is_whole_archive(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def _check_written(setting: Setting, file: Path) -> None:
    """Raise an OSError for a label map that is not whole: SimpleITK's writer says nothing when the disk is full."""
    try:
        if not check_whole(file):
            setting.plans.image_reader_writer_class().read_seg(str(file))
    except Exception:
        free = shutil.disk_usage(file.parent).free
        raise OSError(
            f"its label map cannot be written whole, the disk has {free / 1e9:.1f} GB left: make room and predict "
            "again with --continue_prediction"
        ) from None


@contextmanager
def _all_threads() -> Iterator[None]:
    """The threads that PyTorch started with: beside a GPU, prediction leaves it a single one."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def failure(error: Exception, setting: Setting, printed: str = "") -> Failure:
    """The error in one line: it may be of a class that cannot be sent from one process to another."""
    if setting.verbose:
        traceback.print_exception(error)
    return Failure(why(error, printed))
