"""Hundreds of predictions and of epochs in one process: neither memory, nor open files, nor processes grow."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

import nnunet_fm.trainers
from nnunet_fm.inference.predict import predict_folder
from nnunet_fm.inference.predictor import load_predictor
from nnunet_fm.plans.planner import Options, planner_class
from tests.helpers.datasets import training_folders, write_dataset, write_fingerprint
from tests.helpers.tiny_models import write_model

CPU = torch.device("cpu")
MB = 2**20
EVERY = 5
"""Steps between two looks: collecting what Python has let go takes longer than an epoch."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what a process holds"),
]


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("long")
    with training_folders(root):
        yield root


def held() -> tuple[float, int, int]:
    """Resident memory of this process in MB, its open files and its children."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") / MB, len(os.listdir("/proc/self/fd")), len(children)


def growth(series: list[tuple[float, int, int]]) -> tuple[float, int, int]:
    """Growth over a series of what was `held`: of memory in MB, of files and of children.

    Memory is that of a line through the quarters' medians, which single steps do not move.
    """
    memory, files, children = (list(column) for column in zip(*series, strict=True))
    quarters = [float(np.median(part)) for part in np.array_split(memory, 4)]
    rise = float(np.polyfit(range(4), quarters, 1)[0]) * 4
    grown = rise, max(files[-10:]) - min(files[:10]), max(children[-10:]) - min(children[:10])
    print(f"{len(series)} looks: {grown[0]:+.1f} MB, {grown[1]:+d} files, {grown[2]:+d} processes")
    return grown


def repeated(step: Callable[[], None], times: int, warm_up: int) -> list[tuple[float, int, int]]:
    """What is `held` every few of so many steps, the first ones left out."""
    for _ in range(warm_up):
        step()
    series = []
    for number in range(times):
        step()
        if number % EVERY == 0:
            series.append(held())
    return series


def test_three_hundred_predictions(folders: Path) -> None:
    """Each as ``nnunet-fm predict`` makes it: model loaded, image read, label map and times written."""
    model = write_model(folders / "model")
    raw = write_dataset(folders / "raw", 695, shape=(12, 12, 12), cases=0, test_cases=1)
    number = iter(range(1000))

    def predict() -> None:
        output = folders / "out" / f"{next(number) % 3}"
        predict_folder(
            model, raw / "imagesTs", output, folds=(0,), device=CPU, processes_preprocessing=0, processes_export=0
        )
        assert len(list(output.glob("*.nii.gz"))) == 1

    memory, files, children = growth(repeated(predict, times=300, warm_up=30))
    assert memory < 20 and files <= 0 and children <= 0


def test_predictions_by_one_loaded_model_and_with_worker_processes(folders: Path) -> None:
    model = write_model(folders / "kept")
    raw = write_dataset(folders / "raw", 696, shape=(12, 12, 12), cases=0, test_cases=2)
    predictor = load_predictor(model, (0,), device=CPU)
    images = [[str(file)] for file in sorted((raw / "imagesTs").glob("*.nii.gz"))]
    outputs = [str(folders / "kept_out" / f"case_{number}") for number in range(len(images))]
    Path(outputs[0]).parent.mkdir()

    def predict(processes: int) -> None:
        predictor.predict_from_files(
            images, outputs, num_processes_preprocessing=processes, num_processes_segmentation_export=processes
        )

    memory, files, children = growth(repeated(lambda: predict(0), times=40, warm_up=10))
    assert memory < 20 and files <= 0 and children <= 0
    predict(1)
    before = held()
    predict(1)
    after = held()
    assert after[1] <= before[1] and after[2] <= before[2], "worker processes leave nothing"


def test_two_hundred_epochs(folders: Path) -> None:
    number, shape = 697, (4, 12, 12)
    raw = write_dataset(os.environ["nnUNet_raw"], number, shape=shape, cases=5, test_cases=0)
    write_fingerprint(raw, [shape] * 5, [(2.0, 1.0, 1.0)] * 5)
    recipe = {"iterations_per_epoch": 1, "validation_iterations": 1, "volume_dice_every": 20, "save_every": 10}
    options = Options(
        iterations=220, recipe=recipe, network={"channels": [4, 4, 4, 4, 4], "image_size": 32}, force=True
    )
    plans = planner_class("FMPlanner_vanilla_unet2d")(number, 40, options=options).plan_experiment()
    preprocess_dataset(number, plans["plans_name"], ["2d"], [1], show_progress_bar=False)
    raw_json = json.loads((raw / "dataset.json").read_text())
    trainer = nnunet_fm.trainers.fm_trainer(plans, "2d", 0, raw_json, CPU)

    series: list[tuple[float, int, int]] = []
    epoch_end = trainer.on_epoch_end

    def on_epoch_end() -> None:
        epoch_end()
        if trainer.current_epoch > 20 and trainer.current_epoch % EVERY == 0:
            series.append(held())

    trainer.on_epoch_end = on_epoch_end
    trainer.run_training()
    assert len(series) == 200 // EVERY
    memory, files, children = growth(series)
    assert memory < 20 and files <= 0 and children <= 0
