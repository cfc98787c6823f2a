"""What a training records: losses, overlaps, pictures, other domains, speed; the same after an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_fm.planfile.eval_datasets import preprocessed_cases
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.records.training import BURN_IN, convergence_iteration
from nnunet_fm.trainers.callbacks import EpochResult, tensorboard
from nnunet_fm.trainers.callbacks import record as record_module
from nnunet_fm.trainers.callbacks.record import Recorder
from nnunet_fm.trainers.callbacks.slice_overlap import SliceOverlap, slice_overlap
from nnunet_fm.trainers.callbacks.volume_dice import volume_overlap
from tests.helpers.datasets import training_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.trainings import Killed, kill_after, make_trainer, record_of

CPU = torch.device("cpu")
SHAPE = (4, 20, 22)
HOME, AWAY, OTHER_LABELS = 660, 661, 662
AWAY_NAME = "Dataset661_Ärzte"


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with two datasets of the same labels, which differ in size, and one of other labels."""
    root = tmp_path_factory.mktemp("records")
    with training_folders(root) as variables:
        raw = variables["nnUNet_raw"]
        for number, name, shape, more in (
            (HOME, "home", SHAPE, {}),
            (AWAY, "Ärzte", (3, 24, 18), {}),
            (OTHER_LABELS, "other", SHAPE, {"labels": {"background": 0, "one": 1}}),
        ):
            folder = write_dataset(raw, number, name=name, shape=shape, cases=5, test_cases=0, **more)
            write_fingerprint(folder, [shape] * 5, [(2.0, 1.0, 1.0)] * 5)
        yield root


def make_plans(*, iterations: int = 10, name: str | None = None, **options: Any) -> dict[str, Any]:
    """Plans of a small U-Net on slices, whose learning rate makes it predict something soon."""
    recipe = {"learning_rate": 1e-2, "augmentation": "none", "sampling": "nnunet", "mirror": False, "save_every": 1}
    recipe |= {"iterations_per_epoch": 4, "validation_iterations": 2, "volume_dice_every": 2}
    made = Options(
        iterations=iterations,
        recipe=recipe | options.pop("recipe", {}),
        network={"channels": [4, 4, 4, 4, 4], "image_size": 32},
        force=True,
        **options,
    )
    plans = planner_class("FMPlanner_vanilla_unet2d")(HOME, 40, plans_name=name, options=made).plan_experiment()
    preprocess_dataset(HOME, plans["plans_name"], ["2d"], [1], show_progress_bar=False)
    return plans


