"""The steps of planning, in the order of the printed plan.

Each returns the planned value, where it comes from and why (`Decision`), and changes nothing. `plan_model` lists the
steps of a new plan, `nnunet_fm.plans.adapt` those of an adaptation.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_fm.data.folds import first_cases, read_folds, training_cases_of
from nnunet_fm.data.samples import count_samples
from nnunet_fm.errors import code_of
from nnunet_fm.heads import needs_official
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.dataset_names import dataset_name
from nnunet_fm.models.build import Architecture, architecture, build_network, legal_patch
from nnunet_fm.models.card import ModelCard, Recipe, Variant
from nnunet_fm.models.names import Spec
from nnunet_fm.models.parts import BACKBONE, HEAD, official_parts
from nnunet_fm.models.registry import get_card
from nnunet_fm.models.variants import iterations_on, on_dataset
from nnunet_fm.planfile.schema import PlanError, PlanKey, WeightsEntry, changed_recipe
from nnunet_fm.plans import memory
from nnunet_fm.plans.choice import choose_model
from nnunet_fm.plans.geometry import (
    card_spacing,
    converter_slice_axis,
    median_shape,
    nnunet_patch,
    shrink_patch,
    slice_axis,
    upsampling_note,
    wanted_patch,
)
from nnunet_fm.plans.intensity import Normalization, check_foreground, normalization
from nnunet_fm.plans.mirroring import Data, choose_mirroring
from nnunet_fm.plans.plan import (
    Decision,
    ModelPlan,
    RawDataset,
    TargetGrid,
    merge_reasons,
    new_entry,
    observation,
    origins,
)
from nnunet_fm.preprocessing.orientation import orientation_warning
from nnunet_fm.preprocessing.value_ranges import unit_channels
from nnunet_fm.weights.cache import find, sha256

QUICK = "quick"
"""The variant for few cases and little time."""
FEW_CASES, SHORT_MINUTES = 100, 120
"""Training cases and minutes of training up to which `QUICK` is proposed."""

Seen = TypeVar("Seen", bound=Decision[Any])


@dataclass(frozen=True)
class Options:
    """Options of `nnunet-fm plan`; None and empty values are chosen by card and data.

    ``iterations`` takes precedence over ``epochs``. ``slice_axis`` is an argument of
    `nnunet_fm.plans.geometry.slice_axis`. ``eval_datasets`` are IDs or names.
    """

    iterations: int | None = None
    epochs: int | None = None
    spacing: list[float] | str | None = None
    patch: list[int] | None = None
    batch: int | None = None
    slice_axis: int | str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    head_weights: str | None = None
    train_cases: int | None = None
    eval_datasets: Sequence[int | str] = ()
    portable: bool = False
    force: bool = False


@dataclass(frozen=True)
class Task:
    """A model to be planned for a dataset.

    Attributes:
        data: the dataset.
        options: options of the user.
        card: card of the model; ``variant`` is the name of one of its variants.
        planned: the variant on this dataset.
        head, adapter: names; None where the model has none.
        memory_gb: memory target for patch and batch.
        stock_spacing: target spacing by nnU-Net's own rule, in mm (z, y, x).
    """

    data: RawDataset
    options: Options
    card: ModelCard
    variant: str
    planned: Variant
    head: str | None
    adapter: str | None
    memory_gb: float
    stock_spacing: Sequence[float]

    @property
    def dim(self) -> int:
        """Axes of a patch."""
        return self.card.dim


@dataclass(frozen=True)
class TrainingLength:
    """Length of a training.

    Attributes:
        recipe: the recipe, with the length of nnU-Net's epochs.
        iterations: optimiser steps.
        epochs: passes over a fold's training cases, if these decide the number of iterations.
        samples: fold -> samples of one pass.
    """

    recipe: Recipe
    iterations: int
    epochs: int | None = None
    samples: Mapping[str, int] = field(default_factory=dict)


def plan_model(task: Task, chosen: Decision[Spec], *, name: str, planner: str) -> ModelPlan:
    """Take all steps of a new plan; each step prints its warnings.

    Args:
        task: the model and the dataset.
        chosen: the choice of the model.
        name: of the plan.
        planner: name of nnU-Net's planner class.

    Raises:
        PlanError: if the model cannot take the data, or an option is illegal.
    """
    data, options, card = task.data, task.options, task.card
    axes = choose_axes(task)
    recipe = choose_recipe(task)
    mirroring = told(
        choose_mirroring(recipe.value, options.recipe.get("mirror"), task.variant, Data.of(data, axes.value), task.dim)
    )
    recipe = replace(recipe, value=recipe.value.model_copy(update={"mirror": mirroring.value}))
    intensities = choose_intensities(task)
    doubts = told(observation("channels", check_foreground(data.json, data.fingerprint), warn=True))
    orientation = told(check_orientation(task))
    spacing = choose_spacing(task, axes.value)
    voxels = told(observation("voxels", upsampling_note(data.spacings(axes.value), spacing.value), warn=True))
    grid = measure_grid(task, axes.value, spacing.value)
    wanted = choose_patch(task, grid)
    patch, batch, fits = fit_memory(task, grid, recipe.value, wanted, choose_batch(task))
    told(fits)
    quick = propose_quick(task, recipe.value)
    network = design_network(task, patch.value, grid, intensities.value)
    length = choose_length_of(task, axes.value, recipe.value, patch.value, batch.value)
    weights = choose_weights(task, network)

    key = plan_key(
        task, length.value,
        origin=origins(
            recipe=recipe, slice_axis=axes, mirror=mirroring, spacing=spacing, patch_size=patch, batch_size=batch,
            iterations=length,
        ),
        reasons=merge_reasons(
            *(chosen, mirroring, recipe, intensities, doubts, orientation, spacing, voxels),
            *(wanted, fits, patch, batch, quick, length),
        ),
        weights=weights,
    )  # fmt: skip
    entry = new_entry(grid, patch.value, batch.value, intensities.value, network, portable=options.portable)
    return ModelPlan(data, name, axes.value, card.configuration, entry, key, planner, intensities.value.properties)


def told(choice: Seen) -> Seen:
    """Print the warnings of a choice, and return it."""
    for warning in choice.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    return choice


def choose_spec(spec: Spec, data: RawDataset, memory_gb: float) -> Decision[Spec]:
    """Choose the model that suits the data (`choose_model`), unless the planner's name has one."""
    if spec.model is not None:
        return Decision(spec)
    name, reason = choose_model(data.fingerprint, data.json, memory_gb=memory_gb)
    return Decision(Spec(model=name, variant=spec.variant), "data", {"model": reason})


