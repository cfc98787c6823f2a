"""The readers: each takes the bytes of a hostile file and a folder for it, and ends in a result or a documented error.

Whatever else it raises is a fault. That nothing is written outside the folder and that memory stays bounded is checked
by whoever calls them (`tests/fuzz/test_hostile.py`, and a sanitizer or limit of the fuzzer).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nnunet_fm.dataset_conversion.flat_hdf5 import flat_volumes
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid
from nnunet_fm.dataset_conversion.readers import read_hdf5, read_png_stack, read_volume
from nnunet_fm.dataset_conversion.skull import mask_file
from nnunet_fm.dataset_conversion.splits import read_split
from nnunet_fm.dataset_conversion.tree import Entry, Tree, open_tree
from nnunet_fm.dataset_conversion.writer import read_json as read_conversion
from nnunet_fm.hook.short_form import Plan, ShortFormError
from nnunet_fm.inference import inputs
from nnunet_fm.io.untrusted import read_yaml
from nnunet_fm.metrics.label_map import read_label_map
from nnunet_fm.metrics.labels import read_dataset_json, scored_classes
from nnunet_fm.metrics.scores_table import read_scores
from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.models.registry import grammar
from nnunet_fm.planfile.schema import KEY, STOCK_KEY, PlanError, PlanKey, StockKey
from nnunet_fm.planfile.untrusted import read_plans
from nnunet_fm.plans.geometry import converter_slice_axis
from nnunet_fm.records.prediction import FILE as TIMES
from nnunet_fm.records.prediction import PredictionTimes
from nnunet_fm.records.training import FILE as RECORD
from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.studies.schema import StudyError, read_study
from nnunet_fm.weights.add import opened
from nnunet_fm.weights.files import WeightsFileError, read_state_dict, read_trained
from nnunet_fm.weights.slim import BaseFileError, full_state_dict

Reader = Callable[[bytes, Path], None]


def _file(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def plans(content: bytes, folder: Path) -> None:
    """plans.json of a model folder."""
    file = _file(content, folder, "plans.json")
    with suppress(ValueError):
        read_plans(file)
    with suppress(ShortFormError):
        Plan.read(file)


def plan_key(content: bytes, folder: Path) -> None:
    """The extra keys of a plan."""
    try:
        key = json.loads(content)
    except (ValueError, RecursionError):
        return
    for read, name in ((PlanKey.read, KEY), (StockKey.read, STOCK_KEY)):
        with suppress(PlanError):
            read({name: key})


def names(content: bytes, folder: Path) -> None:
    """Names of trainers and planners."""
    word = content.decode("utf-8", "replace")
    for meaning in (grammar().trainer, grammar().planner):
        with suppress(UnknownNameError):
            meaning(word)


def card(content: bytes, folder: Path) -> None:
    """A model card."""
    with suppress(ValueError):
        ModelCard.model_validate(read_yaml(_file(content, folder, "card.yaml")))


def study(content: bytes, folder: Path) -> None:
    """A study file."""
    with suppress(StudyError):
        read_study(_file(content, folder, "study.yaml"))


def dataset_json(content: bytes, folder: Path) -> None:
    """dataset.json, where it is scored with and where it is predicted with, and the slice axis beside it."""
    file = _file(content, folder, "dataset.json")
    with suppress(ValueError):
        scored_classes(read_dataset_json(file)["labels"])
    with suppress(ValueError):
        inputs.read_dataset_json(file)
    with suppress(PlanError):
        converter_slice_axis(file, {"RAS": 3})


def weights(content: bytes, folder: Path) -> None:
    """A file of weights, alone or in an archive, and a trained checkpoint."""
    file = _file(content, folder, "weights.pth")
    with suppress(WeightsFileError, BaseFileError):
        full_state_dict(read_state_dict(file))
    with suppress(WeightsFileError, BaseFileError):
        full_state_dict(read_trained(file)["network_weights"])
    with suppress(ValueError), opened(file, {"model.pth"}) as (checkpoint, _):
        read_state_dict(checkpoint)


def archive(content: bytes, folder: Path) -> None:
    """A zip or tar of a dataset, listed and unpacked."""
    for ending in (".zip", ".tar"):
        file = _file(content, folder, f"source{ending}")
        scratch = folder / f"scratch{ending}"
        scratch.mkdir()
        with suppress(ConversionError):
            tree = open_tree(file, scratch)
            for number, name in enumerate(tree.entries):
                with suppress(Invalid):
                    tree.local(name, scratch / f"unpacked_{number}")


def hdf5(content: bytes, folder: Path) -> None:
    """An HDF5 file of several volumes, listed and read."""
    tree = Tree(folder, folder, {"a.hdf5": Entry(_file(content, folder, "a.hdf5"))})
    with suppress(Invalid):
        for volume in flat_volumes(tree, "a.hdf5", 0.7):
            for source in (volume.image, volume.label):
                read_hdf5(tree.local("a.hdf5"), "a.hdf5", **source.details)


def images(content: bytes, folder: Path) -> None:
    """An image of every format, in a conversion and as a label map."""
    for ending in (".nii", ".nii.gz", ".mgz", ".nrrd", ".mha", ".png", ".tif", ".gipl"):
        file = _file(content, folder, f"image{ending}")
        with suppress(Invalid):
            if ending == ".png":
                read_png_stack([file], ["image"], (1, 1, 1))
            elif ending not in (".tif", ".gipl"):
                read_volume(file, "image")
        with suppress(ValueError):
            read_label_map(file)


def tables(content: bytes, folder: Path) -> None:
    """What a user or an earlier run has left: splits, masks of cases, conversion.json, scores, times, records."""
    for ending in (".json", ".csv"):
        file = _file(content, folder, f"table{ending}")
        with suppress(ConversionError):
            read_split(file, {"a_1": "a", "b": "b"})
        with suppress(Invalid):
            mask_file(file, "a_1")
    read_conversion(file)
    with suppress(ValueError):
        read_scores(file)
    for name, read in ((RECORD, TrainingRecord.read), (TIMES, PredictionTimes.read)):
        _file(content, folder, name)
        with suppress(ValueError):
            read(folder)


READERS: dict[str, Reader] = {
    reader.__name__: reader
    for reader in (plans, plan_key, names, card, study, dataset_json, weights, archive, hdf5, images, tables)
}
