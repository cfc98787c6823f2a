"""Preprocessing of a prediction: image files to the input of the network, timed, in worker processes or in this one."""

from __future__ import annotations

import io
import math
import os
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from nnunetv2.inference.data_iterators import PreprocessAdapter

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.inference.cases import CaseFailure, CaseFiles, PlannedModel, killed
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.worker_processes import worker_processes
from nnunet_fm.preprocessing.intensities import unlike_training
from nnunet_fm.preprocessing.whole_images import WholeImagesPlans


@dataclass(frozen=True)
class Preprocessed:
    """One preprocessed case.

    Attributes:
        data: input of the network, ``(C, Z, Y, X)`` in float32.
        properties: what export needs to undo the preprocessing.
        reading: seconds from files to arrays.
        preprocessing: seconds from arrays to the input of the network.
    """

    data: np.ndarray
    properties: dict[str, Any]
    reading: float
    preprocessing: float


def preprocess_cases(
    model: PlannedModel, cases: Sequence[CaseFiles], processes: int
) -> Generator[tuple[CaseFiles, Preprocessed | CaseFailure], None, None]:
    """Yield the cases in order with their preprocessed images.

    Args:
        model: whose plans say how.
        cases: to preprocess.
        processes: number of workers, each at most two cases ahead; 0 works in this process, when a case is asked for.

    Raises:
        RuntimeError: if a process was killed.
    """
    processes = min(processes, len(cases))
    ahead = max(1, 2 * processes)
    waiting: deque[tuple[CaseFiles, Future[Preprocessed | CaseFailure]]] = deque()
    coming = iter(cases)
    with worker_processes(processes, model.prepare, killed=killed("-npp"), prints_to_stderr=True) as pool:
        while True:
            while len(waiting) < ahead and (case := next(coming, None)) is not None:
                waiting.append((case, pool.submit(preprocess, model, case)))
            if not waiting:
                return
            case, result = waiting.popleft()
            yield case, result.result()
            del result  # a volume that the next one need not lie beside


def preprocess(model: PlannedModel, case: CaseFiles) -> Preprocessed | CaseFailure:
    """Read and preprocess one case as nnU-Net does, and time both."""
    preprocessor = model.configuration.preprocessor_class(verbose=model.verbose)
    stock = preprocessor.run_case_npy
    was_read = math.inf

    def run_case_npy(images: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        # nnU-Net calls this with what it has just read: all before is reading, all after is preprocessing.
        nonlocal was_read
        was_read = perf_counter()
        if len(images) != len(channels := channel_names(model.dataset_json)):  # without those that a cascade adds
            raise InvalidValueError(
                f"{len(images)} channels, but the model was trained with {len(channels)}", code="channels-count"
            )
        for warning in doubts(model, images):
            print(f"WARNING: {case.name}: {warning}", file=sys.stderr)
        return stock(images, *args, **kwargs)

    preprocessor.run_case_npy = run_case_npy
    adapter = PreprocessAdapter(
        [list(case.files)], [case.previous], preprocessor, [str(case.output)], WholeImagesPlans(model.plans),
        model.dataset_json, model.configuration,
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
        return CaseFailure.of(error, model, printed.getvalue())
    print(printed.getvalue(), end="", file=sys.stderr)
    if spoiled := [file for file, channel in zip(case.files, data, strict=False) if not np.isfinite(channel.sum())]:
        # The network would make one label of the whole image, or noise.
        names = ", ".join(os.path.basename(file) for file in spoiled)
        return CaseFailure(f"{names} has voxels that are NaN or infinite: replace them, say by the value of air")
    return Preprocessed(data, item["data_properties"], was_read - start, end - was_read)


def doubts(model: PlannedModel, images: np.ndarray) -> list[str]:
    """Return reasons to think that an image ``(C, Z, Y, X)`` is of another modality than the training images."""
    trained = model.plans.plans.get("foreground_intensity_properties_per_channel", {})
    channels = enumerate(zip(channel_names(model.dataset_json), images, strict=True))
    found = [unlike_training(name, trained.get(str(number), {}), image) for number, (name, image) in channels]
    return [reason for reason in found if reason]