def read_task(
    spec: Spec, data: RawDataset, options: Options, *, memory_gb: float, stock_spacing: Sequence[float]
) -> Task:
    """Look up the card and the variant of a planner's name.

    Raises:
        PlanError: for a variant that the model does not have, or more training cases than there are.
    """
    assert spec.model is not None
    card, variant = get_card(spec.model), spec.variant or "mission"
    if variant not in card.variants:
        raise PlanError(
            f"'{card.name}' has no variant '{spec.variant}'; legal: {', '.join(card.variants)}", code="variant-unknown"
        )
    cases = len(data.fingerprint["spacings"])
    if options.train_cases is not None and options.train_cases > cases:
        raise PlanError(
            f"--train-cases {options.train_cases}: {data.name} has {cases} training cases", code="cases-few"
        )
    adapter = spec.adapter or card.default_adapter
    planned = on_dataset(card.variants[variant], data.name, adapter)
    head = spec.head or card.default_head
    return Task(data, options, card, variant, planned, head, adapter, memory_gb, stock_spacing)


# Axes, recipe and intensities


def choose_axes(task: Task) -> Decision[list[int]]:
    """Choose the order of the image axes: (z, y, x) in 3D, the order of the weights.

    A 2D model cuts slices across the first axis: the user's choice, the converter's, or the axis of largest spacing.
    """
    by_user, orientations = task.options.slice_axis, task.data.orientations
    if task.dim == 3:
        if by_user is not None:
            raise PlanError(f"--slice-axis is for 2D models; '{task.card.name}' is a 3D model", code="option-dimension")
        return Decision([0, 1, 2])
    if by_user is not None:
        try:
            return Decision(slices_first(slice_axis(by_user, orientations)), "user")
        except ValueError as error:
            raise PlanError(f"--slice-axis {error}", code="slice-axis") from None
    by_converter = converter_slice_axis(task.data.conversion, orientations)
    if by_converter is not None:
        return Decision(slices_first(by_converter), "dataset")
    thickest = np.argmax(np.median(np.vstack(task.data.fingerprint["spacings"]), axis=0))
    return Decision(slices_first(int(thickest)), "data")


