"""Faults of a training, on small networks: `fm_trainer_stock` shares its loop with all others."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_fm.planfile.schema import STOCK_KEY, PlanError
from nnunet_fm.preprocessing.preprocessor import FMPreprocessor
from nnunet_fm.trainers.callbacks.fold_lock import FILE, FolderBusyError, training_in
from nnunet_fm.trainers.callbacks.nan_guard import BATCH_FILE, NotFiniteError
from nnunet_fm.trainers.loading import LoadingError
from nnunet_fm.trainers.stock import fm_trainer_stock
from nnunet_fm.weights.cache import MissingWeightsError
from nnunet_fm.weights.files import CheckpointError, WeightsFileError, read_trained
from tests.faults.planning import planned
from tests.faults.planning import train as build
from tests.faults.registry import Bench, Seen, change_json, cut_in_half, fault, seen_in
from tests.helpers.convert_tester import snapshot
from tests.helpers.tiny_models import write_model

STAGE = "Training"
CASES = [f"case_{i:02d}" for i in range(6)]


def prepare(
    at: Bench, *, epochs: int = 2, only_label: int | None = None, shape: tuple[int, ...] = (10, 12, 11)
) -> Path:
    """Six preprocessed cases and plans of epochs of two iterations; returns the folder of the cases."""
    write_model(at.root / "template")
    plans = json.loads((at.root / "template" / "plans.json").read_text())
    plans |= {"dataset_name": "Dataset501_Blobs", "plans_name": "Tiny"}
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= {"n_stages": 3, "features_per_stage": [4, 8, 8], "kernel_sizes": [[3] * 3] * 3,
                  "strides": [[1] * 3, [2] * 3, [2] * 3], "n_conv_per_stage": [1] * 3,
                  "n_conv_per_stage_decoder": [1] * 2}  # fmt: skip
    plans[STOCK_KEY] = {"iterations": 2 * epochs, "iterations_per_epoch": 2, "validation_iterations": 1}
    folder = at.preprocessed / "Dataset501_Blobs" / plans["configurations"]["3d_fullres"]["data_identifier"]
    folder.mkdir(parents=True)
    (folder.parent / "Tiny.json").write_text(json.dumps(plans))
    about = json.loads((at.root / "template" / "dataset.json").read_text())
    (folder.parent / "dataset.json").write_text(json.dumps(about | {"numTraining": len(CASES)}))
    (folder.parent / "dataset_fingerprint.json").write_text("{}")
    rng = np.random.default_rng(0)
    for case in CASES:
        labels = (
            rng.integers(0, 3, (1, *shape)).astype(np.int8) if only_label is None else np.zeros((1, *shape), np.int8)
        )
        if only_label is not None:
            labels[0, 1:3] = only_label
        places = {label: np.argwhere(labels == label) for label in (1, 2)}
        image = rng.normal(size=(1, *shape)).astype(np.float32)
        nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": places}, str(folder / case))
    return folder


def trainer(fold: int | str = 0, *, resume: bool = False) -> Any:
    """A trainer as nnU-Net's command builds it, of the data that `prepare` made."""
    folder = Path(os.environ["nnUNet_preprocessed"], "Dataset501_Blobs")
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("Tiny.json", "dataset.json"))
    made = fm_trainer_stock(plans | {"continue_training": resume}, "3d_fullres", fold, dataset, torch.device("cpu"))
    made.save_every = 1
    made.logger.plot_progress_png = lambda *_: None
    made.print_to_log_file = lambda *_, **__: None
    if resume:
        made.load_checkpoint(str(Path(made.output_folder, "checkpoint_latest.pth")))
    return made


def results(at: Bench) -> Path:
    return at.results / "Dataset501_Blobs" / "fm_trainer_stock__Tiny__3d_fullres" / "fold_0"


def finished(at: Bench) -> None:
    """Continue the training as ``--c`` does, to its end."""
    resumed = trainer(resume=True)
    resumed.run_training()
    assert resumed.iteration == resumed.budget.iterations
    assert read_trained(results(at) / "checkpoint_final.pth")["nnunet_fm"]["iteration"] == resumed.iteration


def after_one_epoch(at: Bench, break_: Any, kind: type[Exception], *, epochs: int = 3) -> Seen:
    """Train, and break something when the first epoch is over and its checkpoint written."""
    prepare(at, epochs=epochs)
    made = trainer()
    epoch_end = made.on_epoch_end

    def on_epoch_end() -> None:
        epoch_end()
        if made.current_epoch == 1:
            made.best_checkpoints.choose = lambda *_: []  # whether the second epoch is better is chance
            break_(made)

    made.on_epoch_end = on_epoch_end
    seen = at.raises(kind, made.run_training)
    assert read_trained(results(at) / "checkpoint_latest.pth")["current_epoch"] == 1
    return seen


