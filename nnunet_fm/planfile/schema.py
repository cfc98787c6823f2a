"""The one extra key ``"nnunet_fm"`` of our plans: what trainer, planner and short form read from a plan."""

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
"""Passes over the target's training cases by method, as published; longer entropy minimisation over-fits."""
STOCK_ITERATIONS = 250_000
"""Optimiser steps of a stock nnU-Net training: 1000 epochs of 250."""

Name = Annotated[str, AfterValidator(plain_name)]
"""What becomes part of a path."""


class PlanError(FMError, ValueError):
    """A plan that cannot be read or used; the message says what to do."""


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with changed fields, which hold for random weights, too.

    Args:
        recipe: the card's, or that of a trained model.
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
        # A learning rate is that of its optimiser: whoever sets one of them means the recipe as printed.
        kept = {} if {"optimizer", "learning_rate"} & set(nested) else recipe.scratch.changes()
        unchanged["scratch"] = {name: value for name, value in kept.items() if name not in nested} or None
    try:
        return Recipe(**merge(unchanged, nested))
    except ValidationError as error:
        faults = validation_faults(error, "recipe.")
        raise PlanError(f"{faults}. Recipe fields are: {', '.join(Recipe.model_fields)}", code="recipe-field") from None


class WeightsEntry(BaseModel):
    """Which official file a part of the network starts from.

    Args:
        name: of the weights, as `nnunet-fm weights list` prints it.
        sha256: of the file; None while no file was at hand.
        decoder: whether a head's mask decoder starts from the file, too, as far as shapes fit.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str | None = None
    decoder: bool = False


class Adaptation(BaseModel):
    """How a model of one dataset, the source, is adapted to the dataset of the plan, the target.

    Args:
        method: self-training, or minimising the entropy of the predictions.
        source: name of the dataset that the model was trained on.
        model_folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>`` of the source model.
        fold: fold of the source model.
        checkpoint: file name in the fold's folder.
        sha256: of that file when it was planned.
        labelled: whole cases of the target's training split whose labels are used, the first ones of a seeded order.
        labelled_cases: their names, where the user gives them.
        confidence: pseudo-labels below this softmax probability do not count.
        update_every: iterations between two updates of the teacher that makes the pseudo-labels; 1: always the student.
        teacher_momentum: the teacher is an exponential moving average of the student; None: it is the student.
        train: what is trained.
        faithful: the published procedure, where the intended one departs from it.
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
        version: of this entry; another one is refused.
        model: name of the card.
        head: decode head of a 2D model; None for a network with its own.
        adapter: which part of the network is trained; None where there is nothing pre-trained.
        variant: of the card, that the plan was made from.
        recipe: how it is trained.
        iterations: optimiser steps, met exactly; with ``fold_samples`` those of fold 0.
        epochs: passes over a fold's training cases where the iterations are counted so.
        slices: of the training cases of fold 0 in a 2D plan; in plans of older versions, of all training images.
        fold_samples: number of a fold, or ``all`` -> samples of its training cases, slices in 2D and patches in 3D. A
            training counts the samples of its own fold anew, and its iterations from them. Empty where there are no
            epochs, and in plans of older versions, whose iterations hold for every fold.
        origin: for each planned quantity where its value comes from: ``mission``, ``official``, ``thesis``,
            ``nnunet``, ``source`` (of an adapted model), ``data`` (fitted to the data), ``memory`` (fitted to the
            memory target) or ``user``.
        reasons: a sentence for each value that is not simply the card's.
        weights: official files by the part that starts from them: backbone, head, ladder.
        train_cases: restricts the training cases of a fold to so many, the first ones of an order that the recipe's
            seed fixes.
        eval_datasets: names of other datasets of the same labels whose Dice is recorded during training.
        adaptation: how a trained model is adapted; None for a training of its own.
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
            PlanError: for a version this package does not know, or entries that are unknown or illegal.
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
    """A warning where checkpoints of a plan may ask for mirrored images that their networks were not trained on.

    Versions that wrote ``mirror: true`` beside an augmentation without flips stored such checkpoints. nnU-Net's own
    predictor follows the file; ours follows the plan.
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
        version: of this entry; another one is refused.
        iterations: optimiser steps, met exactly.
        iterations_per_epoch: steps between two validations.
        validation_iterations: batches of a validation.
        seed: of the training and of the choice of its cases.
        train_cases: cases of a fold to train on; None: all.
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
