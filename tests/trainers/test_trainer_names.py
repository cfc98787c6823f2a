"""Every name of a trainer is a class that can be sent to another process."""

from __future__ import annotations

import multiprocessing
import pickle
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_fm.trainers
from nnunet_fm.models.registry import grammar
from tests.helpers.errors import fails


def test_every_listed_name_is_a_trainer_class() -> None:
    names = [n for n in dir(nnunet_fm.trainers) if n.startswith("fm_trainer")]
    assert set(names) == set(grammar().trainers)
    for name in names:
        made = getattr(nnunet_fm.trainers, name)
        assert issubclass(made, nnUNetTrainer) and made.__name__ == name and len(made.__doc__) > 20
        assert pickle.loads(pickle.dumps(made)) is made


def test_a_trainer_lives_in_a_spawned_process() -> None:
    made = nnunet_fm.trainers.fm_trainer_dinov2_s_linear_full_scratch
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_name_and_adapter, (made,)) == (made.__name__, "full")


def _name_and_adapter(made: Any) -> tuple[str, str]:
    return made.__name__, made.spec.adapter


def test_unknown_trainers_name_the_nearest() -> None:
    with fails("name-unknown", "fm_trainer_stunet_s"):
        _ = nnunet_fm.trainers.fm_trainer_stunet_ss
    assert not hasattr(nnunet_fm.trainers, "fm_trainer_nonsense")