# Numbers that are none


@fault(
    STAGE,
    "The loss becomes NaN in the second epoch.",
    happens="stopped before any checkpoint is written",
    keeps="the batch, in a file; the checkpoint of the epoch before, from which --c finishes the training",
    code="loss-not-finite",
)
def a_loss_that_is_nan(at: Bench) -> Seen:
    def nan(made: Any) -> None:
        loss = made.loss
        made.loss = lambda *inputs: loss(*inputs) * float("nan")

    seen = after_one_epoch(at, nan, NotFiniteError)
    saved = torch.load(results(at) / BATCH_FILE, weights_only=True)
    assert saved["iteration"] == 3 and saved["data"].shape == (2, 1, 8, 8, 8) and set(saved["cases"]) <= set(CASES)
    finished(at)
    return seen


@fault(
    STAGE,
    "The loss becomes infinite with fm_trainer, before the optimiser's step.",
    happens="stopped before the step",
    keeps="all weights; the batch, in a file",
    code="loss-not-finite",
    slow=True,
)
def a_loss_that_is_infinite(at: Bench) -> Seen:
    plans = planned(at)
    FMPreprocessor(verbose=False).run(501, "3d_fullres", plans["plans_name"], 1)
    made = build(at, plans)
    made.initialize()
    before = [p.detach().clone() for p in made.network.parameters()]
    made.batch_loss = lambda *_: torch.tensor(float("inf"), requires_grad=True)
    batch = {"data": torch.zeros(1, 1, 8, 8, 8), "target": torch.zeros(1, 1, 8, 8, 8), "keys": ["case_01"]}
    seen = at.raises(NotFiniteError, lambda: made.train_step(batch))
    assert all(map(torch.equal, before, made.network.parameters()))
    return seen


@fault(
    STAGE,
    "A gradient is NaN where the loss is not: the weights are spoilt after the last step of an epoch.",
    happens="stopped, nothing is written over a good file",
    keeps="the checkpoints of the epoch before",
    code="training-diverged",
)
def weights_that_are_nan(at: Bench) -> Seen:
    def spoil(made: Any) -> None:
        save = made.save_checkpoint

        def spoilt(filename: str) -> None:
            with torch.no_grad():
                next(made.network.parameters()).fill_(float("nan"))
            save(filename)

        made.save_checkpoint = spoilt

    seen = after_one_epoch(at, spoil, NotFiniteError)
    finished(at)
    return seen


# Two trainings


def hold(folder: Path, seconds: float) -> None:
    with training_in(folder):
        print("held", flush=True)
        time.sleep(seconds)


def two(at: Bench, run: Any) -> Seen:
    """Run something while another process trains in the same fold's folder."""
    results(at).mkdir(parents=True, exist_ok=True)
    process, output = at.start(hold, results(at), 60.0)
    try:
        while "held" not in output.read_text():
            assert process.is_alive()
            time.sleep(0.02)
        return at.raises(FolderBusyError, run)
    finally:
        process.kill()
        process.join()


@fault(
    STAGE,
    "A training is started in the folder of one that runs.",
    happens="the second is refused before anything is built",
    keeps="the first",
    code="fold-busy",
)
def two_trainings_in_one_folder(at: Bench) -> Seen:
    prepare(at)
    seen = two(at, lambda: trainer().initialize())
    assert re.search(rf"process \d+ on {socket.gethostname()}", seen.text)
    return seen


@fault(
    STAGE,
    "A training is continued (--c) that still runs.",
    happens="the second is refused",
    keeps="the first, and all checkpoints",
    code="fold-busy",
)
def continuing_what_still_runs(at: Bench) -> Seen:
    prepare(at)
    trainer().run_training()
    (results(at) / "checkpoint_final.pth").rename(results(at) / "checkpoint_latest.pth")
    before = snapshot(results(at))
    seen = two(at, lambda: trainer(resume=True))
    after = snapshot(results(at))
    assert all(after[name] == before[name] for name in before if name.endswith(".pth"))
    return seen


@fault(
    STAGE,
    "The process that held a folder's lock was killed (SIGKILL).",
    happens="the next training takes the folder at once: the system ends a lock with its process",
    keeps="the folder",
)
def the_lock_of_a_dead_process(at: Bench) -> None:
    prepare(at, epochs=1)
    two(at, lambda: trainer().initialize())
    assert json.loads((results(at) / FILE).read_text())["processes"][0][0] != os.getpid()
    trainer().run_training()


