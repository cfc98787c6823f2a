"""Plans that adapt a trained model to another dataset: geometry, intensities and network of the source.

An epoch is a pass over the fold's training cases of the target: over their slices for a 2D model, over as many patches
as hold their voxels for a 3D one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from pydantic import ValidationError

from nnunet_fm.adaptation.trained_part import train_only
from nnunet_fm.data.folds import read_folds
from nnunet_fm.data.patients import seen_cases
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name, dataset_number
from nnunet_fm.io.messages import validation_faults
from nnunet_fm.models.build import build_network
from nnunet_fm.models.card import Recipe
from nnunet_fm.models.names import PLANS_PREFIX, TRAINER_PREFIX
from nnunet_fm.planfile.eval_datasets import differences
from nnunet_fm.planfile.schema import ADAPTATION_EPOCHS, KEY, Adaptation, PlanError, PlanKey, changed_recipe
from nnunet_fm.planfile.trained_model import Source, read_source
from nnunet_fm.planfile.write import save_plans, write_json
from nnunet_fm.plans.mirroring import Data, choose_mirroring
from nnunet_fm.plans.slices import converter_slice_axis, count_iterations, on_dataset, samples_by_fold
from nnunet_fm.preprocessing.fingerprint import fingerprint
from nnunet_fm.preprocessing.orientation import dataset_orientations
from nnunet_fm.preprocessing.preprocessor import data_identifier
from nnunet_fm.preprocessing.raw import check_channels, read_dataset_json, training_cases

Method = Literal["selftraining", "entropymin"]

LABELLED = 3
"""Volumes with labels in self-training, as published."""
RATE_3D = 0.1
"""Of the source's learning rate, for 3D models, which nobody has published adaptations of: ours."""


@dataclass
class AdaptOptions:
    """What `nnunet-fm adapt` can change; None leaves the choice to the method."""

    method: Method
    fold: str = "0"
    checkpoint: str | None = None
    labelled: int | None = None
    labelled_cases: list[str] = field(default_factory=list)
    confidence: float = 0.9
    update_every: int = 1
    teacher_momentum: float | None = None
    epochs: int | None = None
    iterations: int | None = None
    train: Literal["head", "adapter", "all"] = "head"
    faithful: bool = False
    name: str | None = None
    seed: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    force: bool = False
    processes: int = 2


@dataclass(frozen=True)
class _Target:
    """The dataset that a model is adapted to, by its name."""

    name: str

    @property
    def raw(self) -> Path:
        return Path(nnUNet_raw, self.name)

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        return read_dataset_json(self.raw)

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        return training_cases(self.raw, self.dataset_json)

    @cached_property
    def reader(self) -> str:
        """Name of nnU-Net's reader of its images."""
        example = next(iter(self.cases.values()))["images"][0]
        return determine_reader_writer_from_dataset_json(self.dataset_json, example, verbose=False).__name__

    def fingerprint(self, processes: int) -> dict[str, Any]:
        """nnU-Net's fingerprint, extracted if there is none yet."""
        return fingerprint(self.name, self.dataset_json, processes)


@dataclass(frozen=True)
class Adapted:
    """A plan that was written, and with what it is used."""

    path: Path
    plans: dict[str, Any]
    trainer: str
    configuration: str

    @property
    def commands(self) -> list[str]:
        """What follows: preprocessing, training, prediction."""
        name, number = self.plans["plans_name"], dataset_number(self.plans["dataset_name"])
        return [
            f"nnUNetv2_preprocess -d {number} -plans_name {name} -c {self.configuration}",
            f"nnUNetv2_train {number} {self.configuration} 0 -tr {self.trainer} -p {name}",
            f"nnUNetv2_predict -d {number} -c {self.configuration} -f 0 -tr {self.trainer} -p {name} -i IN -o OUT "
            f"-chk checkpoint_best.pth",
        ]


