"""Several processes train as one does: the same step on halves of a batch, one end, other patches in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.trainers.loop import BudgetTrainer
from tests.helpers.datasets import empty, nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.two_processes import in_two_processes, interrupted_training, make_trainer, steps

SHAPE = (16, 20, 22)
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
DATASETS: dict[str, dict[str, Any]] = {"plain": {}, "regions": {"labels": REGIONS, "regions_class_order": [1, 2]}}
NUMBERS = {"plain": 680, "regions": 681}
RECIPE = {"optimizer": "sgd", "learning_rate": 0.1, "scratch": None, "schedule": "poly", "warmup": 0,
          "weight_decay": 0, "augmentation": "none", "sampling": "nnunet", "mirror": False, "iterations_per_epoch": 2,
          "validation_iterations": 1, "save_every": 1, "volume_dice_every": 0}  # fmt: skip
"""No weight decay: nnU-Net gives the coarsest output's loss a weight of 0 in one process and of 1e-6 in several, so
that its layer, which no prediction uses, decays only there."""
NETWORKS: dict[str, dict[str, Any]] = {
    "vanilla_unet2d": {"channels": [4, 4, 4, 4, 4], "image_size": 32},
    "stunet_s": {"dims": [4, 4, 8, 8, 8, 8]},
}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        variables = nnunet_folders(root, patch)
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("NNUNET_FM_BF16", "0")
        for kind, arguments in DATASETS.items():
            folder = write_dataset(
                variables["nnUNet_raw"], NUMBERS[kind], name=kind, shape=SHAPE, test_cases=0, **arguments
            )
            write_fingerprint(folder, [SHAPE] * 6, [(1.0, 1.0, 1.0)] * 6)
        yield root
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def empty_results(folders: Path) -> Iterator[None]:
    yield
    empty(folders / "nnUNet_results")


def make_plans(
    kind: str, model: str, *, name: str = "FMPlans_two", batch: int = 4, iterations: int = 4, **recipe: Any
) -> dict[str, Any]:
    options = Options(iterations=iterations, recipe=RECIPE | recipe, network=NETWORKS[model], batch=batch, force=True)
    plans = planner_class(f"FMPlanner_{model}")(NUMBERS[kind], 40, plans_name=name, options=options).plan_experiment()
    preprocess_dataset(NUMBERS[kind], name, list(plans["configurations"]), [1], show_progress_bar=False)
    return plans


STEPS: list[tuple[str, bool, dict[str, Any]]] = [
    ("plain", False, {"loss": "nnunet"}),
    ("plain", True, {"loss": "nnunet"}),
    ("regions", True, {"loss": "nnunet", "gradient_clip": 0.01}),
    ("regions", False, {"loss": "dice_ce", "supervision": "outputs"}),
]
"""Kind of labels, whether Dice is over the batch, recipe."""


@pytest.mark.slow
def test_two_processes_on_halves_of_a_batch_step_as_one_on_the_whole(tmp_path: Path) -> None:
    jobs = []
    for number, (kind, batch_dice, recipe) in enumerate(STEPS):
        plans = make_plans(kind, "stunet_s", name=f"FMPlans_{number}", **recipe)
        plans["configurations"]["3d_fullres"]["batch_dice"] = batch_dice
        trainer = make_trainer(plans, "3d_fullres")
        trainer.initialize()
        jobs.append((plans, "3d_fullres", next(trainer.get_dataloaders()[0])))
    alone = steps(0, jobs)
    together = in_two_processes(steps, tmp_path / "step", jobs)
    for setting, whole, *halves in zip(STEPS, alone, *together, strict=True):
        moved, largest, furthest = 0, 0.0, 0.0
        for name, before in whole["before"].items():
            assert all(torch.equal(half["before"][name], before) for half in halves), f"{setting}: {name} starts alike"
            assert torch.equal(halves[0]["after"][name], halves[1]["after"][name]), f"{setting}: {name} ends alike"
            step = whole["after"][name] - before
            moved += bool(step.any())
            largest = max(largest, float(step.abs().max()))
            furthest = max(furthest, float((halves[0]["after"][name] - whole["after"][name]).abs().max()))
        assert moved > 10 and furthest < 1e-4 * largest, setting
        assert np.mean([half["loss"] for half in halves]) == pytest.approx(whole["loss"], rel=1e-4), setting


@pytest.mark.slow
def test_two_processes_end_together_and_go_on_together(folders: Path, tmp_path: Path) -> None:
    """Whatever their clocks say; and each draws patches of its own, after a break as well."""
    plans = make_plans("plain", "vanilla_unet2d", iterations=1000, max_minutes=1.5)
    one, other = in_two_processes(interrupted_training, tmp_path / "training", plans, "2d", 2)
    first, second = zip(one, other, strict=True)
    for one, other in (first, second):
        assert [rate for rate, _ in one["steps"]] == [rate for rate, _ in other["steps"]]
        assert not {data for _, data in one["steps"]} & {data for _, data in other["steps"]}
        assert (one["iteration"], one["ended_by"]) == (other["iteration"], other["ended_by"])
        assert all(torch.equal(tensor, other["network"][name]) for name, tensor in one["network"].items())
    assert first[0]["iteration"] == 4 and first[0]["ended_by"] is None
    assert second[0]["iteration"] > 4 and second[0]["ended_by"] == "max_minutes"
    (fold,) = (folders / "nnUNet_results").glob("*/*/fold_0")
    record = TrainingRecord.read(fold)
    assert record is not None and record.iterations == second[0]["iteration"]
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 2, "each has validated its share of the cases"


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(make_plans("plain", "vanilla_unet2d", batch=3), "2d")
    trainer.is_ddp = True
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with fails("batch-share", "2", "3", "-num_gpus"):
        trainer.initialize()
    assert trainer.network is None and isinstance(trainer, BudgetTrainer)