# Killed


def train_and_die(where: str) -> None:
    """Train, and be killed at a place of the second epoch."""
    made = trainer()
    step, fsync, kill = made.train_step, os.fsync, lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if where == "epoch":
        made.train_step = lambda batch: kill() if made.iteration == 3 else step(batch)
    elif where.startswith("checkpoint_"):
        save = made.save_checkpoint

        def save_checkpoint(filename: str) -> None:
            if made.current_epoch >= 1 and Path(filename).stem == where:
                os.fsync = kill  # half of it is written, and nothing renamed
            save(filename)

        made.save_checkpoint = save_checkpoint
        if where == "checkpoint_best":
            made.best_checkpoints.choose = lambda *_: ["checkpoint_best.pth"]
    made.run_training()
    os.fsync = fsync


def killed(at: Bench, where: str, **prepared: Any) -> None:
    prepare(at, **prepared)
    code, printed = at.process(train_and_die, where)
    assert code == -signal.SIGKILL, (code, printed)
    partial = results(at) / f"{where}.pth.partial"
    assert partial.is_file() == (where != "epoch")
    assert read_trained(results(at) / "checkpoint_latest.pth")["current_epoch"] == 1
    if where == "checkpoint_best":
        assert read_trained(results(at) / "checkpoint_best.pth")["current_epoch"] == 1
    finished(at)


@fault(
    STAGE,
    "A training is killed (SIGKILL) in an epoch.",
    happens="ends with the process",
    keeps="the checkpoints of the epoch before; --c finishes the training",
)
def killed_in_an_epoch(at: Bench) -> None:
    killed(at, "epoch")


@fault(
    STAGE,
    "A training is killed (SIGKILL) while checkpoint_latest is written.",
    happens="ends with the process",
    keeps="the former checkpoint_latest: the new one has another name until it is on the disk; --c finishes it",
)
def killed_while_the_latest_checkpoint_is_written(at: Bench) -> None:
    killed(at, "checkpoint_latest", epochs=3)


@fault(
    STAGE,
    "A training is killed (SIGKILL) while checkpoint_best is written.",
    happens="ends with the process",
    keeps="the checkpoints of the epoch before; --c finishes the training",
)
def killed_while_the_best_checkpoint_is_written(at: Bench) -> None:
    killed(at, "checkpoint_best")


@fault(
    STAGE,
    "A training is killed (SIGKILL) while checkpoint_final is written.",
    happens="ends with the process",
    keeps="the checkpoints of the epoch before; --c finishes the training",
)
def killed_while_the_final_checkpoint_is_written(at: Bench) -> None:
    killed(at, "checkpoint_final")


# The disk


@fault(
    STAGE,
    "The disk is full when a checkpoint is written.",
    happens="stopped",
    keeps="the checkpoints of the epoch before; no half-written file takes up the disk",
    code="checkpoint-not-written",
)
def a_full_disk_while_a_checkpoint_is_written(at: Bench) -> Seen:
    soft = at.limit()

    def fill(made: Any) -> None:
        save = made.save_checkpoint

        def save_checkpoint(filename: str) -> None:
            with at.full_disk(2000):
                save(filename)

        made.save_checkpoint = save_checkpoint

    seen = after_one_epoch(at, fill, CheckpointError)
    assert at.limit() == soft and not list(results(at).glob("*.partial"))
    finished(at)
    return seen


@fault(
    STAGE,
    "The results folder becomes read-only during a training.",
    happens="stopped",
    keeps="the checkpoints of the epoch before",
    code="checkpoint-not-written",
)
def read_only_results(at: Bench) -> Seen:
    def lock(made: Any) -> None:
        save = made.save_checkpoint

        def save_checkpoint(filename: str) -> None:
            with at.read_only(results(at)):
                save(filename)

        made.save_checkpoint = save_checkpoint

    seen = after_one_epoch(at, lock, CheckpointError)
    finished(at)
    return seen


# Data


def damaged(at: Bench, name: str, damage: Any) -> Seen:
    folder = prepare(at)
    for case in CASES:
        damage(folder / f"{case}{name}")
    seen = at.raises(LoadingError, lambda: trainer().run_training())
    return seen


@fault(
    STAGE,
    "Preprocessed images are cut off.",
    happens="stopped, with the file to delete and the command to run",
    keeps="all checkpoints",
    code="case-damaged",
)
def preprocessed_cases_cut_off(at: Bench) -> Seen:
    return damaged(at, ".b2nd", cut_in_half)