def slices_first(axis: int) -> list[int]:
    """The image axes with the one across the slices first."""
    return [axis, *(other for other in range(3) if other != axis)]


def choose_recipe(task: Task) -> Decision[Recipe]:
    """Take the variant's recipe with the user's changes; `choose_mirroring` decides the mirrored axes."""
    planned, changes = task.planned.recipe, task.options.recipe
    # 3D models have their authors' recipe; all 2D models share one recipe, so that they can be compared.
    origin = "official" if task.variant == "mission" and task.dim == 3 else task.variant
    recipe = planned
    if changes:
        origin = f"{origin}, changed by user: {', '.join(sorted(changes))}"
        mirror = "all" if "augmentation" in changes else planned.mirror
        recipe = changed_recipe(planned, {**changes, "mirror": mirror})
    published = task.card.variants[task.variant].recipe.learning_rate  # type: ignore[index]
    if published == planned.learning_rate or planned.learning_rate != recipe.learning_rate:
        return Decision(recipe, origin)
    reason = f"{recipe.learning_rate:g} for adapter '{task.adapter}' on {task.data.name}"
    return Decision(recipe, origin, {"learning_rate": reason})


def choose_intensities(task: Task) -> Decision[Normalization]:
    """Choose the normalisation of each channel."""
    found = normalization(
        task.planned.intensity,
        task.data.json,
        task.data.fingerprint,
        portable=task.options.portable,
        model=task.card.name,
    )
    return Decision(found, reasons=found.reasons)


def check_orientation(task: Task) -> Decision[None]:
    """Compare the orientation of the images in the patient with that of the pre-training."""
    expected = task.card.pretraining.orientation
    return observation("orientation", orientation_warning(expected, task.data.orientations, task.card.name), warn=True)


# Spacing, patch and batch


def choose_spacing(task: Task, axes: Sequence[int]) -> Decision[list[float]]:
    """Choose the target spacing in mm of all three axes, in the plan's order."""
    card, by_user, wanted = task.card, task.options.spacing, task.planned.geometry.spacing
    shapes, spacings = task.data.shapes(axes), task.data.spacings(axes)
    if task.dim == 2 and task.variant != "nnunet":
        native = [float(s) for s in np.median(np.vstack(spacings), axis=0)]
    else:
        native = [float(task.stock_spacing[a]) for a in axes]
    if isinstance(by_user, list):
        if len(by_user) not in (card.dim, 3) or min(by_user) <= 0:
            raise PlanError(
                f"a spacing for '{card.name}' is {card.dim} positive numbers in mm, not {by_user}",
                code="spacing-invalid",
            )
        # Three numbers are for the image's own axes, two for the plane of the slices.
        full = [by_user[a] for a in axes] if len(by_user) == 3 else [native[0], *by_user]
        return Decision(full, "user")
    if by_user == "native":
        return Decision(native, "user")
    if wanted is None or wanted == "native":
        return Decision(native, "nnunet" if task.variant == "nnunet" else "data")
    assert not isinstance(wanted, str)
    if card.dim == 2:
        return Decision([native[0], *wanted], task.variant)
    return card_spacing(wanted, native, shapes, spacings, task.variant)


def measure_grid(task: Task, axes: Sequence[int], full_spacing: Sequence[float]) -> TargetGrid:
    """Measure the median image at the target spacing (mm, three axes), on the network's axes.

    Raises:
        PlanError: for a 3D model of single slices.
    """
    image = median_shape(task.data.shapes(axes), task.data.spacings(axes), full_spacing)[-task.dim :]
    if task.dim == 3 and min(image) == 1:
        raise PlanError(
            f"'{task.card.name}' is a 3D model, but the images of {task.data.name} have a single slice",
            code="images-flat",
        )
    return TargetGrid(list(full_spacing[-task.dim :]), image)


