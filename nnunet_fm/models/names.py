"""The grammar of trainer, planner and plans names: every legal name maps to exactly one meaning.

    fm_trainer[_<model>][_<head>][_<adapter>][_scratch]
    fm_trainer_selftraining | fm_trainer_entropymin | fm_trainer_stock
    FMPlanner[_<model>[_<head>][_<adapter>]][_official|_thesis|_nnunet|_quick]

Legal names are enumerated rather than split at underscores, because the parts contain underscores themselves
(``sam_b`` + ``samdec_frozen_pe`` + ``rein_lora``). A few thousand strings are built once, in milliseconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from nnunet_fm.errors import FMError, InvalidValueError

TRAINER_PREFIX = "fm_trainer"
PLANNER_PREFIX = "FMPlanner"
PLANS_PREFIX = "FMPlans"
SCRATCH = "scratch"
VARIANTS = ("official", "thesis", "nnunet", "quick")
"""Plan variants at the end of a planner's name; the default, ``mission``, has no suffix."""


METHODS = ("selftraining", "entropymin", "stock")
"""Trainers of other methods: two adaptations, and stock nnU-Net on a budget of iterations."""


class UnknownNameError(FMError, AttributeError):
    """A name that the grammar does not know; the message lists the nearest legal names."""

    code = "name-unknown"

    def __init__(self, name: str, legal: Iterable[str], hint: str = "") -> None:
        spelt = {other.lower(): other for other in legal}
        words = "_".join(name.lower().replace("-", " ").replace("_", " ").split())
        near = [spelt[word] for word in difflib.get_close_matches(words, spelt, n=4, cutoff=0.5)]
        nearest = f" Nearest legal names: {', '.join(near)}." if near else ""
        super().__init__(f"'{name}' is not a name nnunet-fm knows.{nearest}{' ' + hint if hint else ''}")
        self.nearest = near


@dataclass(frozen=True)
class Parts:
    """Legal parts after a model's name: heads, adapters (default first) and variants; and aliases of the model."""

    heads: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    variants: tuple[str, ...] = VARIANTS


@dataclass(frozen=True)
class Spec:
    """Meaning of a name; for None the plan or the model card decides."""

    model: str | None = None
    head: str | None = None
    adapter: str | None = None
    scratch: bool = False
    variant: str | None = None
    method: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether the name has a model, so that stock plans can be trained."""
        return self.model is not None


def _join(*parts: str | None) -> str:
    return "_".join(p for p in parts if p)


@dataclass
class Grammar:
    """All legal names over a vocabulary of models.

    Args:
        models: canonical model name -> its legal parts.

    Raises:
        ValueError: if two different meanings share one name.
    """

    models: Mapping[str, Parts]
    trainers: dict[str, Spec] = field(init=False, default_factory=dict)
    planners: dict[str, Spec] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for method in METHODS:
            self._add(self.trainers, _join(TRAINER_PREFIX, method), Spec(method=method))
        for spelling, spec in self._combinations():
            self._add(self.trainers, _join(TRAINER_PREFIX, *spelling), spec)
            self._add(self.trainers, _join(TRAINER_PREFIX, *spelling, SCRATCH), replace(spec, scratch=True))
            if spec.model is None and (spec.head or spec.adapter):
                continue  # a planner's name has no head or adapter without a model
            for variant in (None, *(self.models[spec.model].variants if spec.model else VARIANTS)):
                self._add(self.planners, _join(PLANNER_PREFIX, *spelling, variant), replace(spec, variant=variant))

    def _combinations(self) -> Iterator[tuple[tuple[str | None, ...], Spec]]:
        heads = sorted({h for parts in self.models.values() for h in parts.heads})
        adapters = sorted({a for parts in self.models.values() for a in parts.adapters})
        for head, adapter in product((None, *heads), (None, *adapters)):
            yield (head, adapter), Spec(head=head, adapter=adapter)
        for model, parts in self.models.items():
            for spelt in (model, *parts.aliases):
                for head, adapter in product((None, *parts.heads), (None, *parts.adapters)):
                    yield (spelt, head, adapter), Spec(model=model, head=head, adapter=adapter)

    @staticmethod
    def _add(table: dict[str, Spec], name: str, spec: Spec) -> None:
        if table.setdefault(name, spec) != spec:
            raise InvalidValueError(f"name '{name}' would mean both {table[name]} and {spec}", code="name-ambiguous")

    def trainer(self, name: str) -> Spec:
        """Meaning of a trainer name; raises `UnknownNameError` with the nearest legal names."""
        if name not in self.trainers:
            raise UnknownNameError(name, self.trainers, "`nnunet-fm list trainers` prints all of them.")
        return self.trainers[name]

    def planner(self, name: str) -> Spec:
        """Meaning of a planner name; raises `UnknownNameError` with the nearest legal names."""
        if name not in self.planners:
            raise UnknownNameError(name, self.planners, "`nnunet-fm list models` prints all models.")
        return self.planners[name]


def plans_name(spec: Spec) -> str:
    """Name of the plans file that the planner of this meaning writes, e.g. ``FMPlans_dinov2_b_linear``."""
    return _join(PLANS_PREFIX, spec.model, spec.head, spec.adapter, spec.variant)


def trainer_name(spec: Spec) -> str:
    """Canonical trainer name of this meaning."""
    return _join(TRAINER_PREFIX, spec.method, spec.model, spec.head, spec.adapter, SCRATCH if spec.scratch else None)