@fault(
    STAGE,
    "Preprocessed label maps hold garbage behind a good beginning.",
    happens="stopped, with the file to delete and the command to run",
    keeps="all checkpoints",
    code="case-damaged",
)
def preprocessed_labels_garbled(at: Bench) -> Seen:
    def garble(file: Path) -> None:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[: middle - 150] + b"\xff" * 300 + content[middle + 150 :])

    return damaged(at, "_seg.b2nd", garble)


@fault(
    STAGE,
    "Properties of preprocessed cases are empty files.",
    happens="stopped, with the file to delete and the command to run",
    keeps="all checkpoints",
    code="case-damaged",
)
def preprocessed_properties_empty(at: Bench) -> Seen:
    return damaged(at, ".pkl", lambda file: file.write_bytes(b""))


@fault(
    STAGE,
    "A preprocessed case was deleted that splits_final.json names.",
    happens="refused before the first iteration",
    keeps="all checkpoints",
    code="split-cases",
)
def a_preprocessed_case_that_vanished(at: Bench) -> Seen:
    folder = prepare(at)
    trainer().do_split()
    (folder / "case_02.b2nd").unlink()
    (folder / "case_02_seg.b2nd").unlink()
    seen = at.raises(PlanError, lambda: trainer().run_training())
    return seen


@fault(
    STAGE,
    "dataset.json says more training cases than were preprocessed.",
    happens="refused before the first iteration",
    keeps="data and plan",
    code="cases-number",
)
def fewer_cases_than_dataset_json_says(at: Bench) -> Seen:
    folder = prepare(at)
    change_json(folder.parent / "dataset.json", numTraining=7)
    seen = at.raises(PlanError, lambda: trainer().run_training())
    return seen


@fault(
    STAGE,
    "A label map has no image, and stock preprocessing has left it out.",
    happens="refused before anything is built",
    keeps="data and plan",
    code="images-missing",
)
def a_label_map_that_was_not_preprocessed(at: Bench) -> Seen:
    prepare(at)
    raw = at.dataset()
    (raw / "imagesTr" / "case_01_0000.nii.gz").unlink()
    seen = at.raises(PlanError, lambda: trainer().run_training())
    return seen


@fault(
    STAGE,
    "Plans are trained that were not preprocessed.",
    happens="refused before anything is built",
    keeps="data and plan",
    code="preprocessed-missing",
)
def plans_that_are_not_preprocessed(at: Bench) -> Seen:
    plans = planned(at)
    seen = at.raises(PlanError, lambda: build(at, plans).initialize())
    return seen


def workers(killed: bool) -> None:
    """Train with two loading processes, one of which the system kills as if memory ran out."""
    made = trainer()
    step = made.train_step

    def train_step(batch: Any) -> Any:
        if made.iteration == 1:
            pid = made.dataloader_train._processes[0].pid
            print("workers", *(p.pid for p in made.dataloader_train._processes), flush=True)
            os.kill(pid if killed else os.getpid(), signal.SIGKILL)
            time.sleep(0.5)
        return step(batch)

    made.train_step = train_step
    made.run_training()


@fault(
    STAGE,
    "The system kills a process that loads data, as it does when memory runs out.",
    happens="stopped within a second",
    keeps="checkpoints",
    code="process-killed",
    slow=True,
)
def a_loading_process_killed(at: Bench) -> Seen:
    prepare(at, epochs=200)
    code, printed = at.process(workers, True, nnUNet_n_proc_DA="2")
    # A thread of nnU-Net's loader may print its own end after it.
    last = [line for line in printed.splitlines() if line.startswith("Error: ")][-1:]
    assert code == 1 and last, printed
    seen = seen_in(last[0])
    assert "SIGKILL" in seen.text and "nnUNet_n_proc_DA=1" in seen.text, printed
    return seen


@fault(
    STAGE,
    "A training with loading processes is killed (SIGKILL).",
    happens="its loading processes end with it",
    keeps="memory: nnU-Net's own would wait for ever",
    slow=True,
)
def loading_processes_of_a_killed_training(at: Bench) -> None:
    prepare(at, epochs=200)
    code, printed = at.process(workers, False, nnUNet_n_proc_DA="2")
    assert code == -signal.SIGKILL, printed
    line = next(line for line in printed.splitlines() if line.startswith("workers"))
    end = time.monotonic() + 10
    while any(alive(int(pid)) for pid in line.split()[1:]):
        assert time.monotonic() < end, "a loading process lives on"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@fault(
    STAGE,
    "One of two classes is in no training case.",
    happens="trained; patches are drawn from the classes that are there",
    keeps="all",
)
def a_class_missing_in_training(at: Bench) -> None:
    prepare(at, only_label=1, epochs=1)
    trainer().run_training()