def choose_patch(task: Task, grid: TargetGrid) -> Decision[list[int]]:
    """Choose the patch before fitting it to memory: the user's, or the card's, no larger than the median image.

    At a published in-plane spacing a 2D model keeps the published patch, and small images are padded.

    Raises:
        PlanError: for a patch of the user that the network cannot take.
    """
    card, geometry, by_user = task.card, task.planned.geometry, task.options.patch
    if by_user is not None:
        patch = [int(e) for e in by_user]
        if len(patch) != card.dim or min(patch) < 1:
            raise PlanError(
                f"a patch for '{card.name}' has {card.dim} positive edges, not {patch}", code="patch-illegal"
            )
        legal = legal_patch(card, patch, grid.spacing)[0]
        if legal != patch:
            raise PlanError(
                f"'{card.name}' cannot take a patch of {patch}; the next legal one is {legal}", code="patch-illegal"
            )
        return Decision(patch, "user")
    wanted = nnunet_patch(grid.image, grid.spacing) if task.variant == "nnunet" else geometry.patch
    as_published = card.dim == 2 and isinstance(geometry.spacing, list) and task.options.spacing is None
    patch = wanted_patch(card, wanted, wanted if as_published else grid.image, grid.spacing)
    if patch == list(wanted):
        return Decision(patch, task.variant)
    reason = f"the median image has {grid.image} voxels, less than the patch {wanted}"
    return Decision(patch, "data", {"patch_size": reason})


def choose_batch(task: Task) -> Decision[int]:
    """Choose the batch size before fitting it to memory."""
    if task.options.batch:
        return Decision(task.options.batch, "user")
    return Decision(task.planned.geometry.batch, task.variant)


def fit_memory(
    task: Task, grid: TargetGrid, recipe: Recipe, patch: Decision[list[int]], batch: Decision[int]
) -> tuple[Decision[list[int]], Decision[int], Decision[None]]:
    """Reduce batch and patch to the memory target; a patch of the user is kept.

    Returns:
        Patch, batch, and a warning if nothing fits.
    """
    card, target = task.card, f"{task.memory_gb:g} GB"
    fixed = task.options.patch is not None or card.network.resizes
    shrink = (lambda p: None) if fixed else (lambda p: shrink_patch(card, p, grid.image, grid.spacing))
    cost = memory_cost(task, grid, recipe)
    edges, fewer, fits = memory.fit(cost, tuple(patch.value), batch.value, shrink, task.memory_gb * 1024**3)
    too_much = f"even patch {list(edges)} and batch {fewer} are predicted to need more than {target}"
    if patch.value != list(edges):
        patch = Decision(list(edges), "memory", {"patch_size": f"{patch.value} does not fit {target}"})
    if batch.value != fewer:
        batch = Decision(fewer, "memory", {"batch_size": f"{batch.value} does not fit {target}"})
    return patch, batch, observation("memory", None if fits else too_much, warn=True)


def memory_cost(task: Task, grid: TargetGrid, recipe: Recipe) -> memory.Cost:
    """Function that predicts the bytes of a training step on a GPU for a patch and a batch size."""
    content = task.data.json
    channels = len(channel_names(content))
    labels = LabelManager(content["labels"], content.get("regions_class_order"))
    supervised = recipe.deep_supervision and task.card.network.deep_supervision

    @cache
    def cost(patch: tuple[int, ...], batch: int) -> float:
        entry = design_network(task, patch, grid)
        return memory.gpu_bytes(
            lambda: build_network(
                entry, channels, labels.num_segmentation_heads, adapter=task.adapter, deep_supervision=supervised
            ),
            patch,
            batch,
            channels,
            recipe.optimizer,
        )

    return cost


# Network, length and weights


