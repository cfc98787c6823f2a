"""Twenty steps of trainings from random weights and of adaptations, what is in their checkpoints, and predictions."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprint_dataset,
    plan_experiment_dataset,
    preprocess_dataset,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args
from torch import Tensor

from tests.golden.command import succeed
from tests.golden.record import Subjects, Wanted, against_first, plain
from tests.helpers.datasets import write_dataset
from tests.helpers.official_files import write_official

SOURCE, TARGET = 601, 602
CPU = torch.device("cpu")
RECIPE = {"iterations_per_epoch": 10, "validation_iterations": 2}
VOLUME = "--patch 32 32 32 --spacing 1.5 1 1"
SLICES = "--patch 32 32 --batch 2 --slice-axis z"


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        plan: options of ``nnunet-fm plan``.
        trainer: its name.
        iterations: optimiser steps.
        network: arguments that are put into the plan afterwards.
        bf16: networks compute in bfloat16.
        validated: nnU-Net's validation of whole volumes follows.
    """

    plan: str
    trainer: str = "fm_trainer_scratch"
    iterations: int = 20
    network: Mapping[str, Any] = field(default_factory=dict)
    bf16: bool = False
    validated: bool = False


TRAININGS = {
    "stunet_s": Training(f"-m stunet_s --batch 2 {VOLUME}", validated=True),
    "stunet_s_bf16": Training(f"-m stunet_s --batch 1 {VOLUME} --name FMPlans_bf16", iterations=5, bf16=True),
    "suprem": Training(f"-m suprem --batch 1 {VOLUME}", network={"feature_size": 12}),
    "swinmm": Training(f"-m swinmm --batch 1 {VOLUME}", network={"feature_size": 12}),
    "dinov2_s_linear_freeze": Training(
        f"-m dinov2_s --head linear --adapter freeze --set network.image_size=56 {SLICES}", "fm_trainer_freeze_scratch"
    ),
    "dinov2_s_linear_freeze_slim": Training(
        f"-m dinov2_s --head linear --adapter freeze --set network.image_size=56 --name FMPlans_slim {SLICES} "
        "--set recipe.augmentation=none --set recipe.feature_cache=1",
        "fm_trainer",
        validated=True,
    ),
    "dinov2_s_hqhsam_rein_lora": Training(
        f"-m dinov2_s --head hqhsam --adapter rein_lora --set network.image_size=56 {SLICES}",
        "fm_trainer_rein_lora_scratch",
    ),
    "sam_b_samdec_ladder": Training(
        f"-m sam_b --head samdec --adapter ladder --set network.image_size=64 {SLICES}", "fm_trainer_ladder_scratch"
    ),
}
"""Patches, and images that 2D networks resize slices to, are small; Swin UNETRs have a quarter of their widths."""

ADAPTATIONS = {
    "stunet_s": ("stunet_s", "--method selftraining --labelled 2 --confidence 0.4"),
    "dinov2_s_slim": ("dinov2_s_linear_freeze_slim", "--method selftraining --labelled 1 --teacher-momentum 0.9"),
    "dinov2_s_entropy": ("dinov2_s_linear_freeze_slim", "--method entropymin"),
    "stunet_s_entropy": ("stunet_s", "--method entropymin"),
}
ADAPTED_ITERATIONS = 4

MEASURED = ("seconds", "speed", "peak_memory", "processor", "versions", "loading", "waiting")
"""Entries of the training's record that differ from run to run."""


