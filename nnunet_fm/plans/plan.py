"""Values of planning: a dataset, a decision with its origin and reasons, and a plan as nnU-Net's JSON.

This is the only file of planning with keys of nnU-Net's plan files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_fm.models.build import Architecture
from nnunet_fm.models.registry import get_card
from nnunet_fm.planfile.schema import KEY, PlanKey
from nnunet_fm.planfile.trained_model import Source
from nnunet_fm.plans.intensity import Normalization
from nnunet_fm.preprocessing.orientation import dataset_orientations
from nnunet_fm.preprocessing.preprocessor import data_identifier

AXIS_NAMES = ("z", "y", "x")
STOCK_RESAMPLING = "resample_data_or_seg_to_shape"
DATA_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
SEG_RESAMPLING = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
PROBABILITY_RESAMPLING = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
"""Arguments of nnU-Net's own torch planner for ``resample_torch_fornnunet``, 5 times as fast as the default."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Decision(Generic[Value]):
    """A planned value with its origin and reasons.

    Attributes:
        value: the planned value; None for an observation.
        origin: origin of the value, see `PlanKey.origin`; empty for an observation.
        reasons: subject -> sentence, as printed and written into the plan.
        warnings: sentences for standard error.
    """

    value: Value
    origin: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def observation(subject: str, sentence: str | None, *, warn: bool = False) -> Decision[None]:
    """A decision without a value, which only adds a sentence to the plan, and a warning if ``warn``."""
    if not sentence:
        return Decision(None)
    return Decision(None, reasons={subject: sentence}, warnings=(sentence,) if warn else ())


def origins(**choices: Decision[Any]) -> dict[str, str]:
    """Name -> origin, of decisions with an origin."""
    return {name: choice.origin for name, choice in choices.items() if choice.origin}


def merge_reasons(*choices: Decision[Any]) -> dict[str, str]:
    """Merge the reasons of all decisions; a later sentence on the same subject replaces the earlier one."""
    return {subject: reason for choice in choices for subject, reason in choice.reasons.items()}


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset.

    Attributes:
        name: name of its folder in ``nnUNet_raw``.
        json: content of ``dataset.json``.
        cases: name -> ``{"images": [a file for each channel], "label": file}``.
        reader: name of nnU-Net's reader of the images.
        fingerprint: nnU-Net's fingerprint.
    """

    name: str
    json: Mapping[str, Any]
    cases: Mapping[str, dict[str, Any]]
    reader: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    @property
    def raw(self) -> Path:
        """Folder of the images."""
        return Path(nnUNet_raw, self.name)

    @property
    def conversion(self) -> Path:
        """File that a converter may have left beside the images."""
        return self.raw / "conversion.json"

    @cached_property
    def orientations(self) -> Counter[str]:
        """Axis codes of the training images with counts, see `dataset_orientations`."""
        return dataset_orientations(self.cases, self.reader)

    def shapes(self, axes: Sequence[int]) -> list[list[int]]:
        """Shapes of all cropped images in voxels, their axes in this order."""
        return [[shape[a] for a in axes] for shape in self.fingerprint["shapes_after_crop"]]

    def spacings(self, axes: Sequence[int]) -> list[list[float]]:
        """Spacings of all images in mm, their axes in this order."""
        return [[float(spacing[a]) for a in axes] for spacing in self.fingerprint["spacings"]]


@dataclass(frozen=True)
class TargetGrid:
    """Target spacing in mm and shape of the median image in voxels at this spacing, for the axes of a patch."""

    spacing: list[float]
    image: list[int]


@dataclass(frozen=True)
class ModelPlan:
    """A complete plan.

    Attributes:
        data: the training dataset.
        name: name of the plan file.
        axes: order of the image axes, indices into (z, y, x).
        configuration: name of the only configuration.
        entry: content of this configuration, without its data identifier.
        key: our extra key.
        planner: name of the planner's class.
        properties: intensities of the foreground, by channel.
        inherited: plan of the source model, in place of planner and properties.
    """

    data: RawDataset
    name: str
    axes: Sequence[int]
    configuration: str
    entry: Mapping[str, Any]
    key: PlanKey
    planner: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)
    inherited: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Content of the plan file."""
        spacings, shapes = np.vstack(self.data.spacings(self.axes)), np.vstack(self.data.shapes(self.axes))
        kept = {k: v for k, v in (self.inherited or {}).items() if k not in (KEY, "continue_training")}
        plans: dict[str, Any] = {
            **kept,
            "dataset_name": self.data.name,
            "plans_name": self.name,
            "original_median_spacing_after_transp": np.median(spacings, axis=0).tolist(),
            "original_median_shape_after_transp": np.median(shapes, axis=0).round().astype(int).tolist(),
            "image_reader_writer": self.data.reader,
            "transpose_forward": list(self.axes),
            "transpose_backward": [list(self.axes).index(axis) for axis in range(3)],
            "configurations": {self.configuration: {**self.entry}},
        }
        if self.inherited is None:
            plans["experiment_planner_used"] = self.planner
            plans["label_manager"] = "LabelManager"
            plans["foreground_intensity_properties_per_channel"] = self.properties
        identifier = data_identifier(plans, self.configuration)
        plans["configurations"][self.configuration]["data_identifier"] = identifier
        plans[KEY] = self.key.model_dump()
        recursive_fix_for_json_export(plans)
        return plans


