"""FMPlanner: an nnU-Net experiment planner that plans one model, and the planner classes of all legal names."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_fm.cpu.limits import shared_memory_fault
from nnunet_fm.data.folds import read_folds
from nnunet_fm.heads import needs_official
from nnunet_fm.io.dataset_json import channel_names
from nnunet_fm.io.dataset_names import dataset_name
from nnunet_fm.models.build import Architecture, architecture, build_network, legal_patch
from nnunet_fm.models.card import ModelCard, Recipe, Variant
from nnunet_fm.models.names import PLANNER_PREFIX, Spec, plans_name
from nnunet_fm.models.parts import BACKBONE, HEAD, official_parts
from nnunet_fm.models.registry import get_card, grammar
from nnunet_fm.planfile.eval_datasets import check_domains, write_plans_for
from nnunet_fm.planfile.schema import KEY, PlanError, PlanKey, WeightsEntry, changed_recipe
from nnunet_fm.planfile.write import save_plans, write_json
from nnunet_fm.plans import memory
from nnunet_fm.plans.choice import choose_model
from nnunet_fm.plans.geometry import (
    Choice,
    choose_spacing,
    enlargement,
    median_shape,
    nnunet_patch,
    shrink_patch,
    wanted_patch,
)
from nnunet_fm.plans.intensity import Normalization, check_foreground, normalization
from nnunet_fm.plans.mirroring import NAMES, Data, choose_mirroring
from nnunet_fm.plans.slices import converter_slice_axis, count_iterations, on_dataset, samples_by_fold, slice_axis
from nnunet_fm.preprocessing.grids import check_grids
from nnunet_fm.preprocessing.orientation import dataset_orientations, orientation_warning
from nnunet_fm.preprocessing.preprocessor import data_identifier
from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json, training_cases
from nnunet_fm.preprocessing.value_ranges import unit_channels
from nnunet_fm.weights.cache import find, sha256

STOCK_RESAMPLING = "resample_data_or_seg_to_shape"
DATA_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
SEG_RESAMPLING = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
PROBABILITY_RESAMPLING = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
"""Arguments of nnU-Net's own torch planner for ``resample_torch_fornnunet``, 5 times as fast as the default."""


QUICK = "quick"
"""The variant for few cases and little time."""
FEW_CASES, SHORT_MINUTES = 100, 120
"""Training cases and minutes of training up to which `QUICK` is proposed."""


