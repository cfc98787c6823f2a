"""What ends a training early, `max_minutes` and `patience`: how it ends, what it leaves, and the same with a break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.trainers import budget as budget_module
from nnunet_fm.trainers import fm_trainer
from nnunet_fm.trainers.callbacks import Callback
from nnunet_fm.trainers.callbacks.fold_lock import check_free
from nnunet_fm.trainers.loading import ProcessLoader, end_loaders
from tests.helpers.datasets import empty, training_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.trainings import Killed, kill_after, make_trainer, record_of

CPU = torch.device("cpu")
SHAPE = (4, 20, 22)
NUMBER = 670


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("ends")
    with training_folders(root) as variables:
        folder = write_dataset(variables["nnUNet_raw"], NUMBER, shape=SHAPE, cases=5, test_cases=0)
        write_fingerprint(folder, [SHAPE] * 5, [(2.0, 1.0, 1.0)] * 5)
        yield root


@pytest.fixture(autouse=True)
def empty_results(folders: Path) -> Iterator[None]:
    yield
    empty(folders / "nnUNet_results")


def make_plans(name: str, **recipe: Any) -> dict[str, Any]:
    """Plans of a small U-Net on slices, two iterations an epoch, a thousand in all."""
    recipe = {"learning_rate": 1e-2, "augmentation": "none", "sampling": "nnunet", "mirror": False, "save_every": 1,
              "iterations_per_epoch": 2, "validation_iterations": 1, "schedule": "poly", "warmup": 0,
              "volume_dice_every": 0, **recipe}  # fmt: skip
    options = Options(
        iterations=1000, recipe=recipe, network={"channels": [4, 4, 4, 4, 4], "image_size": 32}, force=True
    )
    plans = planner_class("FMPlanner_vanilla_unet2d")(NUMBER, 40, plans_name=name, options=options).plan_experiment()
    preprocess_dataset(NUMBER, name, ["2d"], [1], show_progress_bar=False)
    return plans


def resumed(plans: dict[str, Any], checkpoint: str) -> Any:
    """A trainer as ``nnUNetv2_train --c`` makes it."""
    trainer = make_trainer(plans)
    trainer.load_checkpoint(str(Path(trainer.output_folder, checkpoint)))
    return trainer


def watched(trainer: Any) -> list[tuple[float, float]]:
    """Rate and loss of every step that the trainer will take."""
    steps: list[tuple[float, float]] = []
    step = trainer.train_step

    def train_step(batch: Any) -> Any:
        result = step(batch)
        steps.append((trainer.optimizer.param_groups[0]["lr"], float(result["loss"])))
        return result

    trainer.train_step = train_step
    return steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The budget's clock; a test sets ``seconds``."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(budget_module, "monotonic", lambda: clock.seconds)
    return clock


def ticking(trainer: Any, clock: SimpleNamespace) -> list[tuple[float, float]]:
    """Let every training step take 10 s; returns what `watched` does."""
    steps = watched(trainer)
    step = trainer.train_step

    def train_step(batch: Any) -> Any:
        clock.seconds += 10
        return step(batch)

    trainer.train_step = train_step
    return steps


def test_a_training_with_a_time_limit_goes_on_where_it_was(clock: SimpleNamespace) -> None:
    plans = make_plans("FMPlans_timed", max_minutes=1.1)
    whole = make_trainer(plans)
    expected = ticking(whole, clock)
    whole.run_training()
    assert (whole.iteration, whole.current_epoch, whole.ended_by) == (7, 4, "max_minutes")
    rates = [rate for rate, _ in expected]
    assert rates == sorted(set(rates), reverse=True), "the rate falls with the time"

    first = make_trainer(plans)
    before = ticking(first, clock)
    kill_after(first, 2)
    with pytest.raises(Killed):
        first.run_training()
    clock.seconds += 10_000  # between the two nothing is trained
    second = resumed(plans, "checkpoint_latest.pth")
    after = ticking(second, clock)
    second.run_training()
    assert before + after == expected and len(before) == 4
    assert second.seconds_spent == 70 and record_of(second).ended_by == "max_minutes"

    again = resumed(plans, "checkpoint_final.pth")
    more = ticking(again, clock)
    again.run_training()
    assert not more and again.iteration == 7, "a training whose time is up is not trained on"


def judged_by(trainer: Any, scores: dict[int, float]) -> None:
    """Give each epoch's validation patches a Dice; an epoch that is not named keeps the one before."""
    validated = trainer.on_validation_epoch_end

    def on_validation_epoch_end(outputs: Any) -> None:
        epoch = max(e for e in scores if e <= trainer.current_epoch)
        log = trainer.logger.log

        def changed(key: str, value: Any, step: int) -> None:
            log(key, scores[epoch] if key == "mean_fg_dice" else value, step)

        trainer.logger.log = changed
        try:
            validated(outputs)
        finally:
            trainer.logger.log = log

    trainer.on_validation_epoch_end = on_validation_epoch_end


