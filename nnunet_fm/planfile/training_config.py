"""Configuration of a training from the plan's extra key (or the card, on stock plans) and the trainer's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_fm.data.sides import find_sides
from nnunet_fm.models.build import Architecture, architecture
from nnunet_fm.models.card import ModelCard, Recipe
from nnunet_fm.models.names import Spec, trainer_name
from nnunet_fm.models.parts import HEAD, Part, official_parts
from nnunet_fm.models.registry import get_card
from nnunet_fm.planfile.schema import Adaptation, PlanError, PlanKey


@dataclass(frozen=True)
class TrainingConfig:
    """Configuration of a training beyond nnU-Net's own plan.

    Attributes:
        card: the model.
        head, adapter: names; None if the model has none.
        scratch: whether the training starts from random weights.
        recipe: recipe of the training.
        iterations: optimiser steps.
        from_our_plan: whether the plan is one of nnunet-fm, not of stock nnU-Net.
        parts: parts of the network that start from official files.
        sha256: part -> hash of its file in the plan.
        epochs: passes over the training cases of the fold, if these decide the number of iterations.
        train_cases: number of training cases of the fold; None for all.
        eval_datasets: other datasets whose Dice is recorded.
        adaptation: adaptation of a trained model; None for any other training.
    """

    card: ModelCard
    head: str | None
    adapter: str | None
    scratch: bool
    recipe: Recipe
    iterations: int
    from_our_plan: bool
    parts: tuple[Part, ...] = ()
    sha256: Mapping[str, str | None] = field(default_factory=dict)
    epochs: int | None = None
    train_cases: int | None = None
    eval_datasets: tuple[str, ...] = ()
    adaptation: Adaptation | None = None

    @property
    def deep_supervision(self) -> bool:
        """Whether the network has several outputs and the recipe uses them."""
        return self.recipe.deep_supervision and self.card.network.deep_supervision


def resolve(plans: Mapping[str, Any], spec: Spec) -> TrainingConfig:
    """Configuration of a training from a trainer's name and a plan.

    Raises:
        PlanError: if name and plan do not fit; the message says what fits.
    """
    key = PlanKey.read(plans)
    name, plans_name = trainer_name(spec), plans.get("plans_name", "?")
    if key is None and spec.model is None:
        raise PlanError(
            f"'{name}' trains plans of nnunet-fm, but '{plans_name}' is a plan of stock nnU-Net: plan with "
            f"`nnUNetv2_plan_and_preprocess -d ID -pl FMPlanner_<model>` and pass -p FMPlans_<model>, or use a pinned "
            f"trainer such as fm_trainer_stunet_b",
            code="plan-stock",
        )
    if key is not None and spec.model is not None and spec.model != key.model:
        raise PlanError(
            f"'{name}' is pinned to {spec.model}, but '{plans_name}' plans {key.model}: use fm_trainer, or other plans",
            code="plan-model",
        )
    adaptation = key.adaptation if key else None
    _check_method(spec.method, adaptation, plans_name)
    card = get_card(spec.model or key.model)  # type: ignore[union-attr]
    head = spec.head or (key.head if key else None) or card.default_head
    adapter = spec.adapter or (key.adapter if key and not spec.scratch else None)
    if adapter is None and card.adapters:
        adapter = "full" if spec.scratch else card.default_adapter
    for what, part, legal in (("head", head, card.heads), ("adapter", adapter, card.adapters)):
        if part is not None and part not in legal:
            raise PlanError(
                f"'{card.name}' has no {what} '{part}'; legal: {', '.join(legal) or 'none'}", code="part-unknown"
            )
    planned = key.weights if key else {}
    stock = card.variants["nnunet"]
    recipe = key.recipe if key else stock.recipe
    return TrainingConfig(
        card=card,
        head=head,
        adapter=adapter,
        scratch=spec.scratch,
        recipe=recipe.from_scratch() if spec.scratch else recipe,
        iterations=key.iterations if key else stock.iterations or card.iterations["default"],
        from_our_plan=key is not None,
        parts=() if spec.scratch or adaptation else _parts(card, head, adapter, plans, key),
        sha256={part: entry.sha256 for part, entry in planned.items()},
        epochs=key.epochs if key and key.fold_samples else None,
        train_cases=key.train_cases if key else None,
        eval_datasets=tuple(key.eval_datasets) if key else (),
        adaptation=adaptation,
    )


def _check_method(method: str | None, adaptation: Adaptation | None, plans_name: str) -> None:
    """Check that plans of an adaptation are trained by the trainer of its method, and other plans by another one."""
    planned = adaptation.method if adaptation else None
    if method == planned:
        return
    if planned is None:
        raise PlanError(
            f"'{trainer_name(Spec(method=method))}' adapts a trained model, but '{plans_name}' name none: make plans "
            f"with `nnunet-fm adapt --source MODEL_FOLDER --target ID --method {method}`",
            code="plan-method",
        )
    raise PlanError(
        f"'{plans_name}' adapt a trained model by {planned}: train them with -tr {trainer_name(Spec(method=planned))}",
        code="plan-method",
    )


def _parts(
    card: ModelCard, head: str | None, adapter: str | None, plans: Mapping[str, Any], key: PlanKey | None
) -> tuple[Part, ...]:
    """Parts that start from official files: those of the plan, else those of the card."""
    planned = key.weights if key else {}
    arguments = card.network.arguments
    if key is not None:
        arguments = plans["configurations"][card.configuration]["architecture"]["arch_kwargs"]
    decoder = HEAD in planned and planned[HEAD].decoder
    chosen = {part: entry.name for part, entry in planned.items()}
    try:
        return tuple(official_parts(card, head, adapter, arguments, chosen=chosen, decoder=decoder))
    except LookupError as error:
        raise PlanError(f"plans '{plans.get('plans_name')}': {error}", code="weights-unknown") from None


def complete_entry(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Entry of a configuration in the plans, with everything that it inherits from others.

    Raises:
        PlanError: for a configuration that does not exist or inherits from itself.
    """
    known = plans["configurations"]
    if configuration not in known:
        raise PlanError(
            f"plans '{plans.get('plans_name')}' have no configuration '{configuration}', only {', '.join(known)}",
            code="configuration-missing",
        )
    entry: dict[str, Any] = {}
    chain, visited = configuration, []
    while chain is not None:
        visited.append(chain)
        entry = {**known[chain], **entry}
        chain = known[chain].get("inherits_from")
        if chain in visited:
            raise PlanError(f"configuration '{configuration}' inherits from itself", code="configuration-circle")
    return entry