def design_network(
    task: Task, patch: Sequence[int], grid: TargetGrid, intensities: Normalization | None = None
) -> Architecture:
    """The ``architecture`` entry for a patch (voxels), with arguments changed by the user."""
    try:
        return architecture(
            task.card,
            patch_size=patch,
            spacing=grid.spacing,
            strides=legal_patch(task.card, patch, grid.spacing)[1],
            head=task.head,
            normalization_schemes=intensities.schemes if intensities else (),
            unit_channels=unit_channels(intensities.schemes, intensities.properties) if intensities else (),
            changes=task.options.network,
        )
    except ValueError as error:
        raise PlanError(f"network: {error}", code=code_of(error, "argument-value")) from None


def propose_quick(task: Task, recipe: Recipe) -> Decision[None]:
    """Propose the variant ``quick`` for few cases and little time."""
    cases = task.options.train_cases or len(task.data.fingerprint["spacings"])
    if task.variant != "mission" or QUICK not in task.card.variants or cases > FEW_CASES:
        return Decision(None)
    minutes = recipe.max_minutes
    if minutes is not None and minutes <= SHORT_MINUTES:
        time = f"{minutes:g} minutes"
    elif minutes is None and task.options.iterations is None and not torch.cuda.is_available():
        time = "no GPU"
    else:
        return Decision(None)
    return observation(
        "variant",
        f"{cases} training cases and {time}: the recipe of --variant {QUICK} reaches its result in fewer "
        f"iterations ({task.card.variants[QUICK].iterations:,}, light augmentation without mirroring)",
    )


def choose_length_of(
    task: Task, axes: Sequence[int], recipe: Recipe, patch: Sequence[int], batch: int
) -> Decision[TrainingLength]:
    """Choose the length of a new training: passes over its slices in 2D if it counts epochs, else iterations."""
    by_user, dim = task.options, task.dim
    samples: dict[str, int] = {}
    if dim == 2:
        samples = count_by_fold(task.data, axes, None, patch, train_cases=by_user.train_cases, seed=recipe.seed)
    if by_user.epochs is not None and not samples:
        raise PlanError(
            f"--epochs are passes over slices; '{task.card.name}' is a 3D model, give it --iterations",
            code="option-dimension",
        )
    origin = "user" if by_user.iterations or by_user.epochs else task.variant
    epochs = by_user.epochs or task.planned.epochs
    if epochs is None or not samples:
        by_card = iterations_on(task.card, task.planned, task.data.name)
        return Decision(TrainingLength(recipe, by_user.iterations or by_card, samples=samples), origin)
    return choose_length(recipe, by_user.recipe, samples, batch, dim, epochs, by_user.iterations, origin)