def plan_adaptation(model_folder: Path, target: str | int, options: AdaptOptions) -> Adapted:
    """Check that a model can be adapted to a dataset, and write the plan into the dataset's preprocessed folder.

    Everything is checked before anything is written.

    Raises:
        PlanError: naming what does not fit.
    """
    _check_options(options)
    source = read_source(model_folder, options.fold, options.checkpoint)
    there = _find(target)
    check_domains(source.dataset_json, there.dataset_json, (source.dataset, there.name))
    check_channels(there.raw, there.dataset_json, there.cases)
    if unknown := sorted(set(options.labelled_cases) - set(there.cases)):
        raise PlanError(f"{there.name} has no training case {', '.join(unknown)}; it has {', '.join(there.cases)}")
    _check_unseen(source, there)
    recipe = _recipe(source, there.name, options)
    adaptation = _adaptation(source, options)
    entry = source.entry
    _check_trained(entry, there.dataset_json, source, adaptation)

    plans = _plans(source, entry, there, recipe, adaptation, options)
    path = save_plans(plans, force=options.force)
    write_json(there.dataset_json, path.with_name("dataset.json"))
    split = there.raw / "splits_final.json"
    if split.is_file() and not path.with_name(split.name).is_file():  # as nnU-Net's planner
        shutil.copy(split, path.with_name(split.name))
    return Adapted(path, plans, f"{TRAINER_PREFIX}_{options.method}", source.configuration)


def _find(target: str | int) -> _Target:
    """The dataset of this name or number in ``nnUNet_raw``, with training images."""
    try:
        found = _Target(dataset_name(target))
    except DatasetNameError as error:
        raise PlanError(f"--target: {error}") from None
    for needed in ("dataset.json", "imagesTr", "labelsTr"):
        if not (found.raw / needed).exists() and (needed == "dataset.json" or "dataset" not in found.dataset_json):
            raise PlanError(f"--target: {found.raw} has no {needed}")
    if not found.cases:
        raise PlanError(f"--target: {found.raw} has no training images")
    return found