class Loggers:
    """A logger of nnU-Net's kind that keeps what it is told."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[float, int]]] = {}

    def log(self, key: str, value: float, step: int) -> None:
        self.told.setdefault(key, []).append((value, step))

    def update_config(self, config: dict[str, Any]) -> None:
        pass


# Convergence


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ([0.1, 0.5, 0.803, 0.81, 0.802], 30),  # 0.802 is within 1 % of 0.81
        ([0.1, 0.5, 0.803, 0.79, 0.81], 50),  # left once more by 0.79
        ([0.2, 0.198, 0.2, 0.2, 0.2], 10),
        ([0.5, 0.6, 0.7, 0.8, 0.5], None),
        ([0.0, 0.0, 0.0, 0.0, 0.0], None),
        ([0.5, float("nan"), 0.5, 0.5, 0.5], 30),
        ([float("nan")] * 5, None),
    ],
)
def test_convergence(dice: list[float], expected: int | None) -> None:
    assert convergence_iteration(dice, [10, 20, 30, 40, 50]) == expected


def test_convergence_without_validations() -> None:
    assert convergence_iteration([], []) is None


# Overlap per slice


@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_overlap_per_slice_by_sets_of_pixels(shape: tuple[int, ...], ignore: bool, regions: bool) -> None:
    labels: dict[str, Any] = {"background": 0, "a": [1, 2] if regions else 1, "b": 2}
    if ignore:
        labels["ignore"] = 3
    manager = LabelManager(labels, [1, 2] if regions else None)
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(2, 2 if regions else 3, *shape)).astype(np.float32)
    truth = rng.integers(0, 4 if ignore else 3, size=(2, *shape))
    truth[0, ..., :2, :] = 0
    logits[0, 0 if not regions else slice(None), ..., :2, :] = 9 if not regions else -9
    if regions:
        maps = [np.isin(truth, [1, 2]), truth == 2, *([truth == 3] if ignore else [])]
        target, predicted = np.stack(maps, 1), list(np.moveaxis(logits > 0, 1, 0))
    else:
        target, predicted = truth[:, None], [logits.argmax(1) == label for label in (1, 2)]
    dice, iou = slice_overlap(torch.from_numpy(logits), torch.from_numpy(target), manager)
    counted = (truth != 3).reshape(-1, *shape[-2:])
    expected = []
    for labels_of, mask in zip(([1, 2], [2]) if regions else ([1], [2]), predicted, strict=True):
        here, there = (m.reshape(-1, *shape[-2:]) & counted for m in (mask, np.isin(truth, labels_of)))
        both, either = (here & there).sum((1, 2)), (here | there).sum((1, 2))
        expected.append((2 * both / (here.sum((1, 2)) + there.sum((1, 2))), both / either))
    np.testing.assert_allclose(dice, np.stack([e[0] for e in expected], 1), rtol=1e-6)
    np.testing.assert_allclose(iou, np.stack([e[1] for e in expected], 1), rtol=1e-6)


def test_slices_that_show_nothing_do_not_count() -> None:
    manager = LabelManager({"background": 0, "a": 1, "b": 2}, None)
    truth = torch.zeros(3, 1, 4, 4, dtype=torch.int16)
    truth[0, 0, 0, :2] = 1
    logits = torch.zeros(3, 3, 4, 4)
    logits[:, 0] = 1
    logits[0, 1, 0, 0] = 2  # half of class 1 in the first slice
    logits[1, 2, 0, 0] = 2  # a false pixel of class 2 in the second; the third is empty
    gathered = SliceOverlap(SimpleNamespace(label_manager=manager))

    class Network(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> list[torch.Tensor | None]:
            return [logits, None]

    for network in (Network(), torch.compile(Network(), backend="eager")):
        gathered.reset()
        with gathered.watching(network, [truth, None]):
            network(logits)
            assert gathered.sums == pytest.approx([2 / 3, 1 / 2, 2])
            network(logits)  # one validation step is one batch
        network(logits)
        assert gathered.sums == pytest.approx([2 / 3, 1 / 2, 2])


# A training's record


@pytest.fixture(scope="module")
def trained(folders: Path) -> Any:
    """A trainer that has trained four epochs, the last a short one, with pictures of two of them and TensorBoard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_module, "MAX_PICTURED", 2)
        patch.setenv(tensorboard.SWITCH, str(int(find_spec("tensorboard") is not None)))
        trainer = make_trainer(make_plans(iterations=14, train_cases=2, name="FMPlans_trained"))
        Path(trainer.output_folder, "events.out.tfevents.1.stale").touch()
        trainer.told = Loggers()
        trainer.logger.loggers.append(trainer.told)
        trainer.run_training()
    return trainer


def test_a_training_leaves_its_record(trained: Any) -> None:
    record, told, trainer = record_of(trained), trained.told, trained
    assert (record.trainer, record.plans, record.configuration, record.fold) == (
        "fm_trainer",
        "FMPlans_trained",
        "2d",
        "0",
    )
    assert (record.dataset, record.model, record.seed, record.device) == (
        "Dataset660_home",
        "vanilla_unet2d",
        42,
        "cpu",
    )
    parameters = list(trainer.network.parameters())
    assert record.parameters == record.parameters_trained == sum(p.numel() for p in parameters)
    assert record.training_cases == len(trainer.dataloader_train.data_loader.indices) == 2
    assert record.iterations == 14 and record.speed is None  # all of them belong to the burn-in
    assert [(v.epoch, v.iteration) for v in record.validations] == [(0, 4), (1, 8), (2, 12), (3, 14)]
    logged = trainer.logger.local_logger.my_fantastic_logging
    for field, key in (("train_loss", "train_losses"), ("val_loss", "val_losses"), ("learning_rate", "lrs"),
                       ("dice_patches", "mean_fg_dice"), ("dice_ema", "ema_fg_dice")):  # fmt: skip
        assert [getattr(v, field) for v in record.validations] == pytest.approx(logged[key])
    assert [v.per_volume is not None for v in record.validations] == [False, True, False, True]
    assert record.validations[-1].per_volume == trainer.volume_validation.own.measure()
    assert max(v.per_volume.dice for v in record.validations[1::2]) == trainer.best_checkpoints.volume_dice
    for validation in record.validations:
        if validation.per_slice is not None:
            assert 0 <= validation.per_slice.miou <= validation.per_slice.dice <= 1
    assert 0 < record.validations[0].seconds < record.validations[-1].seconds <= record.seconds
    assert record.peak_memory is not None and record.peak_memory > 10**8 and record.device_memory is None
    assert record.threads == 1 and record.versions["nnunetv2"] and record.processor
    assert told.told["per_volume/dice"] == [(v.per_volume.dice, v.epoch) for v in record.validations[1::2]]
    assert not list(Path(trainer.output_folder).glob("training_record.json.*"))


