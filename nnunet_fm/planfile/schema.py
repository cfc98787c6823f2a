"""Schema of the extra key ``"nnunet_fm"`` of our plans, for trainers, planners and the short form of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from nnunet_fm.data.presets import MIRRORING_PRESETS
from nnunet_fm.errors import FMError
from nnunet_fm.io.messages import validation_faults
from nnunet_fm.io.untrusted import plain_name
from nnunet_fm.models.card import Recipe
from nnunet_fm.models.registry import merge

KEY = "nnunet_fm"
STOCK_KEY = "nnunet_fm_stock"
VERSION = 1

Method = Literal["selftraining", "entropymin"]
"""Method of adaptation."""
ADAPTATION_EPOCHS = {"selftraining": 20, "entropymin": 2}
"""Method -> passes over the target's training cases, as published; longer entropy minimisation overfits."""
STOCK_ITERATIONS = 250_000
"""Optimiser steps of a stock nnU-Net training: 1000 epochs of 250."""

Name = Annotated[str, AfterValidator(plain_name)]
"""A name that becomes part of a path."""


class PlanError(FMError, ValueError):
    """A plan that cannot be read or used; the message says what to do."""


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Change fields of a recipe, also for trainings from random weights.

    Args:
        recipe: recipe of the card, or of a trained model.
        changes: field -> value; ``scratch.<field>`` changes a field of `Recipe.scratch`.

    Raises:
        PlanError: for an unknown field or an illegal value; the message lists all fields.
    """
    nested: dict[str, Any] = {}
    for name, value in changes.items():
        owner, dot, inner = name.partition(".")
        nested = merge(nested, {owner: {inner: value}} if dot else {name: value})
    unchanged = recipe.model_dump()
    if recipe.scratch is not None and not {"scratch", "scratch_rate"} & set(nested):
        # Optimiser and learning rate belong together: a user who sets one of them means the printed recipe.
        kept = {} if {"optimizer", "learning_rate"} & set(nested) else recipe.scratch.changes()
        unchanged["scratch"] = {name: value for name, value in kept.items() if name not in nested} or None
    try:
        return Recipe(**merge(unchanged, nested))
    except ValidationError as error:
        faults = validation_faults(error, "recipe.")
        raise PlanError(f"{faults}. Recipe fields are: {', '.join(Recipe.model_fields)}", code="recipe-field") from None


class WeightsEntry(BaseModel):
    """The official file from which a part of the network starts.

    Args:
        name: name of the weights in `nnunet-fm weights list`.
        sha256: hash of the file; None if it was not in the weights folder during planning.
        decoder: whether a head's mask decoder also starts from the file, as far as shapes fit.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str | None = None
    decoder: bool = False


