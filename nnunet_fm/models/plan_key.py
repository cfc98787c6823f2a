"""The one extra key ``"nnunet_fm"`` of our plans: what trainer, planner and short form read from a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from nnunet_fm.models.card import Recipe

KEY = "nnunet_fm"
STOCK_KEY = "nnunet_fm_stock"
VERSION = 1


class PlanError(ValueError):
    """A plan that cannot be read or used; the message says what to do."""


class WeightsEntry(BaseModel):
    """Which official file a part of the network starts from; the hash is None while no file was at hand.

    ``decoder`` says that a head's mask decoder starts from the file, too, as far as shapes fit.
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
    method: Literal["selftraining", "entropymin"]
    source: str
    model_folder: str
    fold: str = "0"
    checkpoint: str = "checkpoint_best.pth"
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

    ``origin`` says for each planned quantity where its value comes from: ``mission``, ``official``, ``thesis``,
    ``nnunet``, ``source`` (of an adapted model), ``data`` (fitted to the data), ``memory`` (fitted to the memory
    target) or ``user``.
    ``reasons`` holds a sentence for each value that is not simply the card's.
    ``epochs`` are passes over the ``slices`` of all training images where a 2D plan counts its iterations so.
    ``train_cases`` restricts the training cases of a fold to so many, the first ones of an order that the recipe's seed
    fixes. ``eval_datasets`` are names of other datasets of the same labels whose Dice is recorded during training.
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
    origin: dict[str, str] = {}
    reasons: dict[str, str] = {}
    weights: dict[str, WeightsEntry] = {}
    train_cases: PositiveInt | None = None
    eval_datasets: list[str] = []
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
                f"{VERSION}: plan again with this version, or install the version that wrote the plans"
            )
        try:
            return cls(**content)
        except ValidationError as error:
            raise PlanError(f"plans '{name}', entry '{KEY}': {_faults(error)}") from None


class StockKey(BaseModel):
    """Content of the key ``nnunet_fm_stock`` of a stock plan that ``fm_trainer_stock`` trains as a control.

    nnU-Net's own trainer, network, loss, augmentation and schedule; only budget, seed and training cases are set.
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
                f"that have with `nnunet-fm plan -d ID --control stock`"
            )
        try:
            return cls(**plans[STOCK_KEY])
        except ValidationError as error:
            raise PlanError(f"plans '{name}', entry '{STOCK_KEY}': {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