RISES_AGAIN = {0: 0.5, 1: 0.4, 3: 0.9, 4: 0.1}
"""The moving average falls twice, rises above its first value, and falls from the fifth epoch on."""


def test_patience_ends_a_training_with_everything_that_others_have() -> None:
    plans = make_plans("FMPlans_patient", patience=3)
    trainer = make_trainer(plans)
    steps = watched(trainer)
    judged_by(trainer, RISES_AGAIN)
    trainer.run_training()
    assert (trainer.current_epoch, trainer.iteration, trainer.ended_by) == (7, 14, "patience")
    assert [rate for rate, _ in steps] == pytest.approx([1e-2 * (1 - i / 1000) ** 0.9 for i in range(14)])
    record = record_of(trainer)
    assert (record.ended_by, record.iterations, len(record.validations)) == ("patience", 14, 7)
    log = Path(trainer.log_file).read_text()
    assert "has not risen above 0.5229 in 3 epochs (patience): the training ends here" in log
    assert trainer._best_ema == pytest.approx(0.5229)
    folder = Path(trainer.output_folder)
    assert (folder / "checkpoint_final.pth").is_file() and not (folder / "checkpoint_latest.pth").exists()
    trainer.perform_actual_validation(save_probabilities=False)
    assert json.loads((folder / "validation" / "summary.json").read_text())["foreground_mean"]


def test_patience_counts_on_after_a_break() -> None:
    plans = make_plans("FMPlans_patient", patience=3)
    whole = make_trainer(plans)
    expected = watched(whole)
    judged_by(whole, RISES_AGAIN)
    whole.run_training()

    first = make_trainer(plans)
    before = watched(first)
    judged_by(first, RISES_AGAIN)
    kill_after(first, 6)
    with pytest.raises(Killed):
        first.run_training()
    assert record_of(first).ended_by is None
    second = resumed(plans, "checkpoint_latest.pth")
    after = watched(second)
    judged_by(second, RISES_AGAIN)
    second.run_training()
    assert before + after == expected and len(after) == 2

    again = resumed(plans, "checkpoint_final.pth")
    more = watched(again)
    again.run_training()
    assert not more and again.ended_by == "patience", "it is not trained on"


def test_patience_waits_while_no_class_was_in_the_patches() -> None:
    trainer = make_trainer(make_plans("FMPlans_patient", patience=1))
    judged_by(trainer, {0: float("nan")})
    kill_after(trainer, 3)
    with pytest.raises(Killed):
        trainer.run_training()
    assert trainer.current_epoch == 3 and trainer.ended_by is None


@pytest.mark.parametrize("patience", [0, -1, 2.5, "soon"])
def test_patience_is_a_number_of_epochs(patience: Any) -> None:
    with fails("recipe-field"):
        make_plans("FMPlans_impatient", patience=patience)


def test_callbacks_see_each_point_in_order_and_are_closed_whatever_happens() -> None:
    points: list[str] = []

    class Spy(Callback):
        def __getattribute__(self, name: str) -> Any:
            if name in vars(Callback) and not name.startswith("_"):
                points.append(name)
            return super().__getattribute__(name)

    class Watched(fm_trainer):
        """A user's trainer, which overrides methods of nnU-Net."""

        def on_epoch_end(self) -> None:
            points.append("epoch")
            super().on_epoch_end()

        def save_checkpoint(self, filename: str) -> None:
            points.append(f"{Path(filename).stem} {self.current_epoch}")
            super().save_checkpoint(filename)

    plans = make_plans("FMPlans_points")
    trainer = make_trainer(plans, Watched)
    trainer.callbacks.append(Spy(trainer))
    judged_by(trainer, {0: 0.5, 1: 0.4})
    kill_after(trainer, 2)
    with pytest.raises(Killed):
        trainer.run_training()
    epoch = ["step_end", "step_end", "validation_end", "epoch", "measure", "epoch_end"]
    saved = [["checkpoint_best 0", "checkpoint_latest 0"], ["checkpoint_latest 1"]]
    assert points == ["begin", "train_start", *epoch, *saved[0], *epoch, *saved[1], "close"]
    check_free(Path(trainer.output_folder))


def test_an_interrupted_training_ends_its_loaders() -> None:
    """Or the processes that are gone would be complained about behind the line that says how to go on."""
    ended: list[Any] = []

    class Loader(ProcessLoader):
        def __init__(self) -> None:
            pass

        def _finish(self, *_: Any, **__: Any) -> None:
            ended.append(id(self))

    loader = Loader()
    end_loaders(None, loader, object())
    assert ended == [id(loader)]
