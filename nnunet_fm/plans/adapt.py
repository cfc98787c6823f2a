"""Plans that adapt a trained model to another dataset: geometry, intensities and network of the source.

An epoch is a pass over the fold's training cases of the target: over their slices for a 2D model; for a 3D model, over
the number of patches that have as many voxels as the cases.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from pydantic import ValidationError

from nnunet_fm.adaptation.trained_part import set_trainable
from nnunet_fm.data.folds import read_folds
from nnunet_fm.data.patients import seen_cases
from nnunet_fm.errors import code_of
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name, dataset_number
from nnunet_fm.io.messages import validation_faults
from nnunet_fm.models.build import build_network
from nnunet_fm.models.card import Recipe
from nnunet_fm.models.names import PLANS_PREFIX, TRAINER_PREFIX
from nnunet_fm.models.variants import on_dataset
from nnunet_fm.planfile.eval_datasets import differences
from nnunet_fm.planfile.schema import ADAPTATION_EPOCHS, Adaptation, Method, PlanError, PlanKey, changed_recipe
from nnunet_fm.planfile.trained_model import Source, read_source
from nnunet_fm.planfile.write import save_plans, write_json
from nnunet_fm.plans.geometry import converter_slice_axis
from nnunet_fm.plans.mirroring import Data, choose_mirroring
from nnunet_fm.plans.pipeline import choose_length, count_by_fold, length_fields, slices_first, told
from nnunet_fm.plans.plan import Decision, ModelPlan, RawDataset, merge_reasons, observation, source_entry
from nnunet_fm.preprocessing.fingerprint import fingerprint
from nnunet_fm.preprocessing.raw import check_channels, read_dataset_json, training_cases
from nnunet_fm.published_quirks import trains_norms_only

LABELLED = 3
"""Number of labelled cases in self-training, as published."""
LEARNING_RATE_3D = 0.1
"""Factor on the source's learning rate for 3D models; our choice, because no adaptation of them is published."""


@dataclass
class AdaptOptions:
    """The choices that `nnunet-fm adapt` takes from the user; None leaves the choice to the method."""

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
class Adapted:
    """A written plan, with its trainer and configuration."""

    path: Path
    plans: dict[str, Any]
    trainer: str
    configuration: str

    @property
    def commands(self) -> list[str]:
        """Commands of the next steps: preprocessing, training, prediction."""
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
    check_domains(source.dataset_json, there.json, (source.dataset, there.name))
    check_channels(there.raw, there.json, there.cases)
    if unknown := sorted(set(options.labelled_cases) - set(there.cases)):
        raise PlanError(
            f"{there.name} has no training case {', '.join(unknown)}; it has {', '.join(there.cases)}",
            code="case-unknown",
        )
    _check_unseen(source, there)
    recipe = _recipe(source, there.name, options)
    adaptation = _adaptation(source, options)
    _check_trained(there.json, source, adaptation)

    plans = _plan(source, _measure(there, options.processes), recipe, adaptation, options).to_json()
    path = save_plans(plans, force=options.force)
    write_json(there.json, path.with_name("dataset.json"))
    split = there.raw / "splits_final.json"
    if split.is_file() and not path.with_name(split.name).is_file():  # as nnU-Net's planner
        shutil.copy(split, path.with_name(split.name))
    return Adapted(path, plans, f"{TRAINER_PREFIX}_{options.method}", source.configuration)


def _find(target: str | int) -> RawDataset:
    """Find the dataset of this name or number in ``nnUNet_raw``; it must have training images."""
    try:
        name = dataset_name(target)
    except DatasetNameError as error:
        raise PlanError(f"--target: {error}", code=error.code) from None
    raw = Path(nnUNet_raw, name)
    if not (raw / "dataset.json").exists():
        raise PlanError(f"--target: {raw} has no dataset.json", code="dataset-json-missing")
    content = read_dataset_json(raw)
    for needed in () if "dataset" in content else ("imagesTr", "labelsTr"):
        if not (raw / needed).exists():
            raise PlanError(f"--target: {raw} has no {needed}", code="target-incomplete")
    cases = training_cases(raw, content)
    if not cases:
        raise PlanError(f"--target: {raw} has no training images", code="images-missing")
    return RawDataset(name, content, cases)


