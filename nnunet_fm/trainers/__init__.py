"""Trainers by name: every legal ``fm_trainer…`` name is an importable, picklable nnUNetTrainer subclass.

    from nnunet_fm.trainers import fm_trainer, fm_trainer_stunet_b, fm_trainer_dinov2_s_linear_full_scratch

Classes are made from their name alone when they are asked for, in any process, so that nnU-Net can rebuild a
trainer from the name in a checkpoint and a spawned worker can unpickle it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from nnunet_fm.models.names import TRAINER_PREFIX, Spec

if TYPE_CHECKING:
    from nnunet_fm.trainers.base import fm_trainer


@cache
def trainer_class(name: str) -> type[fm_trainer]:
    """The trainer class of a legal name.

    Raises:
        nnunet_fm.models.names.UnknownNameError: with the nearest legal names.
    """
    from nnunet_fm.models.registry import grammar
    from nnunet_fm.trainers.base import fm_trainer

    spec = grammar().trainer(name)
    if name == TRAINER_PREFIX:
        return fm_trainer
    members = {"spec": spec, "__module__": __name__, "__qualname__": name, "__doc__": describe(spec)}
    return type(name, (fm_trainer,), members)


def describe(spec: Spec) -> str:
    """What a trainer of this meaning does, in a few sentences, from the model's card."""
    from nnunet_fm.models.registry import get_card

    sentences = []
    if spec.model is None:
        sentences.append("Trains plans of nnunet-fm with the plan's model.")
    else:
        card = get_card(spec.model)
        sentences.append(
            f"Trains {card.title} on stock or own plans, configuration {card.configuration}. {card.summary}"
        )
    if spec.head is not None:
        sentences.append(f"Decode head: {spec.head}.")
    if spec.adapter is not None:
        sentences.append(f"Adapter: {spec.adapter}.")
    if spec.scratch:
        sentences.append("Starts from random weights" + ("." if spec.adapter else ", all of them trained."))
    elif spec.model is not None and card.checkpoint is not None:
        sentences.append(
            f"Starts from {card.checkpoint.name} ({card.checkpoint.page}; licence: {card.weights_licence})."
        )
    if spec.model is not None:
        sentences.append(f"Paper: {card.paper}.")
    return " ".join(sentences)


def __getattr__(name: str) -> type[fm_trainer]:
    if not name.startswith(TRAINER_PREFIX):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return trainer_class(name)


def __dir__() -> list[str]:
    from nnunet_fm.models.registry import grammar

    return [*globals(), *grammar().trainers]


__all__ = ["describe", "trainer_class"]