@dataclass
class Options:
    """What `nnunet-fm plan` can change; None and empty leave the choice to card and data.

    ``iterations`` wins over ``epochs``. ``slice_axis`` is what `nnunet_fm.plans.slices.slice_axis` takes.
    ``eval_datasets`` are IDs or names.
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


@dataclass
class _Draft:
    """A plan in the making: what is planned, and for each number where it comes from and why.

    ``spacing`` (mm) and ``image`` (the median shape, voxels) have the network's axes.
    """

    card: ModelCard
    variant: str
    planned: Variant
    recipe: Recipe
    head: str | None
    adapter: str | None
    spacing: list[float]
    image: list[int]
    origin: dict[str, str]
    reasons: dict[str, str]


class FMPlanner(ExperimentPlanner):
    """Plans one model for one dataset and writes ``FMPlans[_<model>…].json``.

    The base class of all planner names; alone, it chooses the model from the fingerprint (`choose_model`).
    Geometry and budget come from the card's variant, fitted to the data and to ``gpu_memory_target_in_gb``.
    """

    spec = Spec()

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        options: Options | None = None,
    ) -> None:
        if fault := shared_memory_fault():  # nnU-Net lists cases in twelve processes
            raise PlanError(fault)
        raw = Path(nnUNet_raw, dataset_name(dataset_name_or_id))
        dataset_json = read_dataset_json(raw)
        for warning in check_cases(raw, dataset_json):
            print(f"WARNING: {warning}", file=sys.stderr)
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or self.default_plans_name(),
            list(overwrite_target_spacing) if overwrite_target_spacing is not None else None,
            suppress_transpose,
        )
        self.dataset_json = dataset_json
        self.dataset = training_cases(raw, dataset_json)  # nnU-Net's own listing takes hidden files for cases
        self.reader = self.determine_reader_writer().__name__
        for warning in check_grids(self.dataset, self.reader):
            print(f"WARNING: {warning}", file=sys.stderr)
        # The stock command always passes DefaultPreprocessor, so only another name can be a user's wish.
        if preprocessor_name not in ("DefaultPreprocessor", "FMPreprocessor"):
            raise PlanError(f"plans of nnunet-fm use FMPreprocessor (or --portable), not '{preprocessor_name}'")
        self.options = options or Options()
        if overwrite_target_spacing is not None:
            self.options.spacing = [float(s) for s in overwrite_target_spacing]

    @classmethod
    def default_plans_name(cls) -> str:
        """Name of the plans that this planner writes unless told otherwise."""
        return plans_name(cls.spec)

    def plan_experiment(self) -> dict[str, Any]:
        """Write the plan and return it.

        Raises:
            PlanError: if the model cannot take the data, an option is illegal, or the plan already has trained models.
        """
        spec, reasons = self.spec, {}
        if spec.model is None:
            name, reasons["model"] = choose_model(
                self.dataset_fingerprint, self.dataset_json, memory_gb=self.UNet_vram_target_GB
            )
            print(f"FMPlanner chose {name}: {reasons['model']}")
            spec = Spec(model=name, variant=spec.variant)
        assert spec.model is not None
        card = get_card(spec.model)
        if (spec.variant or "mission") not in card.variants:
            raise PlanError(f"'{card.name}' has no variant '{spec.variant}'; legal: {', '.join(card.variants)}")
        plans = self._plan(card, spec, reasons)
        recursive_fix_for_json_export(plans)
        self.plans = plans
        self.save_plans(plans)
        self._print_summary(card, plans)
        return plans

    def _plan(self, card: ModelCard, spec: Spec, reasons: dict[str, str]) -> dict[str, Any]:
        variant, cases = spec.variant or "mission", len(self.dataset_fingerprint["spacings"])
        if self.options.train_cases is not None and self.options.train_cases > cases:
            raise PlanError(f"--train-cases {self.options.train_cases}: {self.dataset_name} has {cases} training cases")
        head = spec.head or card.default_head
        adapter = spec.adapter or card.default_adapter
        published: Variant = card.variants[variant]  # type: ignore[index]
        planned = on_dataset(published, self.dataset_name, adapter)
        # What 3D weights need is what their authors did; that 2D models are trained by one recipe is the mission.
        origin = {"recipe": "official" if variant == "mission" and card.dim == 3 else variant}
        reader = self.reader
        found = dataset_orientations(self.dataset, reader)
        transpose = self._transpose(card, found, origin)
        recipe = self._recipe(planned.recipe, origin)
        data = Data(Path(self.raw_dataset_folder), self.dataset_json["labels"], self.dataset, reader, transpose)
        mirroring = choose_mirroring(recipe, self.options.recipe.get("mirror"), variant, data, card.dim)
        recipe = recipe.model_copy(update={"mirror": mirroring.axes})
        origin["mirror"] = mirroring.origin
        reasons |= mirroring.reasons
        if published.recipe.learning_rate != planned.recipe.learning_rate == recipe.learning_rate:
            reasons["learning_rate"] = f"{recipe.learning_rate:g} for adapter '{adapter}' on {self.dataset_name}"
        norm = normalization(
            planned.intensity,
            self.dataset_json,
            self.dataset_fingerprint,
            portable=self.options.portable,
            model=card.name,
        )
        reasons |= norm.reasons
        if doubts := check_foreground(self.dataset_json, self.dataset_fingerprint):
            reasons["channels"] = doubts
            print(f"WARNING: {doubts}", file=sys.stderr)
        if warning := orientation_warning(card.pretraining.orientation, found, card.name):
            reasons["orientation"] = warning
            print(f"WARNING: {warning}", file=sys.stderr)

        full_spacing = self._spacing(card, planned.geometry.spacing, variant, transpose)
        origin["spacing"] = full_spacing.origin
        if full_spacing.reason:
            reasons["spacing"] = full_spacing.reason
        shapes, spacings = self._transposed(transpose)
        if more := enlargement(spacings, full_spacing.value):
            reasons["voxels"] = more
            print(f"WARNING: {more}", file=sys.stderr)
        image = median_shape(shapes, spacings, full_spacing.value)
        spacing, image = full_spacing.value[-card.dim :], image[-card.dim :]
        if card.dim == 3 and min(image) == 1:
            raise PlanError(f"'{card.name}' is a 3D model, but the images of {self.dataset_name} have a single slice")

        draft = _Draft(card, variant, planned, recipe, head, adapter, spacing, image, origin, reasons)
        patch, batch = self._patch_and_batch(draft)
        if proposal := self._propose_quick(draft):
            reasons["variant"] = proposal
        entry = self._architecture(card, patch, spacing, head, norm)
        samples = self._samples(shapes, patch, recipe.seed) if card.dim == 2 else {}
        iterations, epochs = self._iterations(draft, samples, batch)

        configuration: dict[str, Any] = {
            "data_identifier": "",
            "preprocessor_name": "DefaultPreprocessor" if self.options.portable else "FMPreprocessor",
            "batch_size": batch,
            "patch_size": patch,
            "median_image_size_in_voxels": [float(e) for e in image],
            "spacing": spacing,
            "normalization_schemes": norm.schemes,
            "use_mask_for_norm": norm.use_mask,
            "resampling_fn_data": STOCK_RESAMPLING if self.options.portable else "fm_resample_data_to_shape",
            "resampling_fn_seg": STOCK_RESAMPLING if self.options.portable else "fm_resample_seg_to_shape",
            "resampling_fn_data_kwargs": DATA_RESAMPLING,
            "resampling_fn_seg_kwargs": SEG_RESAMPLING,
            "resampling_fn_probabilities": "resample_torch_fornnunet",
            "resampling_fn_probabilities_kwargs": PROBABILITY_RESAMPLING,
            "architecture": entry,
            "batch_dice": card.dim == 2,
        }
        plans: dict[str, Any] = {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": np.median(np.vstack(spacings), axis=0).tolist(),
            "original_median_shape_after_transp": np.median(np.vstack(shapes), axis=0).round().astype(int).tolist(),
            "image_reader_writer": reader,
            "transpose_forward": transpose,
            "transpose_backward": [transpose.index(axis) for axis in range(3)],
            "configurations": {card.configuration: configuration},
            "experiment_planner_used": type(self).__name__,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": norm.properties,
        }
        configuration["data_identifier"] = data_identifier(plans, card.configuration)
        plans[KEY] = PlanKey(
            model=card.name,
            head=head,
            adapter=adapter,
            variant=variant,
            recipe=draft.recipe,
            iterations=iterations,
            epochs=epochs,
            slices=next(iter(samples.values()), None),
            fold_samples=samples if epochs else {},
            origin=origin,
            reasons=reasons,
            weights=self._weights(card, head, adapter, entry["arch_kwargs"]),
            train_cases=self.options.train_cases,
            eval_datasets=[dataset_name(d) for d in self.options.eval_datasets],
        ).model_dump()
        return plans

    def _samples(self, shapes: Sequence[Sequence[int]], patch: Sequence[int], seed: int) -> dict[str, int]:
        """Fold -> slices of its training cases, of those that ``train_cases`` leaves of them; ``all`` comes last."""
        wanted = self.options.train_cases
        by_case = dict(zip(self.dataset, shapes, strict=False))
        if len(self.dataset) != len(shapes):  # the fingerprint is of other cases than those that are there
            by_case = {f"{index}": shape for index, shape in enumerate(shapes)}
        folds = read_folds(list(by_case), Path(nnUNet_preprocessed, self.dataset_name), Path(self.raw_dataset_folder))
        return samples_by_fold(by_case, patch, folds, train_cases=wanted, seed=seed)

    def _weights(
        self, card: ModelCard, head: str | None, adapter: str | None, arguments: Mapping[str, Any]
    ) -> dict[str, WeightsEntry]:
        """The official file of each part, with its hash if it is in the weights folder already."""
        chosen = {} if self.options.weights is None else {BACKBONE: self.options.weights}
        if self.options.head_weights is not None:
            chosen[HEAD] = self._head_file(card, head, self.options.head_weights)
        decoder = HEAD in chosen
        try:
            parts = official_parts(card, head, adapter, arguments, chosen=chosen, decoder=decoder)
        except LookupError as error:
            raise PlanError(f"'{card.name}': {error}") from None
        if self.options.weights is not None and not parts:
            raise PlanError(f"'{card.name}' has no weights called '{self.options.weights}'; known: none")
        entries = {}
        for part in parts:
            path = find(part.checkpoint.files)
            digest = sha256(path) if path else None
            entries[part.name] = WeightsEntry(name=part.checkpoint.name, sha256=digest, decoder=part.decoder)
        return entries

    def _head_file(self, card: ModelCard, head: str | None, name: str) -> str:
        """The file that a short name of ``--head-weights`` stands for."""
        if head is None or not needs_official(head) or not card.head_weights:
            raise PlanError(f"--head-weights: the head '{head}' of '{card.name}' starts from no file of its own")
        if name not in card.head_weights:
            raise PlanError(f"--head-weights of '{card.name}' is {' or '.join(card.head_weights)}, not '{name}'")
        return card.head_weights[name]

    def _transpose(self, card: ModelCard, orientations: Mapping[str, int], origin: dict[str, str]) -> list[int]:
        """Axis order: identity for 3D networks, which know an orientation; slices along the anatomy's axis in 2D."""
        by_user, conversion = self.options.slice_axis, Path(self.raw_dataset_folder, "conversion.json")
        if card.dim == 3:
            if by_user is not None:
                raise PlanError(f"--slice-axis is for 2D models; '{card.name}' is a 3D model")
            return [0, 1, 2]
        if by_user is not None:
            try:
                axis, origin["slice_axis"] = slice_axis(by_user, orientations), "user"
            except ValueError as error:
                raise PlanError(f"--slice-axis {error}") from None
        elif (by_converter := converter_slice_axis(conversion, orientations)) is not None:
            axis, origin["slice_axis"] = by_converter, "dataset"
        else:
            spacings = np.median(np.vstack(self.dataset_fingerprint["spacings"]), axis=0)
            axis, origin["slice_axis"] = int(np.argmax(spacings)), "data"
        return [axis, *(a for a in range(3) if a != axis)]

    def _transposed(self, transpose: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        """Shapes (voxels) and spacings (mm) of all cases in the plan's axis order."""
        shapes = [[shape[a] for a in transpose] for shape in self.dataset_fingerprint["shapes_after_crop"]]
        spacings = [[float(spacing[a]) for a in transpose] for spacing in self.dataset_fingerprint["spacings"]]
        return shapes, spacings

    def _spacing(self, card: ModelCard, wanted: list[float] | str | None, variant: str, transpose: list[int]) -> Choice:
        """Target spacing of all three axes in mm, in the plan's axis order."""
        shapes, spacings = self._transposed(transpose)
        by_user, self.overwrite_target_spacing = self.options.spacing, None
        if card.dim == 2 and variant != "nnunet":
            native = [float(s) for s in np.median(np.vstack(spacings), axis=0)]
        else:
            native = [float(self.determine_fullres_target_spacing()[a]) for a in transpose]
        if isinstance(by_user, list):
            if len(by_user) not in (card.dim, 3) or min(by_user) <= 0:
                raise PlanError(f"a spacing for '{card.name}' is {card.dim} positive numbers in mm, not {by_user}")
            # Three numbers name the image's own axes, two the plane of the slices.
            full = [by_user[a] for a in transpose] if len(by_user) == 3 else [native[0], *by_user]
            return Choice(full, "user")
        if by_user == "native":
            return Choice(native, "user")
        if wanted is None or wanted == "native":
            return Choice(native, "nnunet" if variant == "nnunet" else "data")
        assert not isinstance(wanted, str)
        if card.dim == 2:
            return Choice([native[0], *wanted], variant)
        return choose_spacing(wanted, native, shapes, spacings, variant)

    def _patch_and_batch(self, draft: _Draft) -> tuple[list[int], int]:
        """Patch and batch size, shrunk to the data and to the memory target unless the user gave both.

        At a published in-plane spacing the patch of a 2D model is a published field of view, and small images are
        padded to it.
        """
        card, spacing, image = draft.card, draft.spacing, draft.image
        origin, reasons, geometry = draft.origin, draft.reasons, draft.planned.geometry
        wanted_edges = nnunet_patch(image, spacing) if draft.variant == "nnunet" else geometry.patch
        as_published = card.dim == 2 and isinstance(geometry.spacing, list) and self.options.spacing is None
        if self.options.patch is not None:
            patch = [int(e) for e in self.options.patch]
            if len(patch) != card.dim or min(patch) < 1:
                raise PlanError(f"a patch for '{card.name}' has {card.dim} positive edges, not {patch}")
            legal = legal_patch(card, patch, spacing)[0]
            if legal != patch:
                raise PlanError(f"'{card.name}' cannot take a patch of {patch}; the next legal one is {legal}")
            origin["patch_size"] = "user"
        else:
            patch = wanted_patch(card, wanted_edges, wanted_edges if as_published else image, spacing)
            origin["patch_size"] = draft.variant if patch == list(wanted_edges) else "data"
            if origin["patch_size"] == "data":
                reasons["patch_size"] = f"the median image has {image} voxels, less than the patch {wanted_edges}"
        batch = self.options.batch or geometry.batch
        origin["batch_size"] = "user" if self.options.batch else draft.variant

        cost = self._memory_cost(draft)
        fixed = self.options.patch is not None or card.network.resizes
        shrink = (lambda p: None) if fixed else (lambda p: shrink_patch(card, p, image, spacing))
        fitted, fitted_batch, fits = memory.fit(cost, tuple(patch), batch, shrink, self.UNet_vram_target_GB * 1024**3)
        if not fits:
            reasons["memory"] = (
                f"even patch {list(fitted)} and batch {fitted_batch} are predicted to need more than "
                f"{self.UNet_vram_target_GB:g} GB"
            )
            print(f"WARNING: {reasons['memory']}", file=sys.stderr)
        for what, before, after in (("patch_size", patch, list(fitted)), ("batch_size", batch, fitted_batch)):
            if before != after:
                origin[what] = "memory"
                reasons[what] = f"{before} does not fit {self.UNet_vram_target_GB:g} GB"
        return list(fitted), fitted_batch

    def _architecture(
        self,
        card: ModelCard,
        patch: Sequence[int],
        spacing: Sequence[float],
        head: str | None,
        norm: Normalization | None = None,
    ) -> Architecture:
        """The ``architecture`` entry for a patch (voxels) and spacing (mm), with the user's changes of arguments."""
        try:
            return architecture(
                card,
                patch_size=patch,
                spacing=spacing,
                strides=legal_patch(card, patch, spacing)[1],
                head=head,
                normalization_schemes=norm.schemes if norm else (),
                unit_channels=unit_channels(norm.schemes, norm.properties) if norm else (),
                changes=self.options.network,
            )
        except ValueError as error:
            raise PlanError(f"network: {error}") from None

    def _memory_cost(self, draft: _Draft) -> memory.Cost:
        """Predicted bytes of one training step on a GPU, for a patch and a batch size."""
        channels = len(channel_names(self.dataset_json))
        labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        supervised = draft.recipe.deep_supervision and draft.card.network.deep_supervision

        @cache
        def cost(patch: tuple[int, ...], batch: int) -> float:
            entry = self._architecture(draft.card, patch, draft.spacing, draft.head)
            return memory.gpu_bytes(
                lambda: build_network(
                    entry, channels, labels.num_segmentation_heads, adapter=draft.adapter, deep_supervision=supervised
                ),
                patch,
                batch,
                channels,
                draft.recipe.optimizer,
            )

        return cost

    def _recipe(self, recipe: Recipe, origin: dict[str, str]) -> Recipe:
        """The card's recipe with the user's changes."""
        if not self.options.recipe:
            return recipe
        origin["recipe"] = f"{origin['recipe']}, changed by user: {', '.join(sorted(self.options.recipe))}"
        changes = dict(self.options.recipe)
        changes["mirror"] = "all" if "augmentation" in changes else recipe.mirror  # `choose_mirroring` has the rest
        return changed_recipe(recipe, changes)

    def _propose_quick(self, draft: _Draft) -> str | None:
        """A sentence that proposes the variant ``quick`` where cases are few and time is short; None elsewhere."""
        cases = self.options.train_cases or len(self.dataset_fingerprint["spacings"])
        if draft.variant != "mission" or QUICK not in draft.card.variants or cases > FEW_CASES:
            return None
        minutes = draft.recipe.max_minutes
        if minutes is not None and minutes <= SHORT_MINUTES:
            time = f"{minutes:g} minutes"
        elif minutes is None and self.options.iterations is None and not torch.cuda.is_available():
            time = "no GPU"
        else:
            return None
        return (
            f"{cases} training cases and {time}: the recipe of --variant {QUICK} reaches its result in fewer "
            f"iterations ({draft.card.variants[QUICK].iterations:,}, light augmentation without mirroring)"
        )

    def _iterations(self, draft: _Draft, samples: Mapping[str, int], batch: int) -> tuple[int, int | None]:
        """Optimiser steps, and how many passes over a fold's slices they are where the plan counts in these.

        An epoch of such a plan is one pass, unless the user says otherwise.
        """
        by_user, card = self.options, draft.card
        if by_user.epochs is not None and not samples:
            raise PlanError(f"--epochs are passes over slices; '{card.name}' is a 3D model, give it --iterations")
        draft.origin["iterations"] = "user" if by_user.iterations or by_user.epochs else draft.variant
        epochs = by_user.epochs or draft.planned.epochs
        if epochs is None or not samples:
            key = self.dataset_name.split("_", 1)[-1].lower()
            by_card = draft.planned.iterations or card.iterations.get(key, card.iterations["default"])
            return by_user.iterations or by_card, None
        iterations, one_pass, reason = count_iterations(epochs, samples, batch, card.dim)
        recipe = draft.recipe
        if "iterations_per_epoch" not in by_user.recipe:
            recipe = recipe.model_copy(update={"iterations_per_epoch": one_pass})
        if "validation_iterations" not in by_user.recipe:
            fewer = min(recipe.validation_iterations, recipe.iterations_per_epoch)
            recipe = recipe.model_copy(update={"validation_iterations": fewer})
        draft.recipe = recipe
        if by_user.iterations is not None:
            return by_user.iterations, None
        draft.reasons["iterations"] = reason
        return iterations, epochs

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Replace the plan file, in one step; nothing of an older file is kept.

        Raises:
            PlanError: if models were trained with a different plan of this name and ``force`` is not set.
        """
        folder = Path(nnUNet_preprocessed, self.dataset_name)
        others = plans[KEY]["eval_datasets"]
        check_domains(self.dataset_name, self.dataset_json, others)
        target = save_plans(plans, force=self.options.force)
        commands = write_plans_for(plans, others)
        write_json(self.dataset_json, folder / "dataset.json")
        print(f"Plans were saved to {target}")
        if commands:
            print("Preprocess the other datasets that the training is to be measured on:")
            print("\n".join(f"  {command}" for command in commands))

    def _print_summary(self, card: ModelCard, plans: Mapping[str, Any]) -> None:
        key, configuration = plans[KEY], plans["configurations"][card.configuration]
        origin = key["origin"]
        print(f"\n{card.title} on {self.dataset_name}, configuration {card.configuration}:")
        print(f"  spacing     {configuration['spacing']} mm  [{origin['spacing']}]")
        print(f"  patch size  {configuration['patch_size']}  [{origin['patch_size']}]")
        print(f"  batch size  {configuration['batch_size']}  [{origin['batch_size']}]")
        print(f"  iterations  {key['iterations']}  [{origin['iterations']}]")
        if key["epochs"]:
            print(f"  epochs      {key['epochs']}")
        if key["train_cases"]:
            print(f"  cases       {key['train_cases']} of each fold's training cases")
        print(f"  intensities {', '.join(configuration['normalization_schemes'])}")
        first, axes = 3 - card.dim, key["recipe"]["mirror"]
        names = [NAMES[plans["transpose_forward"][first + axis]] for axis in axes]
        print(f"  mirroring   {', '.join(names) or 'none'}  [{origin['mirror']}]")
        for subject, reason in key["reasons"].items():
            print(f"  {subject}: {reason}")


@cache
def planner_class(name: str) -> type[FMPlanner]:
    """The planner class of a legal name; raises `UnknownNameError` with the nearest names."""
    spec = grammar().planner(name)
    if name == PLANNER_PREFIX:
        return FMPlanner
    of = f"Plans {get_card(spec.model).title}" if spec.model else "Plans the model that suits the data"
    doc = f"{of}; writes {plans_name(spec)}.json."
    return type(name, (FMPlanner,), {"spec": spec, "__module__": __name__, "__qualname__": name, "__doc__": doc})


def __getattr__(name: str) -> type[FMPlanner]:
    if not name.startswith(PLANNER_PREFIX):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return planner_class(name)


__all__ = ["FMPlanner", "Options", "planner_class"]