def _measure(target: RawDataset, processes: int) -> RawDataset:
    """Add the fingerprint, extracted if it is missing, and the reader of the images."""
    found = fingerprint(target.name, target.json, processes)
    example = next(iter(target.cases.values()))["images"][0]
    reader = determine_reader_writer_from_dataset_json(dict(target.json), example, verbose=False).__name__
    return replace(target, fingerprint=found, reader=reader)


def check_domains(here: Mapping[str, Any], there: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Check that two ``dataset.json`` have the same labels, regions and number of channels.

    Raises:
        PlanError: that lists the differences.
    """
    if faults := differences(here, there, names):
        raise PlanError(
            f"a model of {names[0]} cannot be adapted to {names[1]}: {'; '.join(faults)}. Labels must have the same "
            f"names and values in both dataset.json, and channels the same number and order",
            code="target-labels",
        )


def _check_unseen(source: Source, target: RawDataset) -> None:
    """Look for validation cases of the target that the source was trained on; a warning names their folds.

    Raises:
        PlanError: if every fold of the target has such cases.
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
            f"dataset, or name cases for validation in {target.raw / 'splits_final.json'} that it has not seen",
            code="cases-seen",
        )
    print(
        f"WARNING: the model was trained on validation cases of {target.name} ({example}): folds "
        f"{', '.join(map(str, bad))} cannot be adapted to"
    )


def _check_options(options: AdaptOptions) -> None:
    if options.method == "entropymin" and (options.labelled or options.labelled_cases):
        raise PlanError(
            "entropy minimisation uses no labels: leave out --labelled, or take --method selftraining",
            code="option-conflict",
        )
    teacher = options.update_every != 1 or options.teacher_momentum is not None
    if teacher and options.method == "entropymin":
        raise PlanError(
            "entropy minimisation has no teacher: leave out --update-every and --teacher-momentum",
            code="option-conflict",
        )
    if teacher and options.faithful:
        raise PlanError(
            "the published self-training takes its pseudo-labels from the pass that is trained on (--faithful): leave "
            "out --update-every and --teacher-momentum",
            code="option-conflict",
        )
    if options.recipe.get("sampling", "nnunet") != "nnunet":
        raise PlanError(
            "an adaptation needs recipe.sampling=nnunet: all other ways of sampling read the label maps of all cases",
            code="recipe-sampling",
        )


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
        raise PlanError(validation_faults(error), code="recipe-field") from None


def _check_trained(dataset_json: Mapping[str, Any], source: Source, adaptation: Adaptation) -> None:
    """Check that the part to train exists, on a network without memory."""
    import torch

    config = source.config
    with torch.device("meta"):
        network = build_network(source.network, len(channel_names(dataset_json)), 2, adapter=config.adapter)
    try:
        norms_only = trains_norms_only(adaptation.method, adaptation.faithful)
        set_trainable(network, adaptation.train, norms_only=norms_only)
    except ValueError as error:
        raise PlanError(
            f"--faithful trains the norms of the head: {error}", code=code_of(error, "head-norms")
        ) from None


def _name(source: Source, adaptation: Adaptation) -> str:
    config = source.config
    parts = (
        *(PLANS_PREFIX, config.card.name, config.head, config.adapter),
        *("from", source.number, None if source.fold == "0" else f"fold{source.fold}"),
        *(adaptation.method, "faithful" if adaptation.faithful else None),
    )
    return "_".join(part for part in parts if part)


def _recipe(source: Source, dataset: str, options: AdaptOptions) -> Recipe:
    """The source's recipe with the method's loss and a learning rate for trained weights.

    Patches are drawn anywhere, because their choice must not depend on hidden labels.
    """
    config = source.config
    learning_rate = (
        config.recipe.learning_rate * LEARNING_RATE_3D if config.card.dim == 3 else _learning_rate_2d(source, dataset)
    )
    changes: dict[str, Any] = {
        "learning_rate": learning_rate,
        "final_rate": min(config.recipe.final_rate, learning_rate),
        "scratch": None,
        "loss": "ce",
        "sampling": "nnunet",
        "oversample_foreground": 0.0,
        "max_minutes": None,
        "patience": None,
        "volume_dice_every": 1,
        "save_every": min(config.recipe.save_every, 5),
        "faithful": options.faithful,
    }
    if options.seed is not None:
        changes["seed"] = options.seed
    flipped: Any = list(config.recipe.flipped_axes(config.card.dim))
    mirror = "all" if "augmentation" in options.recipe else flipped  # `choose_mirroring` has the rest
    return changed_recipe(config.recipe, {**changes, **options.recipe, "mirror": mirror})