def trainings(root: Path, wanted: Wanted) -> Subjects:
    """Files ``training/...`` and ``predictions/...`` of each training."""
    adapted = {name: of for name, of in ADAPTATIONS.items() if _asked(wanted, f"adapted {name}")}
    needed = {source for source, _ in adapted.values()}
    raw = root / "nnUNet_raw"
    for number in (SOURCE, TARGET):
        write_dataset(raw, number, shape=(18, 40, 36), spacing=(1.5, 1, 1), cases=5)
        extract_fingerprint_dataset(number, num_processes=1, show_progress_bar=False)
    write_official("dinov2_s", root / "weights")
    models: dict[str, Path] = {}
    for name, training in TRAININGS.items():
        if name in needed or _asked(wanted, name):
            plans = _planned(["plan", "-d", str(SOURCE), *training.plan.split()], training.iterations, training.network)
            with _variable("NNUNET_FM_BF16", str(int(training.bf16))):
                models[name], content = _train(root, plans, training.trainer, validated=training.validated)
                yield f"training/{name}", content
                if wanted(f"predictions/{name}"):
                    yield f"predictions/{name}", _predict(root, models[name], SOURCE)
    for name, (source, options) in adapted.items():
        words = ["adapt", "--source", str(models[source]), "--target", str(TARGET), *options.split()]
        plans = _planned([*words, "--name", f"FMPlans_{name}"], ADAPTED_ITERATIONS)
        model, content = _train(root, plans, plans["trainer"])
        yield f"training/adapted {name}", content
        if wanted(f"predictions/adapted {name}"):
            yield f"predictions/adapted {name}", _predict(root, model, TARGET)
    if _asked(wanted, "stock"):
        model, content = _train(root, _stock_plans(root), "fm_trainer_stock")
        yield "training/stock", content
        if wanted("predictions/stock"):
            yield "predictions/stock", _predict(root, model, SOURCE)


def _asked(wanted: Wanted, name: str) -> bool:
    return wanted(f"training/{name}") or wanted(f"predictions/{name}")


