"""Default plans from random weights beside stock nnU-Net, at equal minutes: Dice of unseen cases.

    python -m benchmarks.from_scratch stunet_s --iterations 300              # the demo's hippocampus MRI, three seeds
    python -m benchmarks.from_scratch stunet_s vanilla_unet3d --data RAW/Dataset904_Hippocampus --minutes 5
    python -m benchmarks.from_scratch suprem --overfit 52                    # large models: one batch, learnt by heart

Each model follows its default plan (``fm_trainer_scratch``), stock nnU-Net its own (``fm_trainer_stock``). Some steps
of both are timed in turns, in processor time, so that other programs on the machine do not count; both then train for
as many steps as the same minutes hold. ``--data`` names a dataset in nnU-Net's raw layout with ``imagesTs`` and
``labelsTs``, which are the unseen cases. Dice is that of nnU-Net's validation: whole volumes, averaged over classes and
cases. ``--overfit`` trains on one batch of patches without augmentation and prints the Dice of each class on it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks import dataset

CONFIGURATION = "3d_fullres"
STOCK = "stock nnU-Net"
TIMED_STEPS, ROUNDS = 3, 3
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t of a 95 % interval, by the number of seeds."""


def prepare(folder: Path, data: Path | None) -> None:
    """The dataset with its unseen cases as fold 0's validation, and the stock plans, preprocessed."""
    dataset.use(folder)  # before nnU-Net reads its variables
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    from nnunet_fm.dataset_conversion.demo import unpack

    raw = folder / "nnUNet_raw"
    if data is None:
        made = unpack(raw, dataset.NUMBER)
    else:
        made = raw / f"Dataset{dataset.NUMBER}_Data"
        shutil.copytree(data, made)
    cases = {part: sorted(file.name for file in (made / f"labels{part}").iterdir()) for part in ("Tr", "Ts")}
    for kind in ("images", "labels"):
        for file in (made / f"{kind}Ts").iterdir():
            file.rename(made / f"{kind}Tr" / file.name)
        (made / f"{kind}Ts").rmdir()
    content = json.loads((made / "dataset.json").read_text())
    content["numTraining"] = len(cases["Tr"]) + len(cases["Ts"])
    (made / "dataset.json").write_text(json.dumps(content))
    names = {part: [name.removesuffix(content["file_ending"]) for name in files] for part, files in cases.items()}
    preprocessed = folder / "nnUNet_preprocessed" / made.name
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": names["Tr"], "val": names["Ts"]}]))
    extract_fingerprints([dataset.NUMBER], num_processes=1)
    os.environ["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planner takes it for a number of threads
    plan_experiments([dataset.NUMBER])
    os.environ["nnUNet_n_proc_DA"] = "0"
    dataset.preprocess("nnUNetPlans", CONFIGURATION)


def trainer(model: str, iterations: int, seed: int, **recipe: Any) -> Any:
    """A trainer of a model's default plan, or of stock nnU-Net, that validates at its end alone."""
    import torch

    from nnunet_fm.planfile.schema import KEY, STOCK_KEY, StockKey
    from nnunet_fm.trainers import trainer_class

    (preprocessed,) = Path(os.environ["nnUNet_preprocessed"]).iterdir()
    name = "nnUNetPlans" if model == STOCK else f"FMPlans_{model}"
    plans, description = (json.loads((preprocessed / file).read_text()) for file in (f"{name}.json", "dataset.json"))
    length = {"iterations_per_epoch": iterations, "validation_iterations": 1, "seed": seed}
    if model == STOCK:
        plans[STOCK_KEY] = StockKey(iterations=iterations, **length).model_dump()
    else:
        plans[KEY]["iterations"] = iterations
        plans[KEY]["recipe"] |= {**length, **recipe}
    kind: Any = trainer_class("fm_trainer_stock" if model == STOCK else "fm_trainer_scratch")
    made = kind(plans, CONFIGURATION, 0, description, torch.device("cpu"))
    made.disable_checkpointing = True
    return made


def seconds_per_step(models: Sequence[str]) -> dict[str, float]:
    """Median processor time of a training step, augmentation included; the models take turns."""
    trainers = {model: trainer(model, 1000, 0) for model in models}
    found: dict[str, list[float]] = {model: [] for model in models}
    for made in trainers.values():
        made.on_train_start()
        made.train_step(next(made.dataloader_train))  # allocates, and fills caches
    for _ in range(ROUNDS):
        for model, made in trainers.items():
            started = time.process_time()
            for _ in range(TIMED_STEPS):
                made.train_step(next(made.dataloader_train))
            found[model].append((time.process_time() - started) / TIMED_STEPS)
    return {model: statistics.median(values) for model, values in found.items()}


def dice_of_unseen(model: str, iterations: int, seed: int) -> float:
    """Train, and return the mean Dice of the fold's validation cases."""
    made = trainer(model, iterations, seed)
    made.run_training()
    made.perform_actual_validation()
    summary = json.loads((Path(made.output_folder) / "validation" / "summary.json").read_text())
    return float(summary["foreground_mean"]["Dice"])


def overfitted(model: str, steps: int, rate: float | None) -> dict[str, Any]:
    """Dice of each class on one batch after so many steps on it, with the rate of the recipe or another."""
    import torch

    changes = {} if rate is None else {"learning_rate": rate, "scratch": None}
    fixed = {"augmentation": "none", "mirror": [], "schedule": "constant", "warmup": 0.0, **changes}
    made = trainer(model, steps, 0, **fixed)
    made.on_train_start()
    batch = next(made.dataloader_train)
    losses = [float(made.train_step(batch)["loss"]) for _ in range(steps)]
    made.network.eval()
    made.set_deep_supervision_enabled(False)
    with torch.no_grad():
        predicted = made.network(batch["data"]).argmax(1)
    target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
    dice = []
    for label in range(1, made.label_manager.num_segmentation_heads):
        found, true = predicted == label, target[:, 0] == label
        dice.append(2 * int((found & true).sum()) / max(1, int(found.sum() + true.sum())))
    return {"dice": dice, "first_loss": losses[0], "last_loss": losses[-1]}


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    """Plan, time, train and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.from_scratch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="3D models by name")
    parser.add_argument("--iterations", type=int, default=300, help="of the first model (default: 300)")
    parser.add_argument("--minutes", type=float, help="of processor time, instead of iterations")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="raw dataset with imagesTs and labelsTs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each training")
    parser.add_argument("--overfit", type=int, metavar="STEPS", help="learn one batch by heart instead")
    parser.add_argument("--rate", type=float, help="learning rate with --overfit (default: the recipe's)")
    parser.add_argument("--patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help="patch with --overfit")
    parser.add_argument("--no-stock", action="store_true", help="leave stock nnU-Net out")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="every Dice and time")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(given.threads), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    import torch

    torch.set_num_threads(given.threads)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="from_scratch_") as name, redirect_stdout(sys.stderr):
        folder = Path(name)
        prepare(folder, given.data)
        for model in given.models:
            size = {} if given.patch is None else {"patch": given.patch, "batch": 1}
            dataset.plan(f"FMPlans_{model}", f"FMPlanner_{model}", **size)
            dataset.preprocess(f"FMPlans_{model}", CONFIGURATION)
        if given.overfit:
            for model in given.models:
                found[model] = overfitted(model, given.overfit, given.rate)
                print(f"{model}: {found[model]}", file=sys.stderr, flush=True)
        else:
            models = [*given.models, *([] if given.no_stock else [STOCK])]
            cost = seconds_per_step(models)
            seconds = 60 * given.minutes if given.minutes else given.iterations * cost[models[0]]
            for model in models:
                iterations = max(1, round(seconds / cost[model]))
                dice = [dice_of_unseen(model, iterations, seed) for seed in range(given.seeds)]
                found[model] = {"iterations": iterations, "seconds_per_step": cost[model], "dice": dice}
                print(f"{model}: {found[model]}", file=sys.stderr, flush=True)
    for model, row in found.items():
        if given.overfit:
            print(f"{model:20} Dice {', '.join(f'{value:.3f}' for value in row['dice'])}")
        else:
            print(
                f"{model:20} Dice {statistics.mean(row['dice']):.3f} ± {interval(row['dice']):.3f}, "
                f"{row['iterations']} iterations of {row['seconds_per_step']:.2f} s"
            )
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
