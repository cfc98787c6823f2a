"""Results of studies that never ran: scores, records, times and files from a seeded generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from nnunet_fm.metrics.scores_table import METRICS, SIZE_GROUPS
from nnunet_fm.records.training import Overlap, Speed, TrainingRecord, Validation
from nnunet_fm.reporting.results import FILE_COLUMNS, RUN_COLUMNS, SCORE_COLUMNS, TIME_COLUMNS, Results, Run

STEPS = ("reading", "preprocessing", "inference", "export")


def size_group(share: float) -> str:
    return SIZE_GROUPS[sum(share >= edge for edge in (0.01, 0.05, 0.15))]


def make_results(
    models: Sequence[str] = ("STU-Net B", "DINOv2 B, hqhsam", "SuPreM"),
    controls: Sequence[str] = ("stock", "resenc", "scratch"),
    datasets: Sequence[str] = ("Dataset904_A",),
    anatomies: Sequence[str] | None = None,
    classes: Sequence[str] = ("anterior", "posterior"),
    folds: int = 2,
    seeds: int = 2,
    cases: int = 8,
    across: bool = False,
    adapted: Sequence[str] = (),
    records: bool = True,
    times: bool = True,
    nan_share: float = 0.0,
    title: str = "Hippocampus, two folds and two seeds",
    generator_seed: int = 0,
    image_folder: Path | None = None,
    flat: bool = False,
    spread: float = 0.03,
) -> Results:
    """Models and controls on datasets; each model has its own level, each case its own difficulty.

    Args:
        across: models are tested on the other datasets of their anatomy, too.
        adapted: methods by which the models are adapted to every other dataset.
        nan_share: share of the scores that are undefined.
        image_folder: where images, references and predictions are written; none without.
        flat: write 2D images.
        spread: of the cases' scores.
    """
    generator = np.random.default_rng(generator_seed)
    anatomies = anatomies or ["hippocampus"] * len(datasets)
    weights = np.sort(generator.pareto(1.0, len(classes)) + 0.02)[::-1]
    shares = {name: dict(zip(classes, (weights / weights.sum()).tolist(), strict=True)) for name in datasets}
    runs: list[Run] = []
    levels: dict[str, float] = {}
    for number, label in enumerate([*models, *(f"control {c}" for c in controls)]):
        control = controls[number - len(models)] if number >= len(models) else None
        levels[label] = 0.88 - 0.025 * number
        for dataset, anatomy in zip(datasets, anatomies, strict=True):
            for fold in range(folds):
                for seed in range(seeds):
                    runs.append(_run(label, control, dataset, anatomy, fold, seed, number))
            for method in adapted if control is None else ():
                for source, other in zip(datasets, anatomies, strict=True):
                    if source != dataset and other == anatomy:
                        name = f"{label}, {method}"
                        levels[name] = levels[label] - 0.06
                        runs.append(_run(name, None, dataset, anatomy, 0, 0, number, source, method))
    difficulty = {dataset: generator.normal(0, spread, cases) for dataset in datasets}
    score_rows: list[tuple[object, ...]] = []
    time_rows: list[tuple[object, ...]] = []
    for run in runs:
        for target, anatomy in zip(datasets, anatomies, strict=True):
            foreign = target != run.dataset
            if foreign and (not across or anatomy != run.anatomy or run.method):
                continue
            for case in range(cases):
                name = f"{target.split('_', 1)[1]}_{case:03d}"
                for index, (label, share) in enumerate(shares[target].items()):
                    noise = generator.normal(0, spread) + difficulty[target][case] - 0.01 * index
                    dice = float(np.clip(levels[run.label] - 0.25 * foreign + noise, 0, 1))
                    volume = 20 * share
                    values = {
                        "Dice": dice,
                        "Jaccard": dice / (2 - dice),
                        "HD95": 12 * (1 - dice),
                        "NSD": min(1.0, dice + 0.05),
                        "volume_reference": volume,
                        "volume_prediction": volume * (0.8 + 0.2 * dice),
                    }
                    undefined = generator.random() < nan_share
                    for metric in METRICS:
                        value = float("nan") if undefined and not metric.startswith("volume") else values[metric]
                        score_rows.append((run.run, target, name, label, size_group(share), metric, value))
                for step, base in zip(STEPS, (0.2, 1.1, 3.0, 0.6), strict=True) if times else ():
                    second = base * (1 + 0.2 * levels[run.label]) * generator.uniform(0.8, 1.2)
                    time_rows.append((run.run, target, name, step, second, "Xeon Platinum"))
    scores = pd.DataFrame(score_rows, columns=SCORE_COLUMNS)
    files = pd.DataFrame(columns=FILE_COLUMNS)
    if image_folder is not None:
        files = _files(image_folder, runs, scores, generator, len(classes), classes, flat)
    return Results(
        title=title,
        runs=pd.DataFrame([run.model_dump() for run in runs], columns=RUN_COLUMNS),
        scores=scores,
        records={run.run: _record(run, levels[run.label], generator) for run in runs} if records else {},
        times=pd.DataFrame(time_rows, columns=TIME_COLUMNS),
        files=files,
        size_shares=shares,
    )


def _run(
    label: str,
    control: str | None,
    dataset: str,
    anatomy: str,
    fold: int,
    seed: int,
    number: int,
    source: str | None = None,
    method: str | None = None,
) -> Run:
    return Run(
        run=f"r{number}_{dataset}_{source}_{method}_{fold}_{seed}",
        label=label,
        model=None if control in ("stock", "resenc") else f"model_{number}",
        control=control,
        trainer="fm_trainer" if control is None else "fm_trainer_stock",
        plans=f"FMPlans_model_{number}",
        configuration="3d_fullres",
        dataset=dataset,
        source=source,
        anatomy=anatomy,
        fold=str(fold),
        seed=seed,
        method=method,
        model_folder=f"{dataset}/fm_trainer__FMPlans_model_{number}__3d_fullres",
    )


def _record(run: Run, level: float, generator: np.random.Generator) -> TrainingRecord:
    end = 6000 if run.control else 12000
    steps = np.linspace(0, end, 25)[1:].astype(int)
    dice = level * (1 - np.exp(-steps / (end / 5))) + generator.normal(0, 0.008, len(steps))
    validations = [
        Validation(
            epoch=number,
            iteration=int(step),
            seconds=float(step) * 0.4,
            learning_rate=0.01,
            train_loss=-float(value),
            val_loss=-float(value) + 0.05,
            dice_patches=float(value),
            dice_ema=float(value),
            per_volume=Overlap(dice=float(value) - 0.02, miou=float(value) - 0.1) if number % 3 == 2 else None,
        )
        for number, (step, value) in enumerate(zip(steps, dice, strict=True))
    ]
    number = int(run.plans.rsplit("_", 1)[1])
    return TrainingRecord(
        trainer=run.trainer,
        plans=run.plans,
        configuration=run.configuration,
        dataset=run.dataset,
        fold=run.fold,
        model=run.model,
        seed=run.seed,
        device="cpu",
        processor="Xeon Platinum",
        threads=2,
        versions={"nnunetv2": "2.8.1", "torch": "2.14.1"},
        patch_size=[128, 128, 128] if number % 2 else [64, 128, 128],
        batch_size=2,
        parameters=int(14e6 * 1.9**number),
        parameters_trained=int(12e6 * 1.5**number),
        training_cases=20,
        iterations=end,
        seconds=end * 0.4,
        speed=Speed(mean=3.0 / (1 + number), sd=0.2, iterations=end - 50, waiting_share=0.04 * (1 + number)),
        peak_memory=int((2 + number) * 2**30),
        device_memory=None,
        convergence_iteration=None if number == 2 and run.seed == 1 else int(end * 0.6 + 100 * number),
        validations=validations,
    )


def write_record(fold: Path, dataset: str, trained: Sequence[str] | None, **content: Any) -> None:
    """Write the record that a training of such cases leaves in the folder of its fold."""
    fold.mkdir(parents=True, exist_ok=True)
    about = {"trainer": "fm_trainer", "plans": "p", "configuration": "2d", "fold": "0", "device": "cpu"}
    numbers = {"threads": 1, "patch_size": [8, 8], "batch_size": 2, "parameters": 1, "parameters_trained": 1}
    empty = {"model": None, "seed": None, "processor": "", "versions": {}, "training_cases": len(trained or [])}
    record = {**about, **numbers, **empty, "dataset": dataset, "trained_cases": trained, **content}
    TrainingRecord.model_validate(record).write(fold)


def _files(
    folder: Path,
    runs: Sequence[Run],
    scores: pd.DataFrame,
    generator: np.random.Generator,
    number: int,
    classes: Sequence[str],
    flat: bool,
) -> pd.DataFrame:
    """Images with ellipsoids as classes; predictions are the truth moved a little."""
    import json

    rows = []
    ending = ".png" if flat else ".nii.gz"
    for target, case in scores[["target", "case"]].drop_duplicates().itertuples(index=False):
        truth = _blobs(number, flat)
        grey = (60 + 25 * truth + generator.normal(0, 6, truth.shape)).clip(0, 255).astype(np.uint8)
        image = _write(folder / target / "imagesTs" / f"{case}_0000{ending}", grey)
        reference = _write(folder / target / "labelsTs" / f"{case}{ending}", truth)
        description = {"labels": {"background": 0, **{name: i + 1 for i, name in enumerate(classes)}}}
        (folder / target / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
        for run in runs:
            if not ((scores["run"] == run.run) & (scores["target"] == target)).any():
                continue
            moved = np.roll(truth, 1 + (run.dataset != target), axis=-1)
            prediction = _write(folder / "runs" / run.run / target / f"{case}{ending}", moved)
            rows.append((run.run, target, case, str(image), str(reference), str(prediction)))
    return pd.DataFrame(rows, columns=FILE_COLUMNS)


def _blobs(number: int, flat: bool) -> np.ndarray:
    shape = (48, 56) if flat else (24, 40, 44)
    grid = np.indices(shape).astype(float)
    labels = np.zeros(shape, np.uint8)
    for label in range(number):
        angle = 2 * np.pi * label / number
        centre = [edge / 2 for edge in shape]
        centre[-1] += 0.28 * shape[-1] * np.cos(angle)
        centre[-2] += 0.28 * shape[-2] * np.sin(angle)
        radius = [max(3.0, 0.3 * edge / np.sqrt(number)) for edge in shape]
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radius, strict=True))
        labels[distance < 1] = label + 1
    return labels


def _write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path