def _planned(words: list[str], iterations: int, network: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plan and preprocess; returns what the command says as JSON."""
    recipe = {**RECIPE, "iterations_per_epoch": min(iterations, 10)}
    settings = [word for key, value in recipe.items() for word in ("--set", f"recipe.{key}={value}")]
    said = succeed(*words, "--iterations", str(iterations), *settings, "--json")
    made: dict[str, Any] = json.loads(said["out"][-1])
    if network:
        for entry in made["plans"]["configurations"].values():
            entry["architecture"]["arch_kwargs"] |= network
        Path(made["path"]).write_text(json.dumps(made["plans"]))
    _preprocess(made["plans"])
    return made


def _stock_plans(root: Path) -> dict[str, Any]:
    """Plans of stock nnU-Net, its network made small, with a budget of ours."""
    with _variable("nnUNet_n_proc_DA", "1"):  # the stock planner makes it a number of threads
        plan_experiment_dataset(SOURCE, gpu_memory_target_in_gb=1)
    (file,) = (root / "nnUNet_preprocessed").glob(f"Dataset{SOURCE}_*/nnUNetPlans.json")
    plans = json.loads(file.read_text())
    entry = plans["configurations"]["2d"]
    network = entry["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4] * network["n_stages"]
    entry["batch_size"] = 2
    file.write_text(json.dumps(plans))
    preprocess_dataset(SOURCE, "nnUNetPlans", ["2d"], [1], show_progress_bar=False)
    words = ["plan", "-d", str(SOURCE), "--control", "stock", "--iterations", "20", "--seed", "3", "--json"]
    words += [word for key, value in RECIPE.items() for word in ("--set", f"recipe.{key}={value}")]
    made: dict[str, Any] = json.loads(succeed(*words)["out"][-1])
    return {**made, "configuration": "2d"}


def _preprocess(plans: Mapping[str, Any]) -> None:
    number = int(plans["dataset_name"][7:10])
    preprocess_dataset(number, plans["plans_name"], list(plans["configurations"]), [1], show_progress_bar=False)


def _train(
    root: Path, made: Mapping[str, Any], trainer_name: str, *, validated: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Train; returns the model's folder, and losses, rates, records and checkpoints."""
    plans = made["plans"]
    configuration = made.get("configuration") or next(iter(plans["configurations"]))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    trainer = get_trainer_from_args(
        plans["dataset_name"], configuration, 0, trainer_name, plans["plans_name"], device=CPU
    )
    steps: list[dict[str, Any]] = []
    for step in ("train_step", "validation_step"):
        _note(trainer, step, steps)
    trainer.run_training()
    fold = Path(trainer.output_folder)
    content: dict[str, Any] = {
        "plans": plans["plans_name"],
        "training": [step["loss"] for step in steps if step["step"] == "train_step"],
        "validation": [step["loss"] for step in steps if step["step"] == "validation_step"],
        "learning rates": [step["rate"] for step in steps if step["step"] == "train_step"],
    }
    if validated:
        trainer.perform_actual_validation(False)
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        content["validated cases"] = [case["metrics"] for case in summary["metric_per_case"]]
    files = [path.relative_to(fold).as_posix() for path in fold.rglob("*") if path.is_file()]
    content["files"] = sorted(file.replace(Path(trainer.log_file).name, "LOG") for file in files)
    records = [path for path in fold.glob("*.json") if path.name != "debug.json"]
    content["records"] = {path.name: _unmeasured(json.loads(path.read_text())) for path in records}
    checkpoints = {}
    for file in sorted(fold.glob("*.pth"), reverse=True):
        saved = torch.load(file, map_location="cpu", weights_only=False)
        weights = saved.pop("network_weights")
        checkpoints[file.name] = {
            "weights": {name: _shape(tensor) for name, tensor in weights.items()},
            "weights, SHA-256": _digest(weights),
            "else": _types(saved),
        }
    content["checkpoints"] = against_first(checkpoints)
    return fold.parent, plain(content, root)


def _note(trainer: Any, step: str, steps: list[dict[str, Any]]) -> None:
    """Let a trainer's method note the loss of each of its steps, to the last digit."""
    original = getattr(trainer, step)

    def noted(batch: Any) -> Any:
        result = original(batch)
        steps.append(
            {"step": step, "loss": float(result["loss"]), "rate": float(trainer.optimizer.param_groups[0]["lr"])}
        )
        return result

    setattr(trainer, step, noted)


def _unmeasured(content: Any) -> Any:
    """Content without what is measured in time and memory."""
    if isinstance(content, dict):
        return {k: _unmeasured(v) for k, v in content.items() if not any(word in k for word in MEASURED)}
    return [_unmeasured(item) for item in content] if isinstance(content, list) else content


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _types(content: Any) -> Any:
    """Keys and types of what a checkpoint holds, tensors by shape; equal entries of a list once."""
    if isinstance(content, Tensor):
        return _shape(content)
    if isinstance(content, np.ndarray):
        return f"array {content.dtype} {list(content.shape)}"
    if isinstance(content, Mapping):
        return {str(key): _types(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        kinds = list(dict.fromkeys(json.dumps(_types(item), sort_keys=True) for item in content))
        return {f"{type(content).__name__} of {len(content)}": [json.loads(kind) for kind in kinds]}
    return type(content).__name__


def _predict(root: Path, model: Path, number: int) -> dict[str, Any]:
    """Predictions of the test images by the stock predictor, and of the first one by our command."""
    (images,) = (root / "nnUNet_raw").glob(f"Dataset{number}_*/imagesTs")
    out = root / "predictions" / model.parent.name / model.name
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, verbose=False, verbose_preprocessing=False)
    (out / "stock").mkdir(parents=True)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(images), str(out / "stock"), save_probabilities=True)
    succeed("predict", "-i", images, "-o", out / "ours", "-m", model, "-f", "0", "-npp", "0", "-nps", "0",
            "-device", "cpu", "--save_probabilities", "--quiet")  # fmt: skip
    content = {}
    for by in ("stock", "ours"):
        for file in sorted((out / by).glob("*.nii.gz")):
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            probabilities = np.load(file.with_name(file.name.replace(".nii.gz", ".npz")))["probabilities"]
            content[f"{by}, {file.name}"] = {
                "voxels": np.bincount(labels.ravel()).tolist(),
                "mean probabilities": probabilities.reshape(len(probabilities), -1).astype(float).mean(1).tolist(),
                "labels, SHA-256": hashlib.sha256(labels.tobytes()).hexdigest(),
                "probabilities, SHA-256": hashlib.sha256(probabilities.tobytes()).hexdigest(),
            }
    return content


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ[name]
    os.environ[name] = value
    yield
    os.environ[name] = before