def check_domains(here: Mapping[str, Any], there: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Check that two ``dataset.json`` have the same labels, regions and number of channels.

    Raises:
        PlanError: that lists the differences.
    """
    if faults := differences(here, there, names):
        raise PlanError(
            f"a model of {names[0]} cannot be adapted to {names[1]}: {'; '.join(faults)}. Labels must have the same "
            f"names and values in both dataset.json, and channels the same number and order"
        )


def _check_unseen(source: Source, target: _Target) -> None:
    """Compare the target's validation cases with those that the source's training saw; a warning names bad folds.

    Raises:
        PlanError: if no fold of the target has validation cases that are new to the model.
    """
    cases = list(target.cases)
    seen = {
        case
        for dataset, trained in source.seen.items()
        for case in seen_cases(cases, target.raw, trained, target.raw.parent / dataset)
    }
    folds = read_folds(cases, Path(nnUNet_preprocessed, target.name), target.raw)
    bad = {number: sorted(seen & set(fold["val"])) for number, fold in enumerate(folds) if seen & set(fold["val"])}
    if not bad:
        return
    fold, shared = next(iter(bad.items()))
    example = f"{len(shared)} of fold {fold}, such as {shared[0]}"
    if len(bad) == len(folds):
        raise PlanError(
            f"the model was trained on validation cases of every fold of {target.name} ({example}): adapt to another "
            f"dataset, or name cases for validation in {target.raw / 'splits_final.json'} that it has not seen"
        )
    print(
        f"WARNING: the model was trained on validation cases of {target.name} ({example}): folds "
        f"{', '.join(map(str, bad))} cannot be adapted to"
    )


def _check_options(options: AdaptOptions) -> None:
    if options.method == "entropymin" and (options.labelled or options.labelled_cases):
        raise PlanError("entropy minimisation uses no labels: leave out --labelled, or take --method selftraining")
    teacher = options.update_every != 1 or options.teacher_momentum is not None
    if teacher and options.method == "entropymin":
        raise PlanError("entropy minimisation has no teacher: leave out --update-every and --teacher-momentum")
    if teacher and options.faithful:
        raise PlanError(
            "the published self-training takes its pseudo-labels from the pass that is trained on (--faithful): leave "
            "out --update-every and --teacher-momentum"
        )
    if options.recipe.get("sampling", "nnunet") != "nnunet":
        raise PlanError("recipe.sampling of an adaptation is nnunet: other ways look for classes in all label maps")


def _adaptation(source: Source, options: AdaptOptions) -> Adaptation:
    labelled = options.labelled if options.labelled is not None else LABELLED
    try:
        return Adaptation(
            method=options.method,
            source=source.dataset,
            model_folder=str(source.folder),
            fold=source.fold,
            checkpoint=source.checkpoint.name,
            sha256=source.sha256,
            labelled=0 if options.method == "entropymin" else len(options.labelled_cases) or labelled,
            labelled_cases=options.labelled_cases,
            confidence=options.confidence,
            update_every=options.update_every,
            teacher_momentum=options.teacher_momentum,
            train=options.train,
            faithful=options.faithful,
        )
    except ValidationError as error:
        raise PlanError(validation_faults(error)) from None


def _check_trained(
    entry: Mapping[str, Any], dataset_json: Mapping[str, Any], source: Source, adaptation: Adaptation
) -> None:
    """Build the network without memory, so that a part that cannot be trained is refused now."""
    import torch

    setting = source.setting
    with torch.device("meta"):
        network = build_network(entry["architecture"], len(channel_names(dataset_json)), 2, adapter=setting.adapter)
    try:
        train_only(network, adaptation.train, norms_only=adaptation.faithful and adaptation.method == "entropymin")
    except ValueError as error:
        raise PlanError(f"--faithful trains the norms of the head: {error}") from None


def _name(source: Source, adaptation: Adaptation) -> str:
    setting = source.setting
    parts = (
        *(PLANS_PREFIX, setting.card.name, setting.head, setting.adapter),
        *("from", source.number, None if source.fold == "0" else f"fold{source.fold}"),
        *(adaptation.method, "faithful" if adaptation.faithful else None),
    )
    return "_".join(part for part in parts if part)


def _recipe(source: Source, dataset: str, options: AdaptOptions) -> Recipe:
    """The source's recipe with the method's loss and a rate for weights that have been trained already.

    Patches are drawn anywhere, since where to draw them may not depend on labels that are not to be used.
    """
    setting = source.setting
    rate = setting.recipe.learning_rate * RATE_3D if setting.card.dim == 3 else _rate_2d(source, dataset)
    changes: dict[str, Any] = {
        "learning_rate": rate,
        "final_rate": min(setting.recipe.final_rate, rate),
        "scratch": None,
        "loss": "ce",
        "sampling": "nnunet",
        "oversample_foreground": 0.0,
        "max_minutes": None,
        "patience": None,
        "volume_dice_every": 1,
        "save_every": min(setting.recipe.save_every, 5),
        "faithful": options.faithful,
    }
    if options.seed is not None:
        changes["seed"] = options.seed
    flipped: Any = list(setting.recipe.flipped_axes(setting.card.dim))
    mirror = "all" if "augmentation" in options.recipe else flipped  # `choose_mirroring` has the rest
    return changed_recipe(setting.recipe, {**changes, **options.recipe, "mirror": mirror})


def _rate_2d(source: Source, dataset: str) -> float:
    """The rate that a training of the source's kind would have on the target, as published; or the source's user's."""
    setting, key = source.setting, source.key
    published = setting.card.variants[key.variant if key else "nnunet"]  # type: ignore[index]
    if key is not None:
        planned = on_dataset(published, source.dataset, key.adapter).recipe.learning_rate
        if key.adaptation is None and key.recipe.learning_rate != planned:
            return setting.recipe.learning_rate
    recipe = on_dataset(published, dataset, setting.adapter).recipe
    return (recipe.from_scratch() if setting.scratch else recipe).learning_rate


def _plans(
    source: Source,
    entry: dict[str, Any],
    target: _Target,
    recipe: Recipe,
    adaptation: Adaptation,
    options: AdaptOptions,
) -> dict[str, Any]:
    setting, fingerprint = source.setting, target.fingerprint(options.processes)
    reasons: dict[str, str] = {}
    transpose = _transpose(source, target, reasons)
    shapes = [[shape[a] for a in transpose] for shape in fingerprint["shapes_after_crop"]]
    spacings = [[float(spacing[a]) for a in transpose] for spacing in fingerprint["spacings"]]
    if entry["preprocessor_name"] != "FMPreprocessor" and source.key is None:
        entry["preprocessor_name"] = "FMPreprocessor"  # the stock one would share a folder with the target's own plans
    data = Data(target.raw, target.dataset_json["labels"], target.cases, target.reader, transpose)
    variant = source.key.variant if source.key else "nnunet"
    mirroring = choose_mirroring(recipe, options.recipe.get("mirror"), variant, data, setting.card.dim)
    recipe = recipe.model_copy(update={"mirror": mirroring.axes})
    reasons |= mirroring.reasons
    names = [channel_names(content) for content in (source.dataset_json, target.dataset_json)]
    if names[0] != names[1]:
        reasons["intensities"] = f"as for {', '.join(names[0])}, while the target's channels are {', '.join(names[1])}"

    samples = _samples(target, shapes, spacings, entry)
    epochs = None if options.iterations is not None else options.epochs or ADAPTATION_EPOCHS[adaptation.method]
    counted, one_pass, reason = count_iterations(epochs or 1, samples, entry["batch_size"], setting.card.dim)
    if epochs is not None:
        reasons["iterations"] = reason
    if "iterations_per_epoch" not in options.recipe:
        recipe = recipe.model_copy(update={"iterations_per_epoch": one_pass})
    if "validation_iterations" not in options.recipe:
        fewer = min(recipe.validation_iterations, recipe.iterations_per_epoch)
        recipe = recipe.model_copy(update={"validation_iterations": fewer})

    plans: dict[str, Any] = {
        **{k: v for k, v in source.plans.items() if k not in (KEY, "continue_training")},
        "dataset_name": target.name,
        "plans_name": options.name or _name(source, adaptation),
        "original_median_spacing_after_transp": np.median(np.vstack(spacings), axis=0).tolist(),
        "original_median_shape_after_transp": np.median(np.vstack(shapes), axis=0).round().astype(int).tolist(),
        "image_reader_writer": target.reader,
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "configurations": {source.configuration: entry},
    }
    entry["data_identifier"] = data_identifier(plans, source.configuration)
    known = source.key
    origin = {what: "source" for what in ("spacing", "patch_size", "batch_size", "intensities")}
    origin["iterations"] = "user" if options.iterations or options.epochs else "thesis"
    origin["mirror"] = mirroring.origin if mirroring.origin in ("user", "data") else "source"
    origin["recipe"] = "source, changed for the method"
    if options.recipe:
        origin["recipe"] += f" and by user: {', '.join(sorted(options.recipe))}"
    plans[KEY] = PlanKey(
        model=setting.card.name,
        head=setting.head,
        adapter=setting.adapter,
        variant=known.variant if known else "nnunet",
        recipe=recipe,
        iterations=options.iterations or counted,
        epochs=epochs,
        slices=next(iter(samples.values())) if setting.card.dim == 2 else None,
        fold_samples=samples if epochs else {},
        origin=origin,
        reasons=reasons,
        weights=known.weights if known else {},
        adaptation=adaptation,
    ).model_dump()
    recursive_fix_for_json_export(plans)
    return plans


def _transpose(source: Source, target: _Target, reasons: dict[str, str]) -> list[int]:
    """The source's order of axes; for slices, the axis that the target's converter names comes first."""
    theirs = [int(axis) for axis in source.plans["transpose_forward"]]
    if source.setting.card.dim == 3:
        return theirs
    axis = converter_slice_axis(target.raw / "conversion.json", dataset_orientations(target.cases, target.reader))
    if axis is None or axis == theirs[0]:
        return theirs
    reasons["slice_axis"] = f"slices are cut across axis {axis}, as the target's conversion.json says"
    return [axis, *(a for a in range(3) if a != axis)]


def _samples(
    target: _Target, shapes: list[list[int]], spacings: list[list[float]], entry: Mapping[str, Any]
) -> dict[str, int]:
    """Fold -> samples of one pass over its training cases; shapes in voxels, spacings in mm, of all training images."""
    spacing = entry["spacing"]
    if len(spacing) == 3:
        shapes = [
            [int(edge) for edge in compute_new_shape(shape, own, spacing)]
            for shape, own in zip(shapes, spacings, strict=True)
        ]
    known = len(target.cases) == len(shapes)  # else the fingerprint is of other cases than those that are there
    by_case = dict(zip(target.cases if known else map(str, range(len(shapes))), shapes, strict=True))
    folds = read_folds(list(by_case), Path(nnUNet_preprocessed, target.name), target.raw)
    return samples_by_fold(by_case, entry["patch_size"], folds)