def new_entry(
    grid: TargetGrid, patch: list[int], batch: int, intensities: Normalization, network: Architecture, *, portable: bool
) -> dict[str, Any]:
    """Configuration of a new plan.

    Args:
        grid: of the network.
        patch: in voxels.
        batch: patches per iteration.
        intensities: normalisation of the channels.
        network: the ``architecture`` entry.
        portable: whether stock nnU-Net preprocesses the data.
    """
    return {
        "data_identifier": "",
        "preprocessor_name": "DefaultPreprocessor" if portable else "FMPreprocessor",
        "batch_size": batch,
        "patch_size": patch,
        "median_image_size_in_voxels": [float(size) for size in grid.image],
        "spacing": grid.spacing,
        "normalization_schemes": intensities.schemes,
        "use_mask_for_norm": intensities.use_mask,
        "resampling_fn_data": STOCK_RESAMPLING if portable else "fm_resample_data_to_shape",
        "resampling_fn_seg": STOCK_RESAMPLING if portable else "fm_resample_seg_to_shape",
        "resampling_fn_data_kwargs": {**DATA_RESAMPLING},
        "resampling_fn_seg_kwargs": {**SEG_RESAMPLING},
        "resampling_fn_probabilities": "resample_torch_fornnunet",
        "resampling_fn_probabilities_kwargs": {**PROBABILITY_RESAMPLING},
        "architecture": network,
        "batch_dice": len(patch) == 2,
    }


def source_entry(source: Source) -> dict[str, Any]:
    """Configuration of a trained model; that of a stock plan gets our preprocessor.

    With the stock preprocessor its data would share a folder with those of the target's own plans.
    """
    entry = source.entry
    if source.key is None:
        entry["preprocessor_name"] = "FMPreprocessor"
    return entry


def summary(plans: Mapping[str, Any]) -> str:
    """Print form of a plan: each value with its origin, then the reasons."""
    key = plans[KEY]
    card, origin = get_card(key["model"]), key["origin"]
    entry = plans["configurations"][card.configuration]
    lines = [
        f"{card.title} on {plans['dataset_name']}, configuration {card.configuration}:",
        f"  spacing     {entry['spacing']} mm  [{origin['spacing']}]",
        f"  patch size  {entry['patch_size']}  [{origin['patch_size']}]",
        f"  batch size  {entry['batch_size']}  [{origin['batch_size']}]",
        f"  iterations  {key['iterations']}  [{origin['iterations']}]",
    ]
    if key["epochs"]:
        lines.append(f"  epochs      {key['epochs']}")
    if key["train_cases"]:
        lines.append(f"  cases       {key['train_cases']} of each fold's training cases")
    first, axes = 3 - card.dim, key["recipe"]["mirror"]
    names = [AXIS_NAMES[plans["transpose_forward"][first + axis]] for axis in axes]
    lines += [
        f"  intensities {', '.join(entry['normalization_schemes'])}",
        f"  mirroring   {', '.join(names) or 'none'}  [{origin['mirror']}]",
    ]
    return "\n".join((*lines, *(f"  {subject}: {reason}" for subject, reason in key["reasons"].items())))
