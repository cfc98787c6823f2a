"""fm_trainer_stock: stock nnU-Net on a budget, its plans, and the training cases it shares with other trainers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from typer.testing import CliRunner

from nnunet_fm.cli.app import app
from nnunet_fm.data.folds import first_cases
from nnunet_fm.planfile.schema import STOCK_KEY, PlanError
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.plans.stock import write_stock_plans
from nnunet_fm.records.training import TrainingRecord
from tests.helpers import trainings
from tests.helpers.datasets import extract_fingerprint, training_folders, write_dataset
from tests.helpers.errors import fails
from tests.helpers.trainings import Killed, kill_after

CPU = torch.device("cpu")
SHAPE = (6, 20, 22)
NUMBER, NAME = 670, "Dataset670_Blobs"
SMALL = {"n_stages": 3, "features_per_stage": [4, 4, 4], "n_conv_per_stage": [1] * 3, "kernel_sizes": [[3, 3]] * 3,
         "n_conv_per_stage_decoder": [1] * 2, "strides": [[1, 1], [2, 2], [2, 2]]}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with a dataset that stock nnU-Net has planned and preprocessed, its network made small."""
    root = tmp_path_factory.mktemp("stock")
    with training_folders(root) as variables:
        write_dataset(variables["nnUNet_raw"], NUMBER, shape=SHAPE, spacing=(2, 1, 1), cases=6)
        extract_fingerprint(NUMBER)
        with pytest.MonkeyPatch.context() as planning:
            planning.setenv("nnUNet_n_proc_DA", "1")  # the stock planner makes it a number of threads
            ExperimentPlanner(NUMBER, 8).plan_experiment()
        file = Path(variables["nnUNet_preprocessed"], NAME, "nnUNetPlans.json")
        plans = json.loads(file.read_text())
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"] |= SMALL
        plans["configurations"]["2d"]["batch_size"] = 2
        file.write_text(json.dumps(plans))
        preprocess_dataset(NUMBER, "nnUNetPlans", ["2d"], [1], show_progress_bar=False)
        yield root


def preprocessed() -> Path:
    return Path(os.environ["nnUNet_preprocessed"], NAME)


def make_trainer(plans: dict[str, Any], name: str = "fm_trainer_stock", fold: int | str = 0) -> Any:
    return trainings.make_trainer(plans, name, fold, "2d")


def control(name: str, **arguments: Any) -> dict[str, Any]:
    file = write_stock_plans(NAME, name=name, validation_iterations=2, **arguments)
    plans: dict[str, Any] = json.loads(file.read_text())
    return plans


def losses_of(trainer: Any, rates: list[float] | None = None) -> list[float]:
    """Every training loss of a trainer, and the rate of each step."""
    losses: list[float] = []
    step = trainer.train_step

    def wrapped(batch: Any) -> Any:
        result = step(batch)
        losses.append(float(result["loss"]))
        if rates is not None:
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        return result

    trainer.train_step = wrapped
    return losses


# Plans


def test_a_control_is_the_stock_plan_with_a_budget() -> None:
    stock = json.loads((preprocessed() / "nnUNetPlans.json").read_text())
    plans = control("nnUNetPlans_copy", iterations=40, seed=3, train_cases=2)
    key = plans.pop(STOCK_KEY)
    assert plans == {**stock, "plans_name": "nnUNetPlans_copy"}
    assert key == {"version": 1, "iterations": 40, "iterations_per_epoch": 40, "validation_iterations": 2, "seed": 3,
                   "train_cases": 2}  # fmt: skip
    assert control("nnUNetPlans_long")[STOCK_KEY]["iterations"] == 1000 * 250
    assert control("nnUNetPlans_long")[STOCK_KEY]["iterations_per_epoch"] == 250
    assert not list(preprocessed().glob("*.json.*"))


def test_the_command_writes_controls(capsys: pytest.CaptureFixture[str]) -> None:
    run = CliRunner().invoke
    arguments = ["plan", "-d", str(NUMBER), "--control", "stock", "--iterations", "30", "--seed", "5", "--json"]
    done = run(app, [*arguments, "--train-cases", "3", "--set", "recipe.validation_iterations=4", "--name", "Control"])
    assert done.exit_code == 0, done.output
    key = json.loads(done.stdout)["plans"][STOCK_KEY]
    assert (key["iterations"], key["iterations_per_epoch"], key["validation_iterations"]) == (30, 30, 4)
    assert (key["seed"], key["train_cases"]) == (5, 3)
    assert json.loads((preprocessed() / "Control.json").read_text())["plans_name"] == "Control"
    for wrong in (["--control", "resenc"], ["--control", "stock", "--head", "linear"],
                  ["--control", "stock", "--set", "recipe.loss=ce"],
                  ["--control", "stock", "--set", "recipe.validation_iterations=few"]):  # fmt: skip
        assert run(app, ["plan", "-d", str(NUMBER), *wrong]).exit_code == 2, wrong