def check_configuration(config: TrainingConfig, plans: Mapping[str, Any], configuration: str) -> str | None:
    """Check that the network can train a configuration; returns a warning or None.

    Raises:
        PlanError: for a configuration of the wrong dimension, a recipe for the other one, or a cascade.
    """
    entry = complete_entry(plans, configuration)
    where = f"plans '{plans.get('plans_name')}', configuration '{configuration}'"
    _check_numbers(entry, where)
    dim = len(entry["patch_size"])
    if dim != config.card.dim:
        raise PlanError(
            f"'{config.card.name}' is a {config.card.dim}D model, but configuration '{configuration}' has "
            f"{dim}D patches: train configuration {config.card.configuration}",
            code="configuration-dimension",
        )
    if not set(config.recipe.flipped_axes(dim)) <= set(range(dim)):
        raise PlanError(
            f"{where}: recipe.mirror is {config.recipe.mirror}, but patches have {dim} axes, from 0", code="mirror-axes"
        )
    if entry.get("previous_stage"):
        raise PlanError(
            f"'{config.card.name}' does not take the second stage of a cascade ('{configuration}')",
            code="cascade-second",
        )
    for name, value in (("augmentation", "slices"), ("sampling", "rare_class")):
        if config.card.dim == 3 and getattr(config.recipe, name) == value:
            raise PlanError(
                f"recipe.{name} '{value}' is for 2D models, '{config.card.name}' is a 3D one", code="recipe-dimension"
            )
    if config.recipe.feature_cache:
        _check_feature_cache(config)
    if config.card.dim == 3 and list(plans["transpose_forward"]) != [0, 1, 2] and config.card.checkpoint is not None:
        return (
            f"these plans transpose the axes to {plans['transpose_forward']}, while the weights of "
            f"'{config.card.name}' know the order (z, y, x): plan with FMPlanner_{config.card.name} to keep it"
        )
    return None


