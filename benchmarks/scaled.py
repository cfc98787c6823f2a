"""What `benchmarks.scaling` measures: a case of a given size, preprocessed, predicted, exported or evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import dataset
from benchmarks.export import exporter
from benchmarks.harness import Side

Axis = Literal["slices", "classes", "channels", "pixels"]
Task = Callable[[], object]
TINY = (24, 24, 24)
"""Shape of the case that plans are made from, in voxels."""


@dataclass(frozen=True)
class Size:
    """Of one case; `edge` is that of its square slices in voxels, `classes` counts the background."""

    slices: int
    edge: int
    classes: int = 8
    channels: int = 1


@dataclass(frozen=True)
class Subject:
    """One kind of work.

    Args:
        name: of the row in picture and table.
        build: makes what is measured, for a side, a size and an empty folder, in a process of its own.
        base: the size of which one property is changed at a time.
        values: the values of each property; ``pixels`` are those of a slice, given as its edge.
        opponent: whether stock nnU-Net does the same.
    """

    name: str
    build: Callable[[Side, Size, Path], Task]
    base: Size
    values: dict[Axis, tuple[int, ...]]
    opponent: bool = True


def _plans(folder: Path, size: Size, planner: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and ``dataset.json`` for so many classes and channels."""
    dataset.write_dataset(folder, [TINY], (1.2, 1.2, 1.2), organs=size.classes - 1, channels=size.channels)
    plans = dataset.plan("FMPlans_scaling", planner, **options)
    description = folder / "nnUNet_raw" / dataset.NAME / "dataset.json"
    return plans, json.loads(description.read_text(encoding="utf-8"))


def preprocessing(side: Side, size: Size, folder: Path) -> Task:
    """A case of 1.2 mm to 1.5 mm: crop, normalisation, resampling, class locations; arrays to arrays."""
    import numpy as np
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_fm.hook import install

    install()
    plans, description = _plans(
        folder, size, "FMPlanner_stunet_s", spacing=[1.5] * 3, patch=[32, 32, 32], portable=side == "opponent"
    )
    image, labels = dataset.body((size.slices, size.edge, size.edge), 0, size.classes - 1)
    data = np.repeat(image[None].astype(np.float32), size.channels, axis=0)
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    work = configuration.preprocessor_class(verbose=False).run_case_npy
    labels = labels[None].astype(np.int16 if side == "ours" else np.float32)  # as each reads them
    return lambda: work(data, labels, {"spacing": [1.2] * 3}, manager, configuration, description)


def _prediction(side: Side, size: Size, folder: Path, planner: str, configuration_name: str, **options: Any) -> Task:
    """Logits of a preprocessed case by a network of random weights, windows half a patch apart, without mirroring."""
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_fm.hook import install
    from nnunet_fm.inference.predictor import FMPredictor
    from nnunet_fm.trainers import trainer_class

    install()
    torch.manual_seed(0)
    plans, description = _plans(folder, size, planner, **options)
    manager = PlansManager(plans)
    configuration = manager.get_configuration(configuration_name)
    network = trainer_class("fm_trainer_scratch").build_network_architecture(
        manager, configuration, size.channels, size.classes, False
    )
    arguments = {"use_mirroring": False, "perform_everything_on_device": False, "allow_tqdm": False}
    predictor: Any = (FMPredictor if side == "ours" else nnUNetPredictor)(device=torch.device("cpu"), **arguments)
    weights = [network.state_dict()]
    predictor.manual_initialization(network, manager, configuration, weights, description, "fm_trainer", None)
    image, _ = dataset.body((size.slices, size.edge, size.edge), 0, 8)
    data = torch.from_numpy(np.repeat((image[None] / 500).astype(np.float32), size.channels, axis=0))
    return lambda: predictor.predict_logits_from_preprocessed_data(data)


def prediction_3d(side: Side, size: Size, folder: Path) -> Task:
    """STU-Net S."""
    return _prediction(side, size, folder, "FMPlanner_stunet_s", "3d_fullres", spacing=[1.5] * 3, patch=[32, 64, 64])


def prediction_2d(side: Side, size: Size, folder: Path) -> Task:
    """DINOv2 S with a linear head, which no other part of the work hides."""
    return _prediction(side, size, folder, "FMPlanner_dinov2_s_linear", "2d", spacing=[1.5] * 2, patch=[112, 112])


def export(side: Side, size: Size, folder: Path) -> Task:
    """Logits to a label map in a file, a quarter finer along each axis."""
    import torch

    plans, description = _plans(folder, size, "FMPlanner_stunet_s", spacing=[1.5] * 3, patch=[32, 32, 32])
    shape = (size.slices, size.edge, size.edge)
    coarse = torch.randn(1, size.classes, *(edge // 8 for edge in shape), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0].numpy()
    return exporter(side, plans, description, logits, folder / side)


def _evaluation(side: Side, size: Size, folder: Path, metrics: tuple[str, ...]) -> Task:
    import numpy as np
    import SimpleITK as sitk
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_fm.metrics.folder import evaluate_folder

    _, labels = dataset.body((size.slices, size.edge, size.edge), 0, size.classes - 1)
    folders = folder / "predicted", folder / "reference"
    for place, array in zip(folders, (np.roll(labels, 2, axis=2), labels), strict=True):
        place.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), str(place / "case.nii"))
    names = {"background": 0, **{f"organ {label}": label for label in range(1, size.classes)}}
    if side == "ours":
        return lambda: evaluate_folder(*folders, names, file_ending=".nii", metrics=metrics)
    values = list(range(1, size.classes))
    predicted, reference = (str(place / "case.nii") for place in folders)
    return lambda: compute_metrics(reference, predicted, SimpleITKIO(), values)


def overlap(side: Side, size: Size, folder: Path) -> Task:
    """Dice and Jaccard of one case, read from files."""
    return _evaluation(side, size, folder, ("Dice", "Jaccard"))


def surfaces(side: Side, size: Size, folder: Path) -> Task:
    """All metrics, which nnU-Net has not: HD95 and surface Dice too."""
    return _evaluation(side, size, folder, ("Dice", "Jaccard", "HD95", "NSD"))


SUBJECTS = (
    Subject("preprocessing", preprocessing, Size(64, 192), {
        "slices": (32, 64, 128, 256), "classes": (2, 8, 32, 96), "channels": (1, 2, 4, 8),
        "pixels": (96, 192, 272, 384),
    }),
    Subject("prediction 3D", prediction_3d, Size(64, 96, 8), {
        "slices": (32, 64, 128, 256), "classes": (2, 8, 32, 96), "channels": (1, 2, 4, 8), "pixels": (64, 96, 128, 192),
    }),
    Subject("prediction 2D", prediction_2d, Size(16, 112), {
        "slices": (8, 16, 32, 64), "classes": (2, 8, 32, 96), "channels": (1, 2, 4, 8), "pixels": (112, 168, 224, 336),
    }),
    Subject("export", export, Size(64, 96), {
        "slices": (32, 64, 128, 256), "classes": (2, 8, 32, 96), "pixels": (64, 96, 136, 192),
    }),
    Subject("overlap", overlap, Size(64, 256), {
        "slices": (32, 64, 128, 256), "classes": (2, 8, 32, 96), "pixels": (128, 256, 360, 512),
    }),
    Subject("all metrics", surfaces, Size(64, 128), {
        "slices": (32, 64, 128, 256), "classes": (2, 8, 32, 96), "pixels": (64, 128, 184, 256),
    }, opponent=False),
)  # fmt: skip
