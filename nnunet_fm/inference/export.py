"""Export of a prediction: logits to the files of a result, timed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits

from nnunet_fm.cpu.limits import threads
from nnunet_fm.errors import WriteError
from nnunet_fm.inference.cases import CaseFailure, CaseFiles, PlannedModel
from nnunet_fm.inference.label_map import label_map
from nnunet_fm.io.atomic_write import partial_folder
from nnunet_fm.io.image_files import check_not_truncated
from nnunet_fm.io.messages import space_left

THREADS = min(torch.get_num_threads(), threads(), default_num_processes)
"""Threads of an export: as many as nnU-Net's, but no more than cores, or than ``OMP_NUM_THREADS`` allows."""


def export(
    model: PlannedModel, case: CaseFiles, logits: np.ndarray, properties: dict[str, Any], save_probabilities: bool
) -> float | CaseFailure:
    """Write one case's result from its logits ``(K, Z, Y, X)`` as nnU-Net does; returns the seconds it took.

    Label maps come from `label_map` where that knows the plan's resampling; probabilities always go nnU-Net's way.
    The files appear under their names when they are complete, the label map last.
    """
    start = perf_counter()
    try:
        with partial_folder(case.output) as partial:
            _export(model, case, logits, properties, save_probabilities, partial)
    except Exception as error:
        return CaseFailure.of(error, model)
    return perf_counter() - start


def _export(
    model: PlannedModel,
    case: CaseFiles,
    logits: np.ndarray,
    properties: dict[str, Any],
    save_probabilities: bool,
    partial: Path,
) -> None:
    """Write a case's files into a folder, then move them to their places."""
    name = case.name + model.dataset_json["file_ending"]
    labels = model.plans.get_label_manager(model.dataset_json)
    segmentation = None
    if not save_probabilities:
        with _all_threads():
            segmentation = label_map(logits, properties, model.configuration, model.plans, labels)
    if segmentation is None:
        export_prediction_from_logits(
            logits, properties, model.configuration, model.plans, model.dataset_json,
            str(partial / case.name), save_probabilities,
        )  # fmt: skip
    else:
        model.plans.image_reader_writer_class().write_seg(segmentation, str(partial / name), properties)
    _check_written(model, partial / name)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == name):
        os.replace(file, case.output.with_name(file.name))


def _check_written(model: PlannedModel, file: Path) -> None:
    """Raise an OSError for a label map that is not whole: SimpleITK's writer says nothing when the disk is full."""
    try:
        if not check_not_truncated(file):
            model.plans.image_reader_writer_class().read_seg(str(file))
    except Exception:
        raise WriteError(
            f"its label map cannot be written whole, {space_left(file.parent)}: make room and predict "
            "again with --continue_prediction",
            code="prediction-not-written",
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
