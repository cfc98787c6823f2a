"""Do the fast paths learn as well? Dice of trainings with all of them, and without any, from the same seeds.

    python -m benchmarks.learning                       # three seeds: about five minutes on two free cores
    python -m benchmarks.learning --iterations 300 --seeds 5 -o learning.json
    python -m benchmarks.learning --small               # does it run? one seed, a few steps, no judgement

STU-Net S from random weights on the demo's hippocampus MRI, fold 0, nnU-Net's augmentation. ``fast`` computes as a
training of a user does: bf16, oneDNN and channels-last where the processor gains from them, and our transforms.
``plain`` computes in float32 as PyTorch does, with batchgeneratorsv2's transforms. Dice is that of whole validation
volumes, averaged over classes and volumes. Exit code 1: the means differ by more than the seeds of a side do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from benchmarks import dataset
from benchmarks.harness import REPOSITORY

Way = Literal["fast", "plain"]
WAYS: tuple[Way, Way] = ("fast", "plain")
SWITCHES = ("NNUNET_FM_BF16", "NNUNET_FM_ONEDNN", "NNUNET_FM_CHANNELS_LAST")
"""Variables that turn a fast path off with 0; unset, the processor decides."""
PLANS, CONFIGURATION = "FMPlans_learning", "3d_fullres"
RECIPE = {
    "optimizer": "adamw",
    "learning_rate": 4e-3,
    "weight_decay": 1e-2,
    "warmup": 0.03,
    "augmentation": "nnunet",
    "mirror": False,
    "iterations_per_epoch": 50,
    "validation_iterations": 1,
    "volume_dice_every": 1_000_000,  # after the last epoch only
    "save_every": 1_000_000,
}


def prepare(folder: Path, iterations: int) -> None:
    """The demo's images, planned and preprocessed."""
    dataset.use(folder)  # before nnU-Net reads its variables
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints

    from nnunet_fm.dataset_conversion.demo import unpack

    unpack(folder / "nnUNet_raw", dataset.NUMBER)
    extract_fingerprints([dataset.NUMBER], num_processes=1)
    dataset.plan(PLANS, "FMPlanner_stunet_s", iterations=iterations, recipe=RECIPE)
    dataset.preprocess(PLANS, CONFIGURATION)


def train(way: Way, seed: int, folder: Path) -> dict[str, float]:
    """One training in this process, whose environment says what is fast; its Dice and its time in s."""
    dataset.use(folder)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_results": str(folder / f"results_{way}_{seed}")}
    import torch

    from nnunet_fm.data.augmentation import without_timing
    from nnunet_fm.records.training import TrainingRecord
    from nnunet_fm.trainers import base, trainer_class

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    (preprocessed,) = (folder / "nnUNet_preprocessed").iterdir()
    plans, description = (json.loads((preprocessed / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    plans["nnunet_fm"]["recipe"]["seed"] = seed
    with mock.patch.object(base, "accelerated", without_timing) if way == "plain" else nullcontext():
        made: Any = trainer_class("fm_trainer_scratch")
        trainer = made(plans, CONFIGURATION, 0, description, torch.device("cpu"))
        trainer.disable_checkpointing = True
        trainer.run_training()
    record = TrainingRecord.read(Path(trainer.output_folder))
    assert record is not None
    measured = record.validations[-1].per_volume
    assert measured is not None
    return {"dice": measured.dice, "seconds": record.seconds}


def table(found: Mapping[Way, Sequence[Mapping[str, float]]], seeds: Sequence[int]) -> str:
    """Dice per seed and way, means, standard deviations and seconds as text."""
    lines = [f"{'seed':8}" + "".join(f"{way:>10}" for way in WAYS)]
    for index, seed in enumerate(seeds):
        lines.append(f"{seed:<8}" + "".join(f"{found[way][index]['dice']:10.4f}" for way in WAYS))
    dice = {way: [one["dice"] for one in found[way]] for way in WAYS}
    rows = {"mean": statistics.mean, "spread": spread}
    lines += [f"{name:8}" + "".join(f"{function(dice[way]):10.4f}" for way in WAYS) for name, function in rows.items()]
    seconds = (statistics.median(one["seconds"] for one in found[way]) for way in WAYS)
    return "\n".join([*lines, f"{'seconds':8}" + "".join(f"{value:10.0f}" for value in seconds)])


def spread(dice: Sequence[float]) -> float:
    """Between the best and the worst seed."""
    return max(dice) - min(dice)


def agree(found: Mapping[Way, Sequence[Mapping[str, float]]]) -> bool:
    """Whether the means of both ways lie as near as a way's seeds do."""
    fast, plain = ([one["dice"] for one in found[way]] for way in WAYS)
    return abs(statistics.mean(fast) - statistics.mean(plain)) <= max(spread(fast), spread(plain))


def main() -> int:
    """Train all, print the table, write the JSON file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=100, help="of each training (default: 100)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way (default: 3)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of each training (default: the cores)"
    )
    parser.add_argument("--small", action="store_true", help="one seed, 3 steps, no judgement")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="Dice and seconds of every training")
    parser.add_argument("--train", nargs=3, metavar=("WAY", "SEED", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        way, seed, folder = given.train
        with redirect_stdout(sys.stderr):
            result = train(way, int(seed), Path(folder))
        print(json.dumps(result))
        return 0
    iterations, seeds = (3, [0]) if given.small else (given.iterations, list(range(given.seeds)))
    os.environ |= {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    found: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="learning_") as name:
        with redirect_stdout(sys.stderr):
            prepare(Path(name), iterations)
        for seed in seeds:
            for way in WAYS:
                found[way].append(_in_a_process(way, seed, Path(name)))
                print(f"{way}, seed {seed}: Dice {found[way][-1]['dice']:.4f}", file=sys.stderr, flush=True)
    print(table(found, seeds))
    if given.output is not None:
        given.output.write_text(json.dumps({"iterations": iterations, "seeds": seeds, **found}, indent=1))
    if given.small:
        return 0
    print("as near as the seeds" if agree(found) else "further apart than the seeds")
    return int(not agree(found))


def _in_a_process(way: Way, seed: int, folder: Path) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    if way == "plain":
        environment |= dict.fromkeys(SWITCHES, "0")
    command = [sys.executable, "-m", "benchmarks.learning", "--train", way, str(seed), str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{way}, seed {seed} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
