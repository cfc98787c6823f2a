"""Prediction of a folder with one model: ``nnunet-fm predict`` against ``nnUNetv2_predict_from_modelfolder``.

Both run our network. Stock's is held in float32 by ``NNUNET_FM_BF16=0``, with all else that speeds it up left on, such
as float32 products by oneDNN (`nnunet_fm.cpu.onednn_linear`): the ratio would be larger without.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import dataset
from benchmarks.harness import SIDES, Benchmark, Goal, Side
from benchmarks.measure import Measurement, run_command

PLANS = "FMPlans_prediction"
OURS = [Path(sys.executable).name, "-c", "from nnunet_fm.cli.app import main; main()", "predict"]
"""``nnunet-fm predict``, which needs no installed script so."""
SPACING = (1.5, 1.5, 1.5)


@dataclass(frozen=True)
class Model:
    """A model of random weights and the images that it predicts, in full size and small."""

    planner: str
    configuration: str
    patch: tuple[int, ...]
    small_patch: tuple[int, ...]
    shape: tuple[int, int, int]


VOLUME = Model("FMPlanner_stunet_s_nnunet", "3d_fullres", (64, 96, 96), (32, 32, 32), (96, 144, 144))
SLICES = Model("FMPlanner_dinov2_s", "2d", (224, 224), (56, 56), (64, 224, 224))


def prepare(folder: Path, small: bool, *, model: Model) -> None:
    """Two cases and a model folder as a training leaves it."""
    shape = (20, 40, 40) if small else model.shape
    dataset.write_dataset(folder, [shape] * 2, SPACING)
    patch = model.small_patch if small else model.patch
    spacing = list(SPACING[-len(patch) :])
    plans = dataset.plan(PLANS, model.planner, spacing=spacing, patch=list(patch), iterations=10)
    plans = json.loads(json.dumps(plans))  # as trainings read them: checkpoints hold no numpy strings
    dataset.preprocess(PLANS, model.configuration)
    import torch

    from nnunet_fm.trainers import trainer_class

    description = json.loads((folder / "nnUNet_raw" / dataset.NAME / "dataset.json").read_text(encoding="utf-8"))
    trainer = trainer_class("fm_trainer_scratch")(
        plans | {"continue_training": False}, model.configuration, "all", description, torch.device("cpu")
    )
    trainer.initialize()
    fold = Path(trainer.output_folder)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    for name, content in {"plans": plans, "dataset": description}.items():
        (fold.parent / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def run(side: Side, folder: Path, small: bool, *, opponent_bf16: bool) -> Measurement:
    """The command, with its own choice of processes but in small form."""
    shutil.rmtree(folder / side, ignore_errors=True)
    return _predict(side, folder, folder / side, small, bf16=side == "ours" or opponent_bf16)


def compare(folder: Path, small: bool) -> dict[str, float]:
    """Share of the union of foregrounds on which label maps agree: with float32 on both sides, and as measured."""
    import SimpleITK as sitk

    os.environ.pop("NNUNET_FM_BF16", None)
    for side in SIDES:
        _predict(side, folder, folder / f"{side}_float32", small, bf16=False)
    agreement = {}
    for what, ours, theirs in (
        ("float32 on both sides", "ours_float32", "opponent_float32"),
        ("ours as it is, stock in float32", "ours", "opponent_float32"),
    ):
        same = foreground = 0
        for file in sorted((folder / theirs).glob("*.nii.gz")):
            a, b = (sitk.GetArrayFromImage(sitk.ReadImage(folder / side / file.name)) for side in (ours, theirs))
            union = (a > 0) | (b > 0)
            same += int((a == b)[union].sum())
            foreground += int(union.sum())
        agreement[f"foreground voxels that agree, {what}, %"] = 100 * same / foreground
    return agreement


def _predict(side: Side, folder: Path, output: Path, small: bool, *, bf16: bool) -> Measurement:
    dataset.use(folder)
    (model,) = (folder / "nnUNet_results" / dataset.NAME).iterdir()
    images = folder / "nnUNet_raw" / dataset.NAME / "imagesTr"
    command = OURS if side == "ours" else ["nnUNetv2_predict_from_modelfolder"]
    environment = {} if bf16 else {"NNUNET_FM_BF16": "0"}
    places = ["-i", str(images), "-o", str(output), "-m", str(model), "-f", "all", "-device", "cpu"]
    processes = ["-npp", "1", "-nps", "1"] if small else []
    return run_command([*command, *places, *processes], **environment)


def _benchmarks(name: str, what: str, model: Model, goal: Goal) -> tuple[Benchmark, Benchmark]:
    """Against stock held in float32, which is judged, and with bf16 on both sides where the processor has it."""
    ready = partial(prepare, model=model)
    return (
        Benchmark(
            f"prediction-{name}", f"prediction of two cases, {what}",
            partial(run, opponent_bf16=False), ready, compare, {"wall": goal},
        ),
        Benchmark(
            f"prediction-{name}-bf16", f"prediction of two cases, {what}, bf16 on both sides",
            partial(run, opponent_bf16=True), ready,
        ),
    )  # fmt: skip


BENCHMARKS = (
    *_benchmarks("3d", "STU-Net S, windows of 64 × 96 × 96", VOLUME, Goal(2.5, 4)),
    *_benchmarks("2d", "DINOv2 S, slices of 224 × 224", SLICES, Goal(3, 5)),
)