def test_each_epoch_says_how_long_it_waited_for_data(trained: Any) -> None:
    log = next(Path(trained.output_folder).glob("training_log_*.txt")).read_text()
    said = re.findall(r"Training steps: (\S+) samples/s, (\d+)% of the time waiting for data", log)
    assert len(said) == len(record_of(trained).validations)
    assert all(float(rate) > 0 and 0 <= int(share) <= 100 for rate, share in said)


def test_pictures_show_the_same_slices_each_time_and_some_go(trained: Any) -> None:
    folder, pictured = Path(trained.output_folder), [v for v in record_of(trained).validations if v.images]
    assert [(v.epoch, len(v.images)) for v in pictured] == [(0, 4), (3, 4)]
    assert {str(f.relative_to(folder)) for f in folder.glob("samples/*")} == {n for v in pictured for n in v.images}
    first, last = ([imread(folder / name)[..., :3] for name in v.images] for v in pictured)
    width = (first[0].shape[1] - 4) // 3
    for before, after in zip(first, last, strict=True):
        assert before.shape == (*trained.configuration_manager.patch_size[:1], 3 * width + 4, 3)
        assert np.array_equal(before[:, : 2 * width + 2], after[:, : 2 * width + 2])
        assert np.ptp(before[:, :width], axis=2).max() == 0 and np.ptp(before[:, width + 2 : -width], axis=2).max() > 0
    assert not np.array_equal(first[0], first[3])


def test_an_interrupted_training_has_the_record_of_a_whole_one() -> None:
    plans = make_plans(iterations=12, name="FMPlans_whole")
    whole = make_trainer(plans)
    whole.run_training()
    expected = record_of(whole)

    first = make_trainer(plans)
    kill_after(first, 2)
    with pytest.raises(Killed):
        first.run_training()
    assert [v.epoch for v in record_of(first).validations] == [0, 1]
    second = make_trainer(plans)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    second.run_training()
    continued = record_of(second)
    seconds = [v.seconds for v in continued.validations]
    assert seconds == sorted(seconds)
    for record in (expected, continued):
        record.seconds, record.peak_memory = 0, None
        for validation in record.validations:
            validation.seconds = 0
    assert continued == expected


def test_speed_leaves_out_the_first_iterations_and_goes_on_after_an_interruption() -> None:
    trainer: Any = SimpleNamespace(iteration=0, configuration_manager=SimpleNamespace(batch_size=3), device=CPU)
    trainer.output_folder = ""
    rng = np.random.default_rng(1)
    totals, waits = rng.uniform(1, 2, BURN_IN + 30), rng.uniform(0, 1, BURN_IN + 30)
    recorder = Recorder(trainer)
    for trainer.iteration, (waited, total) in enumerate(zip(waits, totals, strict=True), 1):
        if trainer.iteration == BURN_IN + 10:
            state, recorder = recorder.state(), Recorder(trainer)
            recorder.load_state(json.loads(json.dumps(state)))
        recorder.step_end(waited, total)
        if trainer.iteration == BURN_IN:
            assert recorder._rates.speed() is None
    speed = recorder._rates.speed()
    rates = 3 / totals[BURN_IN:]
    assert speed is not None and speed.iterations == 30
    assert speed.mean == pytest.approx(rates.mean()) and speed.sd == pytest.approx(rates.std(ddof=1))
    assert speed.waiting_share == pytest.approx(waits[BURN_IN:].sum() / totals[BURN_IN:].sum())


