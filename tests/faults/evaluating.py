"""Faults of predictions and references that are scored."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.faults.registry import Bench, Seen, cut_in_half, fault
from tests.helpers.datasets import write_image

STAGE = "Evaluating"


def folders(at: Bench) -> tuple[Path, Path]:
    """Predictions that equal their references."""
    references = at.dataset() / "labelsTr"
    return shutil.copytree(references, at.root / "predictions"), references


def refused(at: Bench, predictions: Path, references: Path, *more: str) -> Seen:
    with at.unchanged():
        seen = at.fails(
            "evaluate", predictions, references, "-djfile", references.parent / "dataset.json", "-np", "1", *more
        )
    return seen


@fault(
    STAGE,
    "A case has no prediction.",
    happens="refused, exit code 1",
    keeps="all files; no table of a part is written",
    code="predictions-missing",
)
def a_missing_prediction(at: Bench) -> Seen:
    predictions, references = folders(at)
    (predictions / "case_01.nii.gz").unlink()
    return refused(at, predictions, references)


@fault(
    STAGE,
    "A prediction has another size than its reference.",
    happens="refused, exit code 1",
    keeps="all files; no table of a part is written",
    code="grid-differs",
)
def a_prediction_of_another_size(at: Bench) -> Seen:
    predictions, references = folders(at)
    write_image(predictions / "case_01.nii.gz", np.zeros((3, 4, 5), np.uint8), (1, 1, 1))
    return refused(at, predictions, references)


@fault(
    STAGE,
    "A prediction is cut off.",
    happens="refused, exit code 1",
    keeps="all files; no table of a part is written",
    code="image-damaged",
)
def a_prediction_cut_off(at: Bench) -> Seen:
    predictions, references = folders(at)
    cut_in_half(predictions / "case_01.nii.gz")
    return refused(at, predictions, references)


@fault(
    STAGE,
    "A prediction has probabilities instead of labels.",
    happens="refused, exit code 1",
    keeps="all files; no table of a part is written",
    code="labels-fraction",
)
def a_prediction_of_fractions(at: Bench) -> Seen:
    predictions, references = folders(at)
    write_image(predictions / "case_01.nii.gz", np.full((8, 10, 9), 0.5, np.float32), (1, 1, 1))
    return refused(at, predictions, references)


@fault(
    STAGE,
    "The folder of predictions is empty.",
    happens="refused, exit code 1",
    keeps="all files; no table of a part is written",
    code="predictions-missing",
)
def an_empty_folder_of_predictions(at: Bench) -> Seen:
    predictions, references = folders(at)
    shutil.rmtree(predictions)
    predictions.mkdir()
    return refused(at, predictions, references)


@fault(
    STAGE,
    "The table is to be written into a folder that is read-only.",
    happens="refused, exit code 1",
    keeps="all files; no table of a part is written",
    code="file-not-written",
)
def a_table_into_a_read_only_folder(at: Bench) -> Seen:
    predictions, references = folders(at)
    (at.root / "out").mkdir()
    with at.read_only(at.root / "out"):
        return refused(at, predictions, references, "-o", str(at.root / "out" / "scores.csv"))