def _learning_rate_2d(source: Source, dataset: str) -> float:
    """The published learning rate of the source's model on the target, or the source's if its user had changed it."""
    config, key = source.config, source.key
    published = config.card.variants[key.variant if key else "nnunet"]  # type: ignore[index]
    if key is not None:
        planned = on_dataset(published, source.dataset, key.adapter).recipe.learning_rate
        if key.adaptation is None and key.recipe.learning_rate != planned:
            return config.recipe.learning_rate
    recipe = on_dataset(published, dataset, config.adapter).recipe
    return (recipe.from_scratch() if config.scratch else recipe).learning_rate


def _plan(
    source: Source, target: RawDataset, recipe: Recipe, adaptation: Adaptation, options: AdaptOptions
) -> ModelPlan:
    """Take those steps of `nnunet_fm.plans.pipeline` that an adaptation needs; other values are the source's."""
    config, known, dim = source.config, source.key, source.config.card.dim
    entry = source_entry(source)
    geometry = source.geometry
    axes = _choose_axes(source, target)
    variant, data = known.variant if known else "nnunet", Data.of(target, axes.value)
    mirroring = told(choose_mirroring(recipe, options.recipe.get("mirror"), variant, data, dim))
    recipe = recipe.model_copy(update={"mirror": mirroring.value})
    intensities = _keep_intensities(source, target)
    samples = count_by_fold(target, axes.value, geometry.spacing if dim == 3 else None, geometry.patch_size)
    epochs = options.epochs or ADAPTATION_EPOCHS[adaptation.method]
    by_user = "user" if options.iterations or options.epochs else "thesis"
    batch, changed = geometry.batch_size, options.recipe
    length = choose_length(recipe, changed, samples, batch, dim, epochs, options.iterations, by_user)
    origin = {what: "source" for what in ("spacing", "patch_size", "batch_size", "intensities")}
    origin["iterations"] = length.origin
    origin["mirror"] = mirroring.origin if mirroring.origin in ("user", "data") else "source"
    origin["recipe"] = "source, changed for the method"
    if options.recipe:
        origin["recipe"] += f" and by user: {', '.join(sorted(options.recipe))}"
    key = PlanKey(
        model=config.card.name,
        head=config.head,
        adapter=config.adapter,
        variant=variant,
        **length_fields(length.value, dim),
        origin=origin,
        reasons=merge_reasons(axes, mirroring, intensities, length),
        weights=known.weights if known else {},
        adaptation=adaptation,
    )
    name = options.name or _name(source, adaptation)
    return ModelPlan(target, name, axes.value, source.configuration, entry, key, inherited=source.plans)


def _choose_axes(source: Source, target: RawDataset) -> Decision[list[int]]:
    """Keep the source's order of axes; in 2D the axis named by the target's converter comes first."""
    if source.config.card.dim == 3:
        return Decision(source.axes)
    axis = converter_slice_axis(target.conversion, target.orientations)
    if axis is None or axis == source.axes[0]:
        return Decision(source.axes)
    reason = f"slices are cut across axis {axis}, as the target's conversion.json says"
    return Decision(slices_first(axis), "dataset", {"slice_axis": reason})


def _keep_intensities(source: Source, target: RawDataset) -> Decision[None]:
    """Note in the plan if the target's channels have other names than the source's, whose normalisation they get."""
    theirs, ours = (channel_names(content) for content in (source.dataset_json, target.json))
    differ = f"as for {', '.join(theirs)}, while the target's channels are {', '.join(ours)}"
    return observation("intensities", differ if theirs != ours else None)