@fault(STAGE, "All training images are smaller than the patch.", happens="trained; patches are padded", keeps="all")
def training_images_smaller_than_the_patch(at: Bench) -> None:
    prepare(at, shape=(3, 5, 4), epochs=1)
    trainer().run_training()


@fault(STAGE, "Training images are one slice.", happens="trained; patches are padded", keeps="all")
def training_images_of_one_slice(at: Bench) -> None:
    prepare(at, shape=(1, 12, 12), epochs=1)
    trainer().run_training()


def split(at: Bench, content: str) -> Seen:
    folder = prepare(at)
    (folder.parent / "splits_final.json").write_text(content)
    seen = at.raises(PlanError, lambda: trainer().run_training())
    assert not list(results(at).glob("*.pth"))
    return seen


@fault(
    STAGE,
    "splits_final.json is cut off.",
    happens="refused before the first iteration",
    keeps="all files",
    code="split-unreadable",
)
def half_a_split(at: Bench) -> Seen:
    return split(at, json.dumps([{"train": CASES[:4], "val": CASES[4:]}])[:40])


@fault(
    STAGE,
    "splits_final.json names cases that are not there.",
    happens="refused before the first iteration",
    keeps="all files",
    code="split-cases",
)
def a_split_of_other_cases(at: Bench) -> Seen:
    return split(at, json.dumps([{"train": [*CASES[:4], "case_77"], "val": CASES[4:]}]))


@fault(
    STAGE,
    "A fold of splits_final.json has no validation cases.",
    happens="refused before the first iteration",
    keeps="all files",
    code="fold-empty",
)
def a_fold_without_validation_cases(at: Bench) -> Seen:
    return split(at, json.dumps([{"train": CASES, "val": []}]))


@fault(
    STAGE,
    "splits_final.json holds no list of folds.",
    happens="refused before the first iteration",
    keeps="all files",
    code="split-form",
)
def a_split_of_another_form(at: Bench) -> Seen:
    return split(at, json.dumps({"train": CASES[:4], "val": CASES[4:]}))


@fault(
    STAGE,
    "splits_final.json does not have the fold.",
    happens="trained on a random 80:20 split, as nnU-Net does, which says so",
    keeps="all files",
    says="I am now creating a random (but seeded) 80:20 split!",
)
def a_fold_that_the_split_does_not_have(at: Bench) -> Seen:
    folder = prepare(at, epochs=1)
    (folder.parent / "splits_final.json").write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}]))
    made, said = trainer(3), []
    made.print_to_log_file = lambda *words, **_: said.append(" ".join(map(str, words)))
    made.run_training()
    return seen_in(next(line for line in said if "random" in line))


# Checkpoints and weights


@fault(
    STAGE,
    "A training is continued from a checkpoint that is cut off.",
    happens="refused",
    keeps="all files",
    code="weights-cut-off",
)
def continuing_from_half_a_checkpoint(at: Bench) -> Seen:
    prepare(at, epochs=1)
    trainer().run_training()
    (results(at) / "checkpoint_final.pth").rename(results(at) / "checkpoint_latest.pth")
    cut_in_half(results(at) / "checkpoint_latest.pth")
    seen = at.raises(WeightsFileError, lambda: trainer(resume=True))
    return seen


@fault(
    STAGE,
    "A training is continued from a checkpoint of a network of another size.",
    happens="refused",
    keeps="all files",
    code="weights-mismatch",
)
def continuing_with_another_network(at: Bench) -> Seen:
    folder = prepare(at, epochs=1)
    trainer().run_training()
    (results(at) / "checkpoint_final.pth").rename(results(at) / "checkpoint_latest.pth")
    plans = json.loads((folder.parent / "Tiny.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (folder.parent / "Tiny.json").write_text(json.dumps(plans))
    seen = at.raises(WeightsFileError, lambda: trainer(resume=True))
    return seen


@fault(
    STAGE,
    "The official weights of the plan are not at hand.",
    happens="refused before anything is built",
    keeps="data and plan",
    code="weights-missing",
)
def official_weights_that_are_missing(at: Bench) -> Seen:
    plans = planned(at)
    seen = at.raises(MissingWeightsError, lambda: build(at, plans, name="fm_trainer").initialize())
    return seen