def test_processes_pool_their_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = SimpleNamespace(label_manager=None, is_ddp=True)
    slices = SliceOverlap(trainer)
    slices.sums = [1.5, 1.0, 2.0]

    def gather(gathered: list[Any], mine: list[float]) -> None:
        gathered[:] = [mine, [0.5, 0.25, 2.0]]

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    result = EpochResult(0, val_loss=1.0, dice_ema=0.5, new_best=True)
    slices.measure(result)
    assert result.per_slice is not None and (result.per_slice.dice, result.per_slice.miou) == (0.5, 0.3125)
    assert slices.sums == [0, 0, 0]


# Other domains


def test_other_domains_are_measured_as_the_stock_predictor_predicts_them(capsys: pytest.CaptureFixture[str]) -> None:
    plans = make_plans(
        iterations=6, eval_datasets=[AWAY], name="FMPlans_away", recipe={"volume_dice_every": 0, "learning_rate": 3e-2}
    )
    assert plans["nnunet_fm"]["eval_datasets"] == [AWAY_NAME]
    command = "nnUNetv2_preprocess -d 661 -plans_name FMPlans_away_of_Dataset660_home -c 2d"
    assert command in capsys.readouterr().out
    trainer = make_trainer(plans)
    with fails("preprocessed-missing", command):
        trainer.run_training()
    assert trainer.network is None
    preprocess_dataset(AWAY, command.split()[4], ["2d"], [1], show_progress_bar=False)
    trainer = make_trainer(plans)
    trainer.run_training()
    record = record_of(trainer)
    assert [set(v.domains) for v in record.validations] == [set(), {AWAY_NAME}]
    assert [v.per_volume is None for v in record.validations] == [True, False]
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, tile_step_size=1 - trainer.recipe.overlap)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    identifier = trainer.configuration_manager.data_identifier
    folder, cases = preprocessed_cases(plans, trainer.dataset_json, "2d", identifier, AWAY_NAME, 0)
    assert (
        len(cases) == 1
        and len(preprocessed_cases(plans, trainer.dataset_json, "2d", identifier, AWAY_NAME, "all")[1]) == 5
    )
    scores = []
    for case in cases:
        data, truth, _, _ = trainer.dataset_class(str(folder), [case]).load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
        scores.append(volume_overlap(logits.argmax(0), torch.from_numpy(np.array(truth[0])), [1, 2]))
    measured = record.validations[-1].domains[AWAY_NAME]
    assert (measured.dice, measured.miou) == pytest.approx((scores[0].dice, scores[0].miou), abs=1e-6)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (OTHER_LABELS, ("eval-labels", "Dataset662_other", "Dataset660_home", "two")),
        (HOME, ("eval-own",)),
    ],
)
def test_datasets_that_cannot_be_measured_are_refused_when_planning(
    dataset: int, expected: tuple[str, ...], folders: Path
) -> None:
    with fails(*expected):
        make_plans(eval_datasets=[AWAY, dataset], name="FMPlans_refused")
    assert not list(folders.glob("nnUNet_preprocessed/*/FMPlans_refused*"))


# TensorBoard


def test_tensorboard_gets_nnunets_values_and_ours(trained: Any) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert not list(Path(trained.output_folder).glob("*.stale"))
    events = accumulators.EventAccumulator(trained.output_folder)
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("val_losses")]
    record = record_of(trained)
    assert losses == [(v.epoch, pytest.approx(v.val_loss)) for v in record.validations]
    volume = events.Scalars("per_volume/miou")[-1]
    assert (volume.step, volume.value) == (3, pytest.approx(record.validations[-1].per_volume.miou))


def test_the_switch_of_tensorboard_is_checked_first(
    monkeypatch: pytest.MonkeyPatch, folders: Path, trained: Any
) -> None:
    plans = {**trained.plans_manager.plans, "plans_name": "FMPlans_switch"}
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    for value, expected in (("1", ("tensorboard-missing",)), ("yes", ("variable-value", "0"))):
        monkeypatch.setenv(tensorboard.SWITCH, value)
        with fails(*expected):
            make_trainer(plans)
    assert not list(folders.glob("nnUNet_results/*/*FMPlans_switch*"))
    monkeypatch.setenv(tensorboard.SWITCH, "0")
    assert not make_trainer(plans).logger.loggers
