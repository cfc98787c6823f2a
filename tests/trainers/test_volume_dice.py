"""The best checkpoints by the true Dice of validation volumes and by the validation loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.records.training import Overlap
from nnunet_fm.trainers.callbacks.volume_dice import VolumeDice, volume_overlap
from tests.helpers import trainings
from tests.helpers.datasets import empty, training_folders, write_dataset, write_fingerprint
from tests.helpers.trainings import Killed, kill_after, record_losses

CPU = torch.device("cpu")
SHAPE = (4, 20, 22)
RECIPE = {
    "learning_rate": 1e-3,
    "augmentation": "flips",
    "sampling": "nnunet",
    "validation_iterations": 2,
    "save_every": 1,
}
DATASETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "regions": {
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    },
}
CLASSES = {"plain": [[1], [2]], "regions": [[1, 2], [2]]}
LARGEST = {"plain": 2, "regions": 3}
NUMBERS = {"plain": 650, "regions": 651}
VALIDATION = ["case_03", "case_04"]


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with a small dataset per kind of labels: five cases of four slices, two for validation."""
    root = tmp_path_factory.mktemp("volumes")
    with training_folders(root) as variables:
        for kind, arguments in DATASETS.items():
            raw = variables["nnUNet_raw"]
            folder = write_dataset(raw, NUMBERS[kind], name=kind, shape=SHAPE, cases=5, test_cases=0, **arguments)
            write_fingerprint(folder, [SHAPE] * 5, [(2.0, 1.0, 1.0)] * 5)
            split = {"train": ["case_00", "case_01", "case_02"], "val": VALIDATION}
            preprocessed = Path(variables["nnUNet_preprocessed"], folder.name)
            (preprocessed / "splits_final.json").write_text(json.dumps([split]))
        yield root


@pytest.fixture(autouse=True)
def empty_results(folders: Path) -> Iterator[None]:
    yield
    empty(folders / "nnUNet_results")


def make_trainer(
    kind: str = "plain", *, every: int, epochs: int = 5, patch: list[int] | None = None, **recipe: Any
) -> Any:
    """A trainer of a small U-Net on slices, as the stock command builds it."""
    options = Options(
        epochs=epochs,
        recipe={**RECIPE, "volume_dice_every": every, **recipe},
        patch=patch,
        network={"channels": [4, 4, 4, 4, 4], "image_size": 32},
        force=True,
    )
    plans = planner_class("FMPlanner_vanilla_unet2d")(NUMBERS[kind], 40, options=options).plan_experiment()
    preprocess_dataset(NUMBERS[kind], plans["plans_name"], ["2d"], [1], show_progress_bar=False)
    return trainings.make_trainer(plans)


def checkpoint(trainer: Any, name: str) -> dict[str, Any]:
    return torch.load(Path(trainer.output_folder, f"checkpoint_{name}.pth"), weights_only=False)


# The score


def test_dice_by_hand() -> None:
    reference = torch.tensor([0, 0, 1, 1, 1, 2, 9, 9])
    prediction = torch.tensor([0, 1, 1, 1, 0, 0, 1, 2])
    one = (2 * 2 + 1) / (4 + 3 + 1)  # with the voxel where the reference has 9
    two = (0 + 1) / (1 + 1 + 1)
    assert volume_overlap(prediction, reference, [1, 2]).dice == pytest.approx((one + two) / 2)
    one, two = (2 + 1) / (4 + 3 - 2 + 1), (0 + 1) / (1 + 1 + 1)
    assert volume_overlap(prediction, reference, [1, 2]).miou == pytest.approx((one + two) / 2)
    one, two = (2 * 2 + 1) / (3 + 3 + 1), (0 + 1) / (0 + 1 + 1)
    assert volume_overlap(prediction, reference, [1, 2], ignore_label=9).dice == pytest.approx((one + two) / 2)
    whole = (2 * 2 + 1) / (3 + 4 + 1)
    assert volume_overlap(prediction, reference, [(1, 2), 2], ignore_label=9).dice == pytest.approx((whole + two) / 2)
    assert volume_overlap(prediction, reference, [5]) == Overlap(dice=1, miou=1)  # empty in both
    assert volume_overlap(reference, reference, [1, 2, 9]) == Overlap(dice=1, miou=1)


@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.slow), "regions"])
def test_the_score_is_that_of_the_stock_predictor(kind: str) -> None:
    """Score of checkpoint_best, from its own file and by another formula: sets of voxels in NumPy.

    Something is predicted, not everywhere; windows overlap, otherwise than by default.
    """
    trainer = make_trainer(kind, every=30, epochs=30, patch=[16, 16], overlap=0.75, learning_rate=1e-2, save_every=30)
    trainer.run_training()
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, tile_step_size=0.25)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_best.pth")
    assert len(predictor.allowed_mirroring_axes) == 2
    assert trainer.volume_validation.own.predictor.tile_step_size == predictor.tile_step_size
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    scores = []
    for case in VALIDATION:
        data, segmentation, _, _ = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case]).load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
        predicted = trainer.label_manager.convert_logits_to_segmentation(logits).numpy()
        truth = segmentation[0]
        assert {0, 2} <= set(np.unique(predicted)) and truth.max() == LARGEST[kind]
        counted = truth != 3
        for labels in CLASSES[kind]:
            ours, theirs = np.isin(predicted, labels)[counted], np.isin(truth, labels)[counted]
            scores.append((2 * (ours & theirs).sum() + 1) / (ours.sum() + theirs.sum() + 1))
    stored = checkpoint(trainer, "best")["nnunet_fm"]["best_volume_dice"]
    assert stored == pytest.approx(np.mean(scores), abs=1e-6) and 0 < stored < 1