def test_missing_stock_plans_name_their_command() -> None:
    done = CliRunner().invoke(app, ["plan", "-d", str(NUMBER), "--control", "resenc_l", "--iterations", "10"])
    assert isinstance(done.exception, PlanError)
    assert "nnUNetv2_plan_experiment -d 670 -pl nnUNetPlannerResEncL`" in str(done.exception)
    assert not list(preprocessed().glob("*ResEnc*"))
    fitted = ["--control", "resenc_l", "--gpu-memory-target", "12.5"]
    done = CliRunner().invoke(app, ["plan", "-d", str(NUMBER), *fitted])
    wanted = "-pl nnUNetPlannerResEncL -gpu_memory_target 12.5 -overwrite_plans_name nnUNetResEncUNetLPlans_12.5GB"
    assert wanted in str(done.exception)


def test_seed_and_cases_of_our_own_plans() -> None:
    arguments = ["plan", "-d", str(NUMBER), "-m", "vanilla_unet2d", "--epochs", "4", "--batch", "4", "--json"]
    arguments += ["--name", "FMPlans_few"]
    done = CliRunner().invoke(app, [*arguments, "--seed", "5", "--train-cases", "3"])
    assert done.exit_code == 0, done.output
    key = json.loads(done.stdout)["plans"]["nnunet_fm"]
    assert (key["recipe"]["seed"], key["train_cases"]) == (5, 3)
    assert key["slices"] == 3 * 6 and key["iterations"] == 4 * 5  # 18 slices in batches of 4
    done = CliRunner().invoke(app, [*arguments, "--train-cases", "7"])
    assert isinstance(done.exception, PlanError) and "has 6 training cases" in str(done.exception)


def test_plans_of_our_own_are_no_base_and_no_control() -> None:
    planner = planner_class("FMPlanner_vanilla_unet2d")
    ours = planner(NAME, 8, plans_name="FMPlans_own", options=Options(force=True)).plan_experiment()
    with fails("plan-not-stock"):
        write_stock_plans(NAME, "FMPlans_own")
    with fails("plan-entry", STOCK_KEY):
        make_trainer(ours)
    with fails("plan-name"):
        write_stock_plans(NAME, name="nnUNetPlans")


# Training cases


def test_few_cases_are_nested_and_fixed_by_names_and_seed() -> None:
    cases = [f"case_{i}" for i in range(20)]
    five = first_cases(cases, 5, seed=1)
    assert first_cases(cases[::-1], 3, seed=1) == five[:3] and len(set(five)) == 5
    assert first_cases(cases, 5, seed=2) != five
    assert sorted(first_cases(cases, 20, seed=1)) == sorted(cases)
    with fails("cases-few", "21", "20"):
        first_cases(cases, 21, seed=1)


@pytest.mark.parametrize("fold", [0, "all"])
def test_controls_and_models_train_on_the_same_cases(fold: int | str) -> None:
    stock = make_trainer(control("nnUNetPlans_cases", iterations=4, seed=5, train_cases=2), fold=fold)
    options = Options(iterations=4, train_cases=3, recipe={"seed": 5}, force=True)
    planner = planner_class("FMPlanner_vanilla_unet2d")(NAME, 8, plans_name="FMPlans_cases", options=options)
    plans = planner.plan_experiment()
    preprocess_dataset(NUMBER, "FMPlans_cases", ["2d"], [1], show_progress_bar=False)
    two, validation = stock.do_split()
    three, same_validation = make_trainer(plans, "fm_trainer", fold).do_split()
    assert two == three[:2] and len(three) == 3 and validation == same_validation
    assert set(validation) == {f"case_{i:02d}" for i in range(6)} if fold == "all" else not set(three) & set(validation)
    assert f"Training on 2 of {6 if fold == 'all' else 4} cases: {two[0]}, {two[1]}" in Path(stock.log_file).read_text()
    short = make_trainer(control("nnUNetPlans_cases", iterations=4, train_cases=9, force=True), fold=fold)
    with fails("cases-few", "train_cases", "9", fold, NAME, 6 if fold == "all" else 4):
        short.do_split()


