"""Rows of a comparison: models × heads × adapters, and twins from random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.names import Spec, trainer_name
from nnunet_fm.models.registry import get_card
from nnunet_fm.reporting.results import Control
from nnunet_fm.studies.job_names import join
from nnunet_fm.studies.schema import Model, Study, StudyError


@dataclass(frozen=True)
class Row:
    """A model to train and its label.

    Attributes:
        label: label of its runs.
        entry: the study's model with one head and one adapter; None for those of the card.
        control: ``scratch`` for the twin of a model under study.
    """

    label: str
    entry: Model
    card: ModelCard
    control: Control | None = None

    @property
    def trainer(self) -> str:
        """Name of the trainer."""
        return trainer_name(Spec(scratch=self.entry.scratch or self.control == "scratch"))

    @property
    def head(self) -> str | None:
        """The decode head, None for a network with its own."""
        return self.entry.head or self.card.default_head

    @property
    def adapter(self) -> str | None:
        """The adapter, None for a model without pre-training."""
        if self.control == "scratch" or (self.entry.scratch and self.entry.adapter is None):
            return "full" if self.card.adapters else None
        return self.entry.adapter or self.card.default_adapter


def rows(study: Study) -> list[Row]:
    """List all rows of a study, controls last; stock controls depend on the datasets and are left out.

    Raises:
        StudyError: for a head or adapter that a model does not have, or two rows of one label.
    """
    found = [row for model in study.models for row in _products(model, study)]
    if study.controls.scratch:
        found += _twins(found)
    labels = [row.label for row in found]
    for label in labels:
        if labels.count(label) > 1:
            raise StudyError(
                f"two models of the study are called '{label}': give one of them a label of its own", code="label-twice"
            )
    return found


def _products(model: Model, study: Study) -> list[Row]:
    """Combine a model with the study's heads and adapters, unless it names its own."""
    card = get_card(model.model)
    own_adapter = model.adapter or model.scratch or not card.adapters
    heads: list[str | None] = [model.head] if model.head or not card.heads else [*study.heads] or [None]
    adapters: list[str | None] = [model.adapter] if own_adapter else [*study.adapters] or [None]
    found = []
    for head in heads:
        for adapter in adapters:
            for what, part, legal in (("head", head, card.heads), ("adapter", adapter, card.adapters)):
                if part is not None and part not in legal:
                    raise StudyError(
                        f"'{card.name}' has no {what} '{part}'; legal: {', '.join(legal)}. A model that "
                        f"differs from the study's {what}s names its own, as {card.name}_{legal[0]} does",
                        code="part-unknown",
                    )
            entry = model.model_copy(update={"head": head, "adapter": adapter})
            if model.label:
                parts = [head if len(heads) > 1 else None, adapter if len(adapters) > 1 else None]
                label = join(model.label, *parts, sep=" ")
            else:
                label = join(card.name, head, adapter, "scratch" if model.scratch else None, model.variant)
            found.append(Row(label, entry, card))
    return found


def _twins(rows: Sequence[Row]) -> list[Row]:
    """Make a twin from random weights of every pre-trained model and head; it has no adapter."""
    known = {_alike(row) for row in rows if row.entry.scratch}
    twins = []
    for row in rows:
        if row.card.checkpoint is None or _alike(row) in known:
            continue
        known.add(_alike(row))
        label = row.entry.label or join(row.card.name, row.entry.head)
        twins.append(replace(row, label=f"{label} from scratch", control="scratch"))
    return twins


def _alike(row: Row) -> str:
    entry = row.entry
    return json.dumps([row.card.name, row.head, entry.variant, sorted(entry.set.items()), entry.skip], default=str)
