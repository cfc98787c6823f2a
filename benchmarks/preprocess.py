"""``nnUNetv2_preprocess`` of CT volumes: our preprocessor and resamplers against stock's, all else being equal."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

from benchmarks import dataset
from benchmarks.harness import Benchmark, Goal, Side
from benchmarks.measure import Measurement, run_command

PLANS = {"ours": "FMPlans_ours", "opponent": "FMPlans_stock"}
PLANNER = "FMPlanner_stunet_s_nnunet"
CONFIGURATION = "3d_fullres"


def prepare(folder: Path, small: bool) -> None:
    """Three cases of 0.8 × 0.8 × 1 mm and two plans for 1.5 × 1.5 × 2 mm, one with stock names only."""
    dataset.write_dataset(folder, [(40, 60, 56) if small else (300, 512, 512)] * 3, (1.0, 0.8, 0.8))
    for side, name in PLANS.items():
        dataset.plan(name, PLANNER, spacing=[2.0, 1.5, 1.5], patch=[64, 96, 96], portable=side == "opponent")


def run(side: Side, folder: Path, small: bool) -> Measurement:
    """The command, two processes at work."""
    shutil.rmtree(_output(folder, side), ignore_errors=True)
    dataset.use(folder)
    command = ["nnUNetv2_preprocess", "-d", str(dataset.NUMBER), "-plans_name", PLANS[side], "-c", CONFIGURATION]
    return run_command([*command, "-np", "2"])


def compare(folder: Path, small: bool) -> dict[str, float]:
    """What differs between both folders."""
    import blosc2
    import numpy as np

    ours, theirs = _output(folder, "ours"), _output(folder, "opponent")
    names = sorted(path.stem for path in theirs.glob("*.pkl"))
    assert names == sorted(path.stem for path in ours.glob("*.pkl"))
    image = labels = properties = 0.0
    for name in names:
        arrays = [blosc2.open(str(side / f"{name}.b2nd"))[:] for side in (ours, theirs)]
        image = max(image, float(np.abs(arrays[0] - arrays[1]).max() / arrays[1].std()))
        maps = [blosc2.open(str(side / f"{name}_seg.b2nd"))[:] for side in (ours, theirs)]
        labels += int((maps[0] != maps[1]).sum())
        kept = [pickle.loads((side / f"{name}.pkl").read_bytes()) for side in (ours, theirs)]
        locations = [side.pop("class_locations") for side in kept]
        same = locations[0].keys() == locations[1].keys() and all(
            np.array_equal(locations[0][label], locations[1][label]) for label in locations[1]
        )
        properties += kept[0] != kept[1] or not same
    return {
        "largest difference of images, in standard deviations": image,
        "voxels of label maps that differ": labels,
        "cases whose properties or class locations differ": properties,
    }


def _output(folder: Path, side: Side) -> Path:
    base = folder / "nnUNet_preprocessed" / dataset.NAME
    plans = json.loads((base / f"{PLANS[side]}.json").read_text(encoding="utf-8"))
    return base / plans["configurations"][CONFIGURATION]["data_identifier"]


BENCHMARKS = (
    Benchmark(
        "preprocess", "nnUNetv2_preprocess of three CT, 300 × 512 × 512, 24 labels", run, prepare, compare,
        {"wall": Goal(3, 5), "memory": Goal(1, 2)},
    ),
)  # fmt: skip