def choose_length(
    recipe: Recipe,
    changed: Collection[str],
    samples: Mapping[str, int],
    batch: int,
    dim: int,
    epochs: int,
    iterations: int | None,
    origin: str,
) -> Decision[TrainingLength]:
    """Count the iterations of passes over the first fold's samples; one pass is an epoch of nnU-Net.

    Args:
        recipe: recipe of the plan.
        changed: fields of the recipe that the user has set.
        samples: fold -> samples of one pass.
        batch: samples per iteration.
        dim: axes of the model; a sample is a slice in 2D, a patch in 3D.
        epochs: number of passes.
        iterations: the user's number of iterations instead of passes.
        origin: origin of the length.
    """
    fold, count = next(iter(samples.items()))
    one_pass = -(-count // batch)
    if "iterations_per_epoch" not in changed:
        recipe = recipe.model_copy(update={"iterations_per_epoch": one_pass})
    if "validation_iterations" not in changed:
        fewer = min(recipe.validation_iterations, recipe.iterations_per_epoch)
        recipe = recipe.model_copy(update={"validation_iterations": fewer})
    if iterations is not None:
        return Decision(TrainingLength(recipe, iterations, samples=samples), origin)
    what = "slices" if dim == 2 else "patches, which hold the voxels of the volumes,"
    where = "all images" if fold == "all" else f"the training cases of fold {fold}"
    others = {number for key, number in samples.items() if key not in (fold, "all")}
    more = f"; other folds count theirs ({min(others):,} to {max(others):,})" if others - {count} else ""
    reason = f"{epochs} epochs over {count:,} {what} of {where} in batches of {batch}{more}"
    return Decision(TrainingLength(recipe, epochs * one_pass, epochs, samples), origin, {"iterations": reason})


def count_by_fold(
    data: RawDataset,
    axes: Sequence[int],
    spacing: Sequence[float] | None,
    patch: Sequence[int],
    *,
    train_cases: int | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Count the samples of one pass over the training cases of each fold.

    Args:
        data: the dataset.
        axes: order of the image axes.
        spacing: target spacing in mm of all three axes, for counting patches; None for counting slices.
        patch: patch size in voxels.
        train_cases: number of cases of each fold; None for all.
        seed: seed for choosing these cases.

    Returns:
        Number of a fold, or ``all`` -> samples; folds with too few cases, or cases of unknown shape, are left out.
    """
    shapes = data.shapes(axes)
    if spacing is not None:
        pairs = zip(shapes, data.spacings(axes), strict=True)
        shapes = [[int(size) for size in compute_new_shape(shape, own, spacing)] for shape, own in pairs]
    known = len(data.cases) == len(shapes)  # else cases have changed since the fingerprint
    by_case = dict(zip(data.cases if known else map(str, range(len(shapes))), shapes, strict=True))
    folds = read_folds(list(by_case), Path(nnUNet_preprocessed, data.name), data.raw)
    counted = {}
    for number in [*map(str, range(len(folds))), "all"]:
        cases = training_cases_of(folds, number, list(by_case))
        if not cases or not by_case.keys() >= set(cases) or len(cases) < (train_cases or 0):
            continue
        chosen = cases if train_cases is None else first_cases(cases, train_cases, seed)
        counted[number] = count_samples([by_case[case] for case in chosen], patch)
    return counted


def choose_weights(task: Task, network: Architecture) -> dict[str, WeightsEntry]:
    """The official file of each part, with its hash if it is in the weights folder."""
    card, options = task.card, task.options
    chosen = {} if options.weights is None else {BACKBONE: options.weights}
    if options.head_weights is not None:
        chosen[HEAD] = head_file(card, task.head, options.head_weights)
    arguments, decoder = network["arch_kwargs"], HEAD in chosen
    try:
        parts = official_parts(card, task.head, task.adapter, arguments, chosen=chosen, decoder=decoder)
    except LookupError as error:
        raise PlanError(f"'{card.name}': {error}", code="weights-unknown") from None
    if options.weights is not None and not parts:
        raise PlanError(f"'{card.name}' has no weights called '{options.weights}'; known: none", code="weights-unknown")
    entries = {}
    for part in parts:
        path = find(part.checkpoint.files)
        digest = sha256(path) if path else None
        entries[part.name] = WeightsEntry(name=part.checkpoint.name, sha256=digest, decoder=part.decoder)
    return entries


def head_file(card: ModelCard, head: str | None, name: str) -> str:
    """The official file of a short name in ``--head-weights``."""
    if head is None or not needs_official(head) or not card.head_weights:
        raise PlanError(
            f"--head-weights: the head '{head}' of '{card.name}' starts from no file of its own", code="head-weights"
        )
    if name not in card.head_weights:
        raise PlanError(
            f"--head-weights of '{card.name}' is {' or '.join(card.head_weights)}, not '{name}'", code="head-weights"
        )
    return card.head_weights[name]


def plan_key(
    task: Task,
    length: TrainingLength,
    *,
    origin: Mapping[str, str],
    reasons: Mapping[str, str],
    weights: Mapping[str, WeightsEntry],
) -> PlanKey:
    """Our key of a new plan."""
    return PlanKey(
        model=task.card.name,
        head=task.head,
        adapter=task.adapter,
        variant=task.variant,
        **length_fields(length, task.dim),
        origin=dict(origin),
        reasons=dict(reasons),
        weights=dict(weights),
        train_cases=task.options.train_cases,
        eval_datasets=[dataset_name(other) for other in task.options.eval_datasets],
    )


def length_fields(length: TrainingLength, dim: int) -> dict[str, Any]:
    """The fields of `PlanKey` for recipe and length of the training."""
    return {
        "recipe": length.recipe,
        "iterations": length.iterations,
        "epochs": length.epochs,
        "slices": next(iter(length.samples.values()), None) if dim == 2 else None,
        "fold_samples": dict(length.samples) if length.epochs else {},
    }
