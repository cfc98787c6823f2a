"""Schema of a study file, and its reading with errors that name the nearest legal key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from nnunet_fm.errors import FMError
from nnunet_fm.io.untrusted import ForeignFileError, read_yaml
from nnunet_fm.metrics.scores_table import METRICS
from nnunet_fm.models.card import Recipe, ScratchRecipe, read_mirror
from nnunet_fm.models.names import PLANS_PREFIX, TRAINER_PREFIX, Spec, UnknownNameError
from nnunet_fm.models.registry import get_card, grammar
from nnunet_fm.planfile.schema import Method

Variant = Literal["mission", "official", "thesis", "nnunet", "quick"]
ResEnc = Annotated[
    Literal["M", "L", "XL"] | None,
    BeforeValidator(lambda size: {True: "M", False: None}.get(size, size) if isinstance(size, bool) else size),
]
Cases = Annotated[PositiveInt | None, BeforeValidator(lambda number: None if number == "all" else number)]
DEFAULT_SEED = 42
_ELSEWHERE = {
    "recipe.seed": "seeds",
    "recipe.max_minutes": "budget.minutes",
    "recipe.iterations_per_epoch": "budget.iterations_per_epoch",
    "recipe.validation_iterations": "budget.validation_iterations",
}
"""Settings with a key of their own, which stock controls follow, too."""


class StudyError(FMError, ValueError):
    """A study that cannot be read or run; the message names file, rule and cure."""


class _StudyPart(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        if isinstance(content, Mapping):
            for key in content:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, 1)
                    hint = f"did you mean '{near[0]}'? " if near else ""
                    raise ValueError(f"'{key}' is no key here: {hint}legal are {', '.join(cls.model_fields)}")
        return content


class Model(_StudyPart):
    """A model of the comparison, with settings of its own.

    ``set`` changes fields of the recipe or arguments of the network, as ``nnunet-fm plan --set`` does. ``skip`` are
    datasets that the model is neither trained nor tested on, such as those that its weights have seen.
    """

    model: str
    head: str | None = None
    adapter: str | None = None
    scratch: bool = False
    label: str | None = None
    variant: Variant | None = None
    set: dict[str, Any] = {}
    weights: str | None = None
    head_weights: str | None = None
    skip: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _name(cls, content: Any) -> Any:
        """Split a name such as ``dinov2_b_linear_full`` into model, head and adapter."""
        content = {"model": content} if isinstance(content, str) else content
        if not isinstance(content, Mapping) or not isinstance(content.get("model"), str):
            return content
        spec = parse(content["model"])
        for part in ("head", "adapter"):
            given = content.get(part)
            if given is not None and getattr(spec, part) not in (None, given):
                raise ValueError(f"'{content['model']}' names a {part}, and {part}: {given} is given as well")
        parts = {"model": spec.model, "head": spec.head, "adapter": spec.adapter, "scratch": spec.scratch}
        return {**{name: part for name, part in parts.items() if part}, **content, "model": spec.model}

    @model_validator(mode="after")
    def _legal(self) -> Model:
        check_parts(self)
        return self


class TrainingBudget(_StudyPart):
    """Length of every training; by default that of the plan.

    Args:
        iterations: optimiser steps, also of the stock controls.
        epochs: passes of 2D models over the slices of the training cases.
        minutes: stop after this time.
        iterations_per_epoch, validation_iterations: length of nnU-Net's epochs.
    """

    iterations: PositiveInt | None = None
    epochs: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    iterations_per_epoch: PositiveInt | None = None
    validation_iterations: PositiveInt | None = None

    @model_validator(mode="after")
    def _one(self) -> TrainingBudget:
        if self.iterations is not None and self.epochs is not None:
            raise ValueError("iterations and epochs say the same in two ways: give one")
        return self


class Controls(_StudyPart):
    """Control rows of the comparison, on by default.

    Args:
        stock: unchanged nnU-Net.
        resenc: nnU-Net with a residual encoder of this size.
        scratch: every pre-trained model of the study from random weights, once for all of its adapters.
        iterations: iterations of the first two, instead of the budget's; by default nnU-Net's 1,000 epochs.
        configurations: configurations of the first two; by default those of the models.
    """

    stock: bool = True
    resenc: ResEnc = "M"
    scratch: bool = True
    iterations: PositiveInt | None = None
    configurations: Annotated[list[Literal["2d", "3d_fullres"]], Field(min_length=1)] | None = None


class Adapt(_StudyPart):
    """Adaptation of every model of another domain to a dataset; see ``nnunet-fm adapt``."""

    method: Method
    labelled: NonNegativeInt | None = None
    confidence: float | None = Field(None, ge=0, lt=1)
    update_every: PositiveInt | None = None
    teacher_momentum: float | None = Field(None, ge=0, lt=1)
    train: Literal["head", "adapter", "all"] | None = None
    faithful: bool = False
    epochs: PositiveInt | None = None
    iterations: PositiveInt | None = None
    set: dict[str, Any] = {}
    label: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Adapt:
        if self.iterations is not None and self.epochs is not None:
            raise ValueError("iterations and epochs say the same in two ways: give one")
        return self


class Evaluation(_StudyPart):
    """Scoring of predictions; see ``nnunet-fm evaluate``.

    Args:
        metrics: metrics to compute; all by default.
        tolerance: tolerance of the normalised surface Dice in mm.
        empty: rule for the score of a class that is in neither map.
        include_background: score the background, too.
        group_by: cases whose share of the volume decides the size group of a class: training cases, or the case itself.
    """

    metrics: Annotated[list[str], Field(min_length=1)] = list(METRICS)
    tolerance: PositiveFloat = 1.0
    empty: Literal["nnunet", "smoothed"] = "nnunet"
    include_background: bool = False
    group_by: Literal["training", "case"] = "training"

    @field_validator("metrics")
    @classmethod
    def _there(cls, metrics: list[str]) -> list[str]:
        if unknown := [metric for metric in metrics if metric not in METRICS]:
            raise ValueError(f"'{unknown[0]}' is no metric: choose from {', '.join(METRICS)}")
        return metrics


class Resources(_StudyPart):
    """Resources of one job.

    Args:
        gpu: GPUs of a training and a prediction; by default 1 if there is one, or if a profile sends jobs elsewhere.
        cores: cores of a training; by default 8 with a GPU and 4 without, at most those of the machine.
        memory_gb: memory of a training in GB.
        hours: hours after which a scheduler ends a training; by default twice the estimate, at least 4.
        device: ``cuda``, ``cpu`` or ``mps``; by default cuda with a GPU, else cpu.
    """

    gpu: NonNegativeInt | None = None
    cores: PositiveInt | None = None
    memory_gb: PositiveFloat = 24
    hours: PositiveFloat | None = None
    device: Literal["cuda", "cpu", "mps"] | None = None


class Study(_StudyPart):
    """Models × heads × adapters × datasets × folds × seeds × numbers of training cases.

    Args:
        name: name of the study and, without ``output``, of its folder.
        title: heading of the report.
        output: output folder, relative to the current one.
        datasets: numbers, names (``Dataset501_AortaSeg24``), or names without the number (``AortaSeg24``).
        anatomies: datasets in groups that share their labels and are domains of one another.
        sources: datasets to train on; the others are for tests only.
        models: names as in trainer names, or mappings.
        heads, adapters: heads of every 2D model, and adapters of every pre-trained model, that names none.
        folds: folds of nnU-Net's split.
        seeds: one training for each.
        train_cases: numbers of training cases (few-shot), or all.
        variant, set, weights: like the options of ``nnunet-fm plan``.
        gpu_memory_target: GB that patch and batch must fit into, also for the stock controls.
        checkpoint: checkpoint to test.
        generalise: test on the other domains of the anatomy, too.
        adapt: adapt the models of every other domain of the anatomy.
        test: ``test`` is imagesTs with labelsTs, ``validation`` the validation cases of the fold, ``auto`` the first
            where it exists.
        evaluate: scoring of predictions.
        published: id of published results for comparison in the report.
    """

    name: str = Field(pattern=r"^\w[\w.-]*$")
    title: str | None = None
    output: Path | None = None
    datasets: list[str] = []
    anatomies: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    sources: list[str] = []
    models: list[Model] = Field(min_length=1)
    heads: list[str] = []
    adapters: list[str] = []
    folds: list[Annotated[str, Field(pattern=r"^(\d+|all)$")]] = Field(["0"], min_length=1)
    seeds: list[NonNegativeInt] = Field([DEFAULT_SEED], min_length=1)
    train_cases: list[Cases] = Field([None], min_length=1)
    variant: Variant = "mission"
    set: dict[str, Any] = {}
    gpu_memory_target: PositiveFloat | None = None
    budget: TrainingBudget = TrainingBudget()
    controls: Controls = Controls()
    checkpoint: Literal["final", "best"] = "final"
    generalise: bool = False
    adapt: list[Adapt] = []
    test: Literal["auto", "test", "validation"] = "auto"
    evaluate: Evaluation = Evaluation()
    resources: Resources = Resources()
    published: str | None = None

    @field_validator("datasets", "sources", "folds", mode="before")
    @classmethod
    def _words(cls, values: Any) -> Any:
        return [str(v) for v in values] if isinstance(values, list) else values

    @field_validator("anatomies", mode="before")
    @classmethod
    def _words_by_anatomy(cls, groups: Any) -> Any:
        if not isinstance(groups, Mapping):
            return groups
        return {str(k): [str(v) for v in vs] if isinstance(vs, list) else vs for k, vs in groups.items()}

    @field_validator("controls", mode="before")
    @classmethod
    def _none_or_all(cls, controls: Any) -> Any:
        if isinstance(controls, bool):
            return {} if controls else {"stock": False, "resenc": None, "scratch": False}
        return controls

    @field_validator("set")
    @classmethod
    def _settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        check_settings(settings)
        return settings

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if bool(self.datasets) == bool(self.anatomies):
            raise ValueError("give either datasets, or anatomies with the datasets of each")
        for what in ("folds", "seeds", "train_cases", "heads", "adapters", "datasets"):
            if len(set(getattr(self, what))) < len(getattr(self, what)):
                raise ValueError(f"{what} holds something twice")
        for model in self.models:
            check_variant(model, model.variant or self.variant)
        several = any(len(group) > 1 for group in self.anatomies.values())
        if (self.generalise or self.adapt) and not several:
            raise ValueError("generalise and adapt need an anatomy with several datasets: list them under anatomies")
        stock = self.controls.stock or self.controls.resenc
        limit = self.controls.iterations or self.budget.iterations
        if self.budget.minutes is not None and stock and limit is None:
            raise ValueError(
                "stock nnU-Net cannot be given minutes: add budget.iterations or controls.iterations, or switch it off "
                "with controls: {stock: false, resenc: false}"
            )
        return self

    @property
    def groups(self) -> dict[str, list[str]]:
        """Datasets by anatomy; without anatomies each dataset is one of its own."""
        return self.anatomies or {dataset: [dataset] for dataset in self.datasets}

    @property
    def folder(self) -> Path:
        """Output folder of the study."""
        return (self.output or Path(self.name)).expanduser().absolute()


def parse(name: str) -> Spec:
    """Parse ``model[_head][_adapter][_scratch]``; raises a ValueError with the nearest name."""
    prefix = f"{TRAINER_PREFIX}_"
    try:
        spec = grammar().trainer(prefix + name.removeprefix(f"{PLANS_PREFIX}_"))
    except UnknownNameError as error:
        near = [n.removeprefix(prefix) for n in error.nearest]
        raise ValueError(
            f"'{name}' is no model[_head][_adapter]{': did you mean ' + ', '.join(near) + '?' if near else ''}"
        ) from None
    if spec.model is None:
        raise ValueError(f"'{name}' names no model")
    return spec


def check_parts(model: Model) -> None:
    """Raise ValueError if a model does not have the head, adapter or weights, or a setting is illegal."""
    card = get_card(model.model)
    for what, part, legal in (("head", model.head, card.heads), ("adapter", model.adapter, card.adapters)):
        if part is not None and part not in legal:
            raise ValueError(f"'{card.name}' has no {what} '{part}'; legal: {', '.join(legal) or 'none'}")
    if model.weights is not None and card.find_checkpoint(model.weights) is None:
        known = ", ".join(c.name for c in card.checkpoints) or "none"
        raise ValueError(f"'{card.name}' has no weights '{model.weights}'; known: {known}")
    if model.variant is not None:
        check_variant(model, model.variant)
    check_settings(model.set)


def check_variant(model: Model, variant: Variant) -> None:
    """Raise ValueError if a model's card does not have the variant."""
    card = get_card(model.model)
    if variant not in card.variants:
        raise ValueError(f"'{card.name}' has no variant '{variant}'; legal: {', '.join(card.variants)}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless every key is ``recipe.<field>`` or ``network.<argument>``."""
    for key, value in settings.items():
        owner, _, field = key.partition(".")
        if key in _ELSEWHERE:
            raise ValueError(f"set: '{key}' is set by {_ELSEWHERE[key]}")
        if owner == "network" and field:
            continue
        outer, _, inner = field.partition(".")
        if owner == "recipe" and outer == "scratch" and inner in ScratchRecipe.model_fields:
            field, value = outer, {inner: value}
        if owner != "recipe" or field not in Recipe.model_fields:
            near = difflib.get_close_matches(field or owner, Recipe.model_fields, 1)
            hint = f": did you mean 'recipe.{near[0]}'?" if near else ""
            raise ValueError(f"set: '{key}' is neither recipe.<field> nor network.<argument>{hint}")
        if (
            field == "mirror"
        ):  # accepts names of axes, too, which a plan turns into indices; its messages name the field
            try:
                read_mirror(value)
            except ValueError as error:
                raise ValueError(f"set: recipe.{error}") from None
            continue
        try:
            Recipe(**{field: value})
        except ValidationError as error:
            raise ValueError(f"set: {key}: {error.errors()[0]['msg']}") from None


def read_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: with one line per fault: the key, what is wrong and the nearest legal key.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise StudyError(f"there is no {path}; `nnunet-fm study --example` prints one", code="study-missing") from None
    except ForeignFileError as error:
        raise StudyError(str(error), code=error.code) from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no study; `nnunet-fm study --example` prints one", code="study-form")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        faults = [f"{_place(e['loc'])}{_reason(e)}" for e in error.errors()]
        raise StudyError(f"{path}: " + "; ".join(faults), code="study-field") from None


def _place(location: tuple[int | str, ...]) -> str:
    """Path of a key as in ``models[2].head: ``; empty for the study itself."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"{text.removeprefix('.')}: " if text else ""


def _reason(fault: Any) -> str:
    message: str = re.sub("^(Value error|Assertion failed), ", "", fault["msg"])
    return message[:1].lower() + message[1:] if message[:1].isupper() and message[1:2].islower() else message


__all__ = ["Adapt", "Controls", "Model", "Resources", "Study", "StudyError", "TrainingBudget", "read_study"]
