"""Find dataset.json, labels and training cases from the files in and around folders of predictions and references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.metrics.label_map import label_map_files, read_label_map
from nnunet_fm.metrics.labels import BACKGROUND
from nnunet_fm.metrics.parallel import Progress, over_files
from nnunet_fm.records.training import TrainingRecord

DATASET_JSON = "dataset.json"

_PREDICTED = ("predict_from_raw_data_args.json", "prediction_times.json", "plans.json", "summary.json")
"""Files that prediction and nnU-Net's evaluation write beside predictions, and that no folder of references has."""

_REFERENCES = ("labelsTr", "labelsTs", "labelsVal", "gt_segmentations")


def find_dataset_json(predictions: Path, references: Path) -> Path | None:
    """Find ``dataset.json`` beside the references, in the folder above, or beside the predictions; None without one."""
    places = (references, references.resolve().parent, predictions)
    return next((place / DATASET_JSON for place in places if (place / DATASET_JSON).is_file()), None)


def find_training_labels(references: Path, file_ending: str) -> Path | None:
    """Find ``labelsTr`` of the references' dataset, which may be the references themselves; None without one."""
    folder = references.resolve().parent / "labelsTr"
    return folder if folder.is_dir() and label_map_files(folder, file_ending) else None


def find_labels(
    references: Path, file_ending: str, *, processes: int = 1, progress: Progress | None = None
) -> dict[str, int]:
    """Collect the labels of all references, in the form of ``dataset.json``: each class is named by its number.

    Raises:
        ValueError: if there are none above 0.
    """
    files = [(file,) for file in label_map_files(references, file_ending).values()]
    found = sorted({label for labels in over_files(_labels_of, files, processes, progress) for label in labels})
    if not found:
        raise InvalidValueError(
            f"the references in {references} have no label but the background: there is nothing to score",
            code="classes-none",
        )
    return {BACKGROUND: 0} | {str(label): label for label in found}


def trained_on(predictions: Path, cases: Sequence[str]) -> list[str]:
    """Cases that the model was trained on, if the folder is the validation folder of a fold; else none."""
    try:
        record = (
            TrainingRecord.read(predictions.resolve().parent) if predictions.resolve().name == "validation" else None
        )
    except ValueError:  # of another version
        record = None
    seen = set() if record is None else set(record.seen[record.dataset])
    return [case for case in cases if case in seen]


def swapped(predictions: Path, references: Path) -> str | None:
    """Reason why the two folders seem to be given in the wrong order; None if they do not."""
    found = [name for name in _PREDICTED if (references / name).is_file()]
    if found and not any((predictions / name).is_file() for name in _PREDICTED):
        return f"{references} has the file {found[0]} of predictions, and {predictions} has none such"
    if predictions.resolve().name in _REFERENCES and references.resolve().name not in _REFERENCES:
        return f"{predictions} has the name of a folder of references, and {references} has not"
    return None


def _labels_of(file: Path) -> set[int]:
    array = read_label_map(file).array
    return {label for plane in array for label in np.unique(plane).tolist() if label > 0}