def test_measuring_leaves_everything_as_it_was() -> None:
    trainer = make_trainer(every=1)
    trainer.initialize()
    network = trainer.bare_network
    network.frozen, network.deep_supervision = ("inc",), True
    for training in (True, False):
        network.train(training)
        modes = {name: module.training for name, module in network.named_modules()}
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        torch.manual_seed(1)
        np.random.seed(1)
        score = VolumeDice(trainer, network, 0.5).measure()
        assert torch.initial_seed() == 1 and torch.equal(torch.rand(3), torch.rand(3, generator=seeded(1)))
        assert np.array_equal(np.random.rand(3), np.random.RandomState(1).rand(3))
        assert {name: module.training for name, module in network.named_modules()} == modes
        assert network.deep_supervision and 0 < score.dice < 1
        assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_processes_share_the_volumes_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(every=1)
    trainer.initialize()
    alone = VolumeDice(trainer, trainer.bare_network, 0.5).measure()
    trainer.is_ddp = True
    parts: dict[int, list[float]] = {}

    def gather(gathered: list[Any], mine: list[float]) -> None:
        parts[trainer.local_rank] = mine
        gathered[:] = [parts.get(rank, []) for rank in (0, 1)]

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    measured = []
    for trainer.local_rank in (1, 0, 1):
        measured.append(VolumeDice(trainer, trainer.bare_network, 0.5).measure())
    assert [len(part) for part in parts.values()] == [1, 1] and parts[0] != parts[1]
    assert measured[1] == measured[2] == alone


# The checkpoints


def test_the_plan_is_met_to_the_iteration() -> None:
    """The fold's 12 training slices, of 20, in batches of 4: an epoch is 3 iterations."""
    trainer = make_trainer(every=0, epochs=3)
    per_epoch: list[int] = []
    end = trainer.on_train_epoch_end
    trainer.on_train_epoch_end = lambda outputs: (per_epoch.append(len(outputs)), end(outputs))
    trainer.run_training()
    assert trainer.config.iterations == trainer.iteration == 9
    assert per_epoch == [3, 3, 3] and trainer.current_epoch == trainer.num_epochs == 3
    written = {path.name for path in Path(trainer.output_folder).glob("*.pth")}
    assert written == {"checkpoint_best.pth", "checkpoint_final.pth"}  # nnU-Net's own


def test_the_best_volumes_and_the_lowest_loss_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([Overlap(dice=dice, miou=dice / 2) for dice in (0.4, 0.6, 0.5)])
    monkeypatch.setattr(VolumeDice, "measure", lambda self: next(scores))
    trainer = make_trainer(every=2)
    saved: list[tuple[str, int]] = []
    save = trainer.save_checkpoint

    def spy(filename: str) -> None:
        saved.append((Path(filename).name.removeprefix("checkpoint_").removesuffix(".pth"), trainer.current_epoch + 1))
        save(filename)

    trainer.save_checkpoint = spy
    trainer.run_training()
    assert [epoch for name, epoch in saved if name == "best"] == [2, 4] and not list(scores)  # measured at 2, 4, 5
    losses = trainer.logger.get_value("val_losses", step=None)
    lowest = [epoch for epoch, loss in enumerate(losses, 1) if loss == min(losses[:epoch])]
    assert [epoch for name, epoch in saved if name == "lowest_loss"] == lowest
    best, low, final = (checkpoint(trainer, name) for name in ("best", "lowest_loss", "final"))
    assert (best["current_epoch"], best["nnunet_fm"]["best_volume_dice"]) == (4, 0.6)
    assert (low["current_epoch"], low["nnunet_fm"]["lowest_loss"]) == (lowest[-1], min(losses))
    assert (final["current_epoch"], final["nnunet_fm"]["best_volume_dice"]) == (5, 0.6)
    assert final["nnunet_fm"]["lowest_loss"] == min(losses)
    log = Path(trainer.log_file).read_text()
    assert "Dice of validation volumes 0.5000, best 0.6000" in log and "EMA" not in log


def test_the_lowest_loss_can_be_predicted_with() -> None:
    trainer = make_trainer(every=1, epochs=2)
    trainer.run_training()
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_lowest_loss.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    assert torch.isfinite(predictor.predict_sliding_window_return_logits(torch.zeros(1, 2, 20, 22))).all()


def test_a_measured_training_is_the_unmeasured_one_and_continues_exactly() -> None:
    plain = make_trainer(every=0)
    expected = record_losses(plain)
    plain.run_training()
    whole = make_trainer(every=2)
    measured = record_losses(whole)
    whole.run_training()
    assert measured == expected and len(expected) == 5 * (3 + 2)

    first = make_trainer(every=2)
    before = record_losses(first)
    kill_after(first, 3)
    with pytest.raises(Killed):
        first.run_training()
    second = make_trainer(every=2)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    assert second.best_checkpoints.state() == first.best_checkpoints.state()
    assert 0 < second.best_checkpoints.volume_dice < 1
    after = record_losses(second)
    second.run_training()
    assert before + after == expected
    assert second.best_checkpoints.state() == whole.best_checkpoints.state()