class Adaptation(BaseModel):
    """Adaptation of a model of one dataset, the source, to the dataset of the plan, the target.

    Args:
        method: self-training, or minimising the entropy of the predictions.
        source: name of the dataset on which the model was trained.
        model_folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>`` of the source model.
        fold: fold of the source model.
        checkpoint: file name in the fold's folder.
        sha256: hash of the checkpoint at the time of planning.
        labelled: number of training cases of the target whose labels are used, the first ones of a seeded order.
        labelled_cases: names of these cases, if the user gives them.
        confidence: smallest probability of a pseudo-label.
        update_every: iterations between two updates of the teacher, which predicts the pseudo-labels; 1: always the
            student.
        teacher_momentum: momentum of a teacher that is a moving average of the student; None: a copy of the student.
        train: the part of the network to train.
        faithful: whether to follow the published code where it departs from its text.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    method: Method
    source: Name
    model_folder: str
    fold: Name = "0"
    checkpoint: Name = "checkpoint_best.pth"
    sha256: str
    labelled: NonNegativeInt = 3
    labelled_cases: list[str] = []
    confidence: float = Field(0.9, ge=0, lt=1)
    update_every: PositiveInt = 1
    teacher_momentum: float | None = Field(None, ge=0, lt=1)
    train: Literal["head", "adapter", "all"] = "head"
    faithful: bool = False


class PlanKey(BaseModel):
    """Content of the extra key.

    Args:
        version: version of this entry; another one is refused.
        model: name of the card.
        head: decode head of a 2D model; None for a network with its own.
        adapter: adapter, which decides the trained part of the network; None for a network without pre-training.
        variant: variant of the card.
        recipe: recipe of the training.
        iterations: optimiser steps, met exactly; with ``fold_samples`` those of fold 0.
        epochs: passes over a fold's training cases, if these decide the number of iterations.
        slices: number of slices of the training cases of fold 0 in a 2D plan; in older plans, of all training images.
        fold_samples: number of a fold, or ``all`` -> samples of its training cases, slices in 2D and patches in 3D. A
            training counts the samples of its own fold again, and its iterations from them. Empty without epochs, and
            in older plans, whose iterations hold for every fold.
        origin: planned quantity -> origin of its value: ``mission``, ``official``, ``thesis``, ``nnunet``, ``source``
            (of an adapted model), ``data`` (fitted to the data), ``memory`` (fitted to the memory target) or ``user``.
        reasons: a sentence for each value that is not the card's.
        weights: part (backbone, head, ladder) -> official file from which it starts.
        train_cases: number of training cases of a fold, the first ones of an order fixed by the recipe's seed; None for
            all.
        eval_datasets: names of other datasets with the same labels, whose Dice is recorded during training.
        adaptation: adaptation of a trained model; None for any other training.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    version: int = VERSION
    model: str
    head: str | None = None
    adapter: str | None = None
    variant: str = "mission"
    recipe: Recipe
    iterations: PositiveInt
    epochs: PositiveInt | None = None
    slices: PositiveInt | None = None
    fold_samples: dict[str, PositiveInt] = {}
    origin: dict[str, str] = {}
    reasons: dict[str, str] = {}
    weights: dict[str, WeightsEntry] = {}
    train_cases: PositiveInt | None = None
    eval_datasets: list[Name] = []
    adaptation: Adaptation | None = None

    @classmethod
    def read(cls, plans: Mapping[str, Any]) -> PlanKey | None:
        """The validated key of a plan; None for stock plans.

        Raises:
            PlanError: for an unknown version, or unknown or illegal entries.
        """
        if KEY not in plans:
            return None
        content, name = plans[KEY], plans.get("plans_name", "?")
        if not isinstance(content, dict) or content.get("version") != VERSION:
            version = content.get("version") if isinstance(content, dict) else content
            raise PlanError(
                f"plans '{name}' carry version {version!r} of the '{KEY}' entry, this nnunet-fm reads version "
                f"{VERSION}: plan again with this version, or install the version that wrote the plans",
                code="plan-version",
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise PlanError(f"plans '{name}', entry '{KEY}': {validation_faults(error)}", code="plan-field") from None


def unseen_mirroring(plans: Mapping[str, Any]) -> str | None:
    """Warning for plans whose checkpoints may allow mirrored images without a training on them.

    Older versions stored such checkpoints for ``mirror: true`` with an augmentation without flips. nnU-Net's own
    predictor follows the checkpoint; ours follows the plan.
    """
    recipe = plans.get(KEY, {}).get("recipe", {})
    if recipe.get("mirror") is not True or recipe.get("augmentation", "nnunet") in MIRRORING_PRESETS:
        return None
    return (
        f"plans '{plans.get('plans_name', '?')}' are of an older nnunet-fm and flip nothing in training, but its "
        f"checkpoints tell nnUNetv2_predict to average over mirrored images: give it --disable_tta (`nnunet-fm "
        f"predict` leaves these images out by itself)"
    )


class StockKey(BaseModel):
    """Content of the key ``nnunet_fm_stock`` of a stock plan that ``fm_trainer_stock`` trains as a control.

    nnU-Net's own trainer, network, loss, augmentation and schedule; only budget, seed and training cases are set.

    Args:
        version: version of this entry; another one is refused.
        iterations: optimiser steps, met exactly.
        iterations_per_epoch: optimiser steps between two validations.
        validation_iterations: batches of a validation.
        seed: seed of the training and of the choice of its cases.
        train_cases: number of training cases of a fold; None for all.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    version: int = VERSION
    iterations: PositiveInt
    iterations_per_epoch: PositiveInt = 250
    validation_iterations: PositiveInt = 50
    seed: int = 42
    train_cases: PositiveInt | None = None

    @classmethod
    def read(cls, plans: Mapping[str, Any]) -> StockKey:
        """The validated key of a stock plan.

        Raises:
            PlanError: if the plan has none, or one with unknown or illegal entries.
        """
        name = plans.get("plans_name", "?")
        if STOCK_KEY not in plans:
            raise PlanError(
                f"plans '{name}' have no '{STOCK_KEY}' entry, from which fm_trainer_stock takes its budget: make plans "
                f"that have with `nnunet-fm plan -d ID --control stock`",
                code="plan-entry",
            )
        try:
            return cls.model_validate(plans[STOCK_KEY])
        except ValidationError as error:
            raise PlanError(
                f"plans '{name}', entry '{STOCK_KEY}': {validation_faults(error)}", code="plan-field"
            ) from None
