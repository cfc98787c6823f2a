"""A trainer's class by its name, as ``nnUNetv2_train`` asks for it: ours by the hook, stock's by nnU-Net's search."""

from __future__ import annotations

from pathlib import Path

from benchmarks import dataset
from benchmarks.harness import Benchmark, Goal, Side
from benchmarks.measure import Measurement, measure

NAMES: dict[Side, str] = {"ours": "fm_trainer_stunet_b", "opponent": "nnUNetTrainerNoMirroring"}
"""Stock's stands in the third folder of variants that nnU-Net imports one by one until it has found a name."""


def run(side: Side, folder: Path, small: bool) -> Measurement:
    """Once, in a process that has imported what the command has imported by then."""
    dataset.use(folder)
    from nnunetv2.run import run_training  # noqa: F401
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_fm.hook import install

    install()

    def look_up() -> None:
        assert recursive_find_trainer_class_by_name(NAMES[side]).__name__ == NAMES[side]

    return measure(look_up, repeats=1, warm_up=0)


BENCHMARKS = (
    Benchmark("trainer-lookup", "trainer found by its name", run, goals={"wall": Goal(2, 5)}),
)  # fmt: skip