def check_sides(config: TrainingConfig, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> str | None:
    """A warning if labels differ by side and the plan flips every axis without having been checked for sides.

    Such plans come from stock nnU-Net, from older versions of this package, or from another dataset.
    """
    key, dim = PlanKey.read(plans), config.card.dim
    decided = key is not None and ("mirror" in key.reasons or key.origin.get("mirror") == "user")
    if decided or len(config.recipe.flipped_axes(dim)) < dim:
        return None
    pairs = find_sides(dataset_json["labels"]).pairs
    if not pairs:
        return None
    left, right = pairs[0]
    return (
        f"labels {left} and {right} differ by side, and plans '{plans.get('plans_name')}' flip every axis, which may "
        f"exchange them: plan with FMPlanner_{config.card.name}, which leaves the left-right axis out"
    )


def _check_feature_cache(config: TrainingConfig) -> None:
    """Raise a PlanError for a feature cache of feature maps that change, or are never needed again."""
    if config.card.dim == 3:
        raise PlanError(
            f"recipe.feature_cache is for 2D models, '{config.card.name}' is a 3D one", code="recipe-dimension"
        )
    if config.adapter not in ("freeze", "ladder"):
        raise PlanError(
            f"recipe.feature_cache keeps feature maps of a frozen backbone, but the adapter is '{config.adapter}': "
            "train with freeze or ladder, or plan with --set recipe.feature_cache=0",
            code="feature-cache",
        )
    if config.recipe.augmentation not in ("none", "flips"):
        raise PlanError(
            f"recipe.feature_cache is for slices that repeat unchanged, but augmentation "
            f"'{config.recipe.augmentation}' changes them each time: plan with --set recipe.augmentation=none, or "
            "with --set recipe.feature_cache=0",
            code="feature-cache",
        )


def _check_numbers(entry: Mapping[str, Any], where: str) -> None:
    """Raise a PlanError for a missing or impossible patch, batch or spacing of a plan that was edited by hand."""
    batch, patch, spacing = (entry.get(name) for name in ("batch_size", "patch_size", "spacing"))
    cure = "plan again with --patch, --batch or --spacing instead of editing"
    if type(batch) is not int or batch < 1:
        raise PlanError(f"{where}: batch_size is {batch!r}, not a whole number from 1: {cure}", code="plan-numbers")
    if not isinstance(patch, list) or not all(type(edge) is int and edge > 0 for edge in patch):
        raise PlanError(
            f"{where}: patch_size is {patch!r}, not a list of whole numbers from 1: {cure}", code="plan-numbers"
        )
    numbers = isinstance(spacing, list) and all(type(size) in (int, float) and size > 0 for size in spacing)
    if not numbers or len(spacing) != len(patch):  # type: ignore[arg-type]
        raise PlanError(
            f"{where}: spacing is {spacing!r}, not {len(patch)} positive numbers in mm: {cure}", code="plan-numbers"
        )


def network_architecture(config: TrainingConfig, configuration: ConfigurationManager) -> Architecture:
    """The ``architecture`` entry of the network: the plan's own, or the card's on stock plans."""
    if config.from_our_plan:
        entry = {**configuration.configuration["architecture"]}
        entry["arch_kwargs"] = dict(entry["arch_kwargs"])
        if config.head is not None:
            entry["arch_kwargs"]["head"] = config.head
        return entry
    return architecture(
        config.card,
        patch_size=configuration.patch_size,
        spacing=configuration.spacing,
        strides=configuration.configuration["architecture"]["arch_kwargs"].get("strides", []),
        head=config.head,
        normalization_schemes=configuration.normalization_schemes,
    )
