"""Checkpoints that an epoch is the best for, without a training."""

from __future__ import annotations

from nnunet_fm.records.training import Overlap
from nnunet_fm.trainers.callbacks import EpochResult
from nnunet_fm.trainers.checkpoints import BEST, LOWEST_LOSS, BestCheckpoints


def epoch(loss: float, volumes: float | None = None, *, new_best: bool = False) -> EpochResult:
    overlap = None if volumes is None else Overlap(dice=volumes, miou=0.0)
    return EpochResult(0, val_loss=loss, dice_ema=0.25, new_best=new_best, per_volume=overlap)


def test_the_moving_average_chooses_where_no_volumes_are_measured() -> None:
    best, said = BestCheckpoints(), list[str]()
    chosen = [best.choose(epoch(loss, new_best=new), said.append) for loss, new in ((2, True), (1, False), (3, True))]
    assert chosen == [[BEST], [], [BEST]]
    assert said == ["New best EMA pseudo Dice: 0.2500"] * 2


def test_volumes_and_the_loss_choose_where_volumes_are_measured() -> None:
    best, said = BestCheckpoints(by_volumes=True), list[str]()
    chosen = [best.choose(result, said.append) for result in (epoch(2, new_best=True), epoch(1, 0.5), epoch(1, 0.4))]
    assert chosen == [[LOWEST_LOSS], [LOWEST_LOSS, BEST], []]
    assert said[-1] == "Dice of validation volumes 0.4000, best 0.5000"
    again = BestCheckpoints(by_volumes=True)
    again.load_state(best.state())
    assert again.choose(epoch(1.5, 0.5), said.append) == [] and again.choose(epoch(0.5, 0.6), said.append) == [
        LOWEST_LOSS,
        BEST,
    ]
