"""Trainers by name: every legal ``fm_trainer…`` name is an importable, picklable nnUNetTrainer subclass.

    from nnunet_fm.trainers import fm_trainer, fm_trainer_stunet_b, fm_trainer_dinov2_s_linear_full_scratch

A class is made from its name on first use, in any process: nnU-Net rebuilds a trainer from the name in a checkpoint,
and worker processes unpickle it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from nnunet_fm.models.names import TRAINER_PREFIX, Spec, trainer_name

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

METHODS = {
    "stock": "Stock nnU-Net as a control: its own network, loss, augmentation and schedule on stock plans, with the "
    "budget, seed and training cases of `nnunet-fm plan --control`.",
    "selftraining": "Adapts a trained model to another dataset by self-training on pseudo-labels, as planned by "
    "`nnunet-fm adapt`.",
    "entropymin": "Adapts a trained model to another dataset by minimising the entropy of its predictions, as planned "
    "by `nnunet-fm adapt`.",
}
"""Method in a trainer's name -> its description. The module named like the method holds the class."""


@cache
def trainer_class(name: str) -> type[nnUNetTrainer]:
    """The trainer class of a legal name.

    Raises:
        nnunet_fm.models.names.UnknownNameError: with the nearest legal names.
    """
    from nnunet_fm.models.registry import grammar

    spec = grammar().trainer(name)
    if spec.method is not None:
        return getattr(import_module(f"{__name__}.{spec.method}"), trainer_name(Spec(method=spec.method)))
    from nnunet_fm.trainers.foundation import fm_trainer

    if name == TRAINER_PREFIX:
        return fm_trainer
    members = {"spec": spec, "__module__": __name__, "__qualname__": name, "__doc__": describe(spec)}
    return type(name, (fm_trainer,), members)


def describe(spec: Spec) -> str:
    """Describe a trainer in a few sentences, from the model's card."""
    from nnunet_fm.models.registry import get_card

    if spec.method is not None:
        return METHODS[spec.method]
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


def __getattr__(name: str) -> type[nnUNetTrainer]:
    if not name.startswith(TRAINER_PREFIX):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return trainer_class(name)


def __dir__() -> list[str]:
    from nnunet_fm.models.registry import grammar

    return [*globals(), *grammar().trainers]


__all__ = ["describe", "trainer_class"]
