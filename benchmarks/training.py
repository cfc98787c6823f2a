"""Steps of a training, data included: `fm_trainer` against stock's trainer on one plan, network and dataset."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import dataset
from benchmarks.harness import Benchmark, Goal, Side
from benchmarks.measure import Measurement, measure, threads

PLANS = "FMPlans_training"
PATCH = [64, 96, 96]
STEPS = 4


def prepare(folder: Path, small: bool) -> None:
    """Five preprocessed cases, and a plan with nnU-Net's own augmentation, loss and optimiser."""
    edge = 40 if small else 128
    dataset.write_dataset(folder, [(edge, edge, edge)] * 5, (1.5, 1.5, 1.5))
    patch = [32, 32, 32] if small else PATCH
    dataset.plan(PLANS, "FMPlanner_stunet_s_nnunet", spacing=[1.5, 1.5, 1.5], patch=patch, batch=2, iterations=1000)
    dataset.preprocess(PLANS, "3d_fullres")


def run(side: Side, folder: Path, small: bool, *, bf16: bool) -> Measurement:
    """Draw, augment and train batches in one process. Stock's trainer always computes in float32 on a CPU."""
    dataset.use(folder)
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    if not bf16 or side == "opponent":
        os.environ["NNUNET_FM_BF16"] = "0"
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_fm.trainers import trainer_class

    torch.set_num_threads(threads())
    base = folder / "nnUNet_preprocessed" / dataset.NAME
    plans, description = (json.loads((base / file).read_text()) for file in (f"{PLANS}.json", "dataset.json"))
    chosen: Any = trainer_class("fm_trainer_scratch") if side == "ours" else nnUNetTrainer
    trainer = chosen(plans | {"continue_training": False}, "3d_fullres", "all", description, torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()

    def step() -> None:
        trainer.train_step(next(trainer.dataloader_train))

    return measure(step, repeats=1 if small else STEPS)


BENCHMARKS = (
    Benchmark(
        "training", "training steps of STU-Net S, 2 × 64 × 96 × 96, bf16 where the processor has it",
        partial(run, bf16=True), prepare, goals={"wall": Goal(1.8, 2.5)},
    ),
    Benchmark(
        "training-float32", "training steps of STU-Net S, 2 × 64 × 96 × 96, float32",
        partial(run, bf16=False), prepare, goals={"wall": Goal(1.2, 1.5)},
    ),
)  # fmt: skip