def test_each_fold_counts_its_own_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is made before the fold is known; old plans, and iterations that a user gives, hold for every fold."""
    planner = planner_class("FMPlanner_vanilla_unet2d")
    options = Options(epochs=3, batch=4, force=True)
    plans = planner(NAME, 8, plans_name="FMPlans_epochs", options=options).plan_experiment()
    preprocess_dataset(NUMBER, "FMPlans_epochs", ["2d"], [1], show_progress_bar=False)
    key = plans["nnunet_fm"]
    slices = SHAPE[0]
    assert key["fold_samples"] == {**{str(fold): slices * (4 if fold == 0 else 5) for fold in range(5)}, "all": 6 * 6}
    older = {**plans, "nnunet_fm": {**{k: v for k, v in key.items() if k != "fold_samples"}, "iterations": 99}}
    by_user = {**plans, "nnunet_fm": {**key, "recipe": {**key["recipe"], "iterations_per_epoch": 2}}}
    for expected, per_epoch, fold, variant in (
        (3 * 6, 6, 0, plans),
        (3 * 8, 8, 1, plans),
        (3 * 9, 9, "all", plans),
        (99, 6, 1, older),
        (3 * 8, 2, 1, by_user),
    ):
        trainer = make_trainer(variant, "fm_trainer_scratch", fold)
        budget = trainer.budget_of_fold()
        assert (budget.iterations, budget.iterations_per_epoch) == (expected, per_epoch)
    moved = dict.fromkeys((f"case_{number:02d}" for number in range(6)), (7, 20, 22))
    monkeypatch.setattr("nnunet_fm.trainers.foundation.shape_of", lambda _, case: moved[case])
    trainer = make_trainer(plans, "fm_trainer_scratch", 1)
    monkeypatch.setattr("nnunet_fm.trainers.preflight.check_shares", lambda trainer: None)
    monkeypatch.setattr(nnUNetTrainer, "initialize", lambda trainer: None)
    trainer.initialize()
    assert (trainer.budget.iterations, trainer.num_epochs, trainer.num_iterations_per_epoch) == (3 * 9, 3, 9)
    assert "3 passes over 35 slices of 5 training cases in batches of 4: 27" in Path(trainer.log_file).read_text()


# Training


def test_a_control_meets_its_budget_continues_exactly_and_predicts(folders: Path) -> None:
    plans = control("nnUNetPlans_run", iterations=10, iterations_per_epoch=4, train_cases=3)
    whole, rates = make_trainer(plans), []
    whole.save_every = 1
    expected = losses_of(whole, rates)
    whole.run_training()
    assert (
        np.isfinite(expected).all()
        and len(expected) == whole.iteration == 10
        and whole.num_epochs == whole.current_epoch == 3
    )
    np.testing.assert_allclose(rates, [0.01 * (1 - i / 10) ** 0.9 for i in range(10)], rtol=1e-12)
    record = TrainingRecord.read(Path(whole.output_folder))
    assert record is not None
    assert (record.trainer, record.model, record.seed, record.training_cases) == ("fm_trainer_stock", None, 42, 3)
    assert [v.iteration for v in record.validations] == [4, 8, 10]
    assert all(len(v.images) == 4 for v in record.validations)

    first = make_trainer(plans)
    first.save_every = 1
    before = losses_of(first)
    kill_after(first, 1)
    with pytest.raises(Killed):
        first.run_training()
    second = make_trainer(plans)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    after = losses_of(second)
    second.run_training()
    assert before + after == expected

    # The split is drawn anew: what was trained on is known, and neither goes on nor is validated on.
    training, validation = (list(part) for part in second.do_split())
    assert (record.trained_cases, record.validation_cases) == (training, validation)
    split = preprocessed() / "splits_final.json"
    kept = split.read_text()
    others = sorted({f"case_{number:02d}" for number in range(6)} - {*training, *validation})
    split.write_text(json.dumps([{"train": [*validation, *others], "val": training[:1]}]))
    third = make_trainer({**plans, STOCK_KEY: {**plans[STOCK_KEY], "train_cases": None}})
    third.load_checkpoint(str(Path(first.output_folder, "checkpoint_final.pth")))
    with fails("split-changed", "0", training[0]):
        third.run_training()
    with fails("cases-seen", "0", training[0], "splits_final.json"):
        third.perform_actual_validation()
    split.write_text(kept)

    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(second.output_folder_base, (0,), "checkpoint_final.pth")
    (image,) = (folders / "nnUNet_raw" / NAME / "imagesTs").iterdir()
    (result,) = predictor.predict_from_files_sequential([[str(image)]], None)
    assert result.shape == SHAPE


def test_nothing_but_the_budget_differs_from_nnunets_trainer() -> None:
    """The first loss from one random state, and what configures the training, are those of nnUNetTrainer."""
    plans = control("nnUNetPlans_first", iterations=5)
    raw_json = json.loads((preprocessed() / "dataset.json").read_text())
    ours = make_trainer(plans)
    stock = nnUNetTrainer(json.loads(json.dumps(plans)) | {"continue_training": False}, "2d", 0, raw_json, CPU)
    losses = []
    for trainer in (ours, stock):
        trainer.initialize()
        torch.manual_seed(1)
        for parameter in trainer.network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        generator = torch.Generator().manual_seed(2)
        data = torch.randn(2, 1, *trainer.configuration_manager.patch_size, generator=generator)
        target = torch.randint(0, 3, data.shape, generator=generator)
        scales = trainer._get_deep_supervision_scales()
        targets = [target[..., :: round(1 / s[0]), :: round(1 / s[1])] for s in scales]
        trainer.lr_scheduler.step(0)
        losses.append([float(trainer.train_step({"data": data, "target": targets})["loss"]) for _ in range(2)])
    assert np.isfinite(losses).all() and losses[0][0] == losses[1][0] and type(ours.loss) is type(stock.loss)
    for name in (
        "initial_lr",
        "weight_decay",
        "oversample_foreground_percent",
        "enable_deep_supervision",
        "batch_size",
    ):
        assert getattr(ours, name) == getattr(stock, name)
    assert ours.optimizer.defaults == stock.optimizer.defaults
