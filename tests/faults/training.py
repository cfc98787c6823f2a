"""Faults of a training, on small networks: `fm_trainer_stock` shares its loop with all others."""

from __future__ import annotations

import json
import os
import signal
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
from tests.faults.registry import Bench, Outcome, change_json, cut_in_half, fault
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


def after_one_epoch(at: Bench, break_: Any, kind: type[Exception], *, epochs: int = 3) -> tuple[str, Any]:
    """Train, break something when the first epoch is over and its checkpoint written; the message, and the trainer."""
    prepare(at, epochs=epochs)
    made = trainer()
    epoch_end = made.on_epoch_end

    def on_epoch_end() -> None:
        epoch_end()
        if made.current_epoch == 1:
            made.best_checkpoints.choose = lambda *_: []  # whether the second epoch is better is chance
            break_(made)

    made.on_epoch_end = on_epoch_end
    message = at.raises(kind, made.run_training)
    assert read_trained(results(at) / "checkpoint_latest.pth")["current_epoch"] == 1
    return message, made


# Numbers that are none


@fault(STAGE, "The loss becomes NaN in the second epoch.")
def a_loss_that_is_nan(at: Bench) -> Outcome:
    def nan(made: Any) -> None:
        loss = made.loss
        made.loss = lambda *inputs: loss(*inputs) * float("nan")

    message, _ = after_one_epoch(at, nan, NotFiniteError)
    saved = torch.load(results(at) / BATCH_FILE, weights_only=True)
    assert saved["iteration"] == 3 and saved["data"].shape == (2, 1, 8, 8, 8) and set(saved["cases"]) <= set(CASES)
    finished(at)
    kept = "the batch, in a file; the checkpoint of the epoch before, from which --c finishes the training"
    return Outcome("stopped before any checkpoint is written", kept, named(message))


@fault(STAGE, "The loss becomes infinite with fm_trainer, before the optimiser's step.", slow=True)
def a_loss_that_is_infinite(at: Bench) -> Outcome:
    plans = planned(at)
    FMPreprocessor(verbose=False).run(501, "3d_fullres", plans["plans_name"], 1)
    made = build(at, plans)
    made.initialize()
    before = [p.detach().clone() for p in made.network.parameters()]
    made.batch_loss = lambda *_: torch.tensor(float("inf"), requires_grad=True)
    batch = {"data": torch.zeros(1, 1, 8, 8, 8), "target": torch.zeros(1, 1, 8, 8, 8), "keys": ["case_01"]}
    message = at.raises(NotFiniteError, lambda: made.train_step(batch))
    assert all(map(torch.equal, before, made.network.parameters()))
    return Outcome("stopped before the step", "all weights; the batch, in a file", message)


@fault(STAGE, "A gradient is NaN where the loss is not: the weights are spoilt after the last step of an epoch.")
def weights_that_are_nan(at: Bench) -> Outcome:
    def spoil(made: Any) -> None:
        save = made.save_checkpoint

        def spoilt(filename: str) -> None:
            with torch.no_grad():
                next(made.network.parameters()).fill_(float("nan"))
            save(filename)

        made.save_checkpoint = spoilt

    message, _ = after_one_epoch(at, spoil, NotFiniteError)
    finished(at)
    return Outcome("stopped, nothing is written over a good file", "the checkpoints of the epoch before", message)


def named(message: str) -> str:
    """Which cases were drawn, and in which order, is chance."""
    for case in CASES:
        message = message.replace(case, "case")
    return message.replace("case, case", "case …")


# Two trainings


def hold(folder: Path, seconds: float) -> None:
    with training_in(folder):
        print("held", flush=True)
        time.sleep(seconds)


def two(at: Bench, run: Any) -> str:
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


@fault(STAGE, "A training is started in the folder of one that runs.")
def two_trainings_in_one_folder(at: Bench) -> Outcome:
    prepare(at)
    message = two(at, lambda: trainer().initialize())
    assert "process N on HOST" in message
    return Outcome("the second is refused before anything is built", "the first", message)


@fault(STAGE, "A training is continued (--c) that still runs.")
def continuing_what_still_runs(at: Bench) -> Outcome:
    prepare(at)
    trainer().run_training()
    (results(at) / "checkpoint_final.pth").rename(results(at) / "checkpoint_latest.pth")
    before = snapshot(results(at))
    message = two(at, lambda: trainer(resume=True))
    after = snapshot(results(at))
    assert all(after[name] == before[name] for name in before if name.endswith(".pth"))
    return Outcome("the second is refused", "the first, and all checkpoints", message)


@fault(STAGE, "The process that held a folder's lock was killed (SIGKILL).")
def the_lock_of_a_dead_process(at: Bench) -> Outcome:
    prepare(at, epochs=1)
    two(at, lambda: trainer().initialize())
    assert json.loads((results(at) / FILE).read_text())["processes"][0][0] != os.getpid()
    trainer().run_training()
    return Outcome("the next training takes the folder at once: the system ends a lock with its process", "the folder")


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


def killed(at: Bench, where: str, kept: str = "the checkpoints of the epoch before", **prepared: Any) -> Outcome:
    prepare(at, **prepared)
    code, printed = at.process(train_and_die, where)
    assert code == -signal.SIGKILL, (code, printed)
    partial = results(at) / f"{where}.pth.partial"
    assert partial.is_file() == (where != "epoch")
    assert read_trained(results(at) / "checkpoint_latest.pth")["current_epoch"] == 1
    if where == "checkpoint_best":
        assert read_trained(results(at) / "checkpoint_best.pth")["current_epoch"] == 1
    finished(at)
    return Outcome("ends with the process", f"{kept}; --c finishes the training")


@fault(STAGE, "A training is killed (SIGKILL) in an epoch.")
def killed_in_an_epoch(at: Bench) -> Outcome:
    return killed(at, "epoch")


@fault(STAGE, "A training is killed (SIGKILL) while checkpoint_latest is written.")
def killed_while_the_latest_checkpoint_is_written(at: Bench) -> Outcome:
    kept = "the former checkpoint_latest: the new one has another name until it is on the disk"
    return killed(at, "checkpoint_latest", kept, epochs=3)


@fault(STAGE, "A training is killed (SIGKILL) while checkpoint_best is written.")
def killed_while_the_best_checkpoint_is_written(at: Bench) -> Outcome:
    return killed(at, "checkpoint_best")


@fault(STAGE, "A training is killed (SIGKILL) while checkpoint_final is written.")
def killed_while_the_final_checkpoint_is_written(at: Bench) -> Outcome:
    return killed(at, "checkpoint_final")


# The disk


@fault(STAGE, "The disk is full when a checkpoint is written.")
def a_full_disk_while_a_checkpoint_is_written(at: Bench) -> Outcome:
    soft = at.limit()

    def fill(made: Any) -> None:
        save = made.save_checkpoint

        def save_checkpoint(filename: str) -> None:
            with at.full_disk(2000):
                save(filename)

        made.save_checkpoint = save_checkpoint

    message, _ = after_one_epoch(at, fill, CheckpointError)
    assert at.limit() == soft and not list(results(at).glob("*.partial"))
    finished(at)
    return Outcome("stopped", "the checkpoints of the epoch before; no half-written file takes up the disk", message)


@fault(STAGE, "The results folder becomes read-only during a training.")
def read_only_results(at: Bench) -> Outcome:
    def lock(made: Any) -> None:
        save = made.save_checkpoint

        def save_checkpoint(filename: str) -> None:
            with at.read_only(results(at)):
                save(filename)

        made.save_checkpoint = save_checkpoint

    message, _ = after_one_epoch(at, lock, CheckpointError)
    finished(at)
    return Outcome("stopped", "the checkpoints of the epoch before", message)


# Data


def damaged(at: Bench, name: str, damage: Any) -> Outcome:
    folder = prepare(at)
    for case in CASES:
        damage(folder / f"{case}{name}")
    message = at.raises(LoadingError, lambda: trainer().run_training())
    return Outcome("stopped, with the file to delete and the command to run", "all checkpoints", named(message))


@fault(STAGE, "Preprocessed images are cut off.")
def preprocessed_cases_cut_off(at: Bench) -> Outcome:
    return damaged(at, ".b2nd", cut_in_half)


@fault(STAGE, "Preprocessed label maps hold garbage behind a good beginning.")
def preprocessed_labels_garbled(at: Bench) -> Outcome:
    def garble(file: Path) -> None:
        content = file.read_bytes()
        middle = len(content) // 2
        file.write_bytes(content[: middle - 150] + b"\xff" * 300 + content[middle + 150 :])

    return damaged(at, "_seg.b2nd", garble)


@fault(STAGE, "Properties of preprocessed cases are empty files.")
def preprocessed_properties_empty(at: Bench) -> Outcome:
    return damaged(at, ".pkl", lambda file: file.write_bytes(b""))


@fault(STAGE, "A preprocessed case was deleted that splits_final.json names.")
def a_preprocessed_case_that_vanished(at: Bench) -> Outcome:
    folder = prepare(at)
    trainer().do_split()
    (folder / "case_02.b2nd").unlink()
    (folder / "case_02_seg.b2nd").unlink()
    message = at.raises(PlanError, lambda: trainer().run_training())
    return Outcome("refused before the first iteration", "all checkpoints", message)


@fault(STAGE, "dataset.json says more training cases than were preprocessed.")
def fewer_cases_than_dataset_json_says(at: Bench) -> Outcome:
    folder = prepare(at)
    change_json(folder.parent / "dataset.json", numTraining=7)
    message = at.raises(PlanError, lambda: trainer().run_training())
    return Outcome("refused before the first iteration", "data and plan", message)


@fault(STAGE, "A label map has no image, and stock preprocessing has left it out.")
def a_label_map_that_was_not_preprocessed(at: Bench) -> Outcome:
    prepare(at)
    raw = at.dataset()
    (raw / "imagesTr" / "case_01_0000.nii.gz").unlink()
    message = at.raises(PlanError, lambda: trainer().run_training())
    return Outcome("refused before anything is built", "data and plan", message)


@fault(STAGE, "Plans are trained that were not preprocessed.")
def plans_that_are_not_preprocessed(at: Bench) -> Outcome:
    plans = planned(at)
    message = at.raises(PlanError, lambda: build(at, plans).initialize())
    return Outcome("refused before anything is built", "data and plan", message)


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


@fault(STAGE, "The system kills a process that loads data, as it does when memory runs out.", slow=True)
def a_loading_process_killed(at: Bench) -> Outcome:
    prepare(at, epochs=200)
    code, printed = at.process(workers, True, nnUNet_n_proc_DA="2")
    # A thread of nnU-Net's loader may print its own end after it.
    last = [line for line in printed.splitlines() if line.startswith("Error: ")][-1:]
    assert code == 1 and last, printed
    message = at.shown(last[0].removeprefix("Error: "))
    assert "SIGKILL" in message and "nnUNet_n_proc_DA=1" in message, printed
    return Outcome("stopped within a second", "checkpoints", named(message))


@fault(STAGE, "A training with loading processes is killed (SIGKILL).", slow=True)
def loading_processes_of_a_killed_training(at: Bench) -> Outcome:
    prepare(at, epochs=200)
    code, printed = at.process(workers, False, nnUNet_n_proc_DA="2")
    assert code == -signal.SIGKILL, printed
    line = next(line for line in printed.splitlines() if line.startswith("workers"))
    end = time.monotonic() + 10
    while any(alive(int(pid)) for pid in line.split()[1:]):
        assert time.monotonic() < end, "a loading process lives on"
        time.sleep(0.05)
    return Outcome("its loading processes end with it", "memory: nnU-Net's own would wait for ever")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@fault(STAGE, "One of two classes is in no training case.")
def a_class_missing_in_training(at: Bench) -> Outcome:
    prepare(at, only_label=1, epochs=1)
    trainer().run_training()
    return Outcome("trained; patches are drawn from the classes that are there", "all")


@fault(STAGE, "All training images are smaller than the patch.")
def training_images_smaller_than_the_patch(at: Bench) -> Outcome:
    prepare(at, shape=(3, 5, 4), epochs=1)
    trainer().run_training()
    return Outcome("trained; patches are padded", "all")


@fault(STAGE, "Training images are one slice.")
def training_images_of_one_slice(at: Bench) -> Outcome:
    prepare(at, shape=(1, 12, 12), epochs=1)
    trainer().run_training()
    return Outcome("trained; patches are padded", "all")


def split(at: Bench, content: str) -> Outcome:
    folder = prepare(at)
    (folder.parent / "splits_final.json").write_text(content)
    message = at.raises(PlanError, lambda: trainer().run_training())
    assert not list(results(at).glob("*.pth"))
    return Outcome("refused before the first iteration", "all files", message)


@fault(STAGE, "splits_final.json is cut off.")
def half_a_split(at: Bench) -> Outcome:
    return split(at, json.dumps([{"train": CASES[:4], "val": CASES[4:]}])[:40])


@fault(STAGE, "splits_final.json names cases that are not there.")
def a_split_of_other_cases(at: Bench) -> Outcome:
    return split(at, json.dumps([{"train": [*CASES[:4], "case_77"], "val": CASES[4:]}]))


@fault(STAGE, "A fold of splits_final.json has no validation cases.")
def a_fold_without_validation_cases(at: Bench) -> Outcome:
    return split(at, json.dumps([{"train": CASES, "val": []}]))


@fault(STAGE, "splits_final.json holds no list of folds.")
def a_split_of_another_form(at: Bench) -> Outcome:
    return split(at, json.dumps({"train": CASES[:4], "val": CASES[4:]}))


@fault(STAGE, "splits_final.json does not have the fold.")
def a_fold_that_the_split_does_not_have(at: Bench) -> Outcome:
    folder = prepare(at, epochs=1)
    (folder.parent / "splits_final.json").write_text(json.dumps([{"train": CASES[:4], "val": CASES[4:]}]))
    made, said = trainer(3), []
    made.print_to_log_file = lambda *words, **_: said.append(" ".join(map(str, words)))
    made.run_training()
    message = next(line for line in said if "random" in line)
    return Outcome("trained on a random 80:20 split, as nnU-Net does, which says so", "all files", at.shown(message))


# Checkpoints and weights


@fault(STAGE, "A training is continued from a checkpoint that is cut off.")
def continuing_from_half_a_checkpoint(at: Bench) -> Outcome:
    prepare(at, epochs=1)
    trainer().run_training()
    (results(at) / "checkpoint_final.pth").rename(results(at) / "checkpoint_latest.pth")
    cut_in_half(results(at) / "checkpoint_latest.pth")
    message = at.raises(WeightsFileError, lambda: trainer(resume=True))
    return Outcome("refused", "all files", message)


@fault(STAGE, "A training is continued from a checkpoint of a network of another size.")
def continuing_with_another_network(at: Bench) -> Outcome:
    folder = prepare(at, epochs=1)
    trainer().run_training()
    (results(at) / "checkpoint_final.pth").rename(results(at) / "checkpoint_latest.pth")
    plans = json.loads((folder.parent / "Tiny.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (folder.parent / "Tiny.json").write_text(json.dumps(plans))
    message = at.raises(WeightsFileError, lambda: trainer(resume=True))
    return Outcome("refused", "all files", message)


@fault(STAGE, "The official weights of the plan are not at hand.")
def official_weights_that_are_missing(at: Bench) -> Outcome:
    plans = planned(at)
    message = at.raises(MissingWeightsError, lambda: build(at, plans, name="fm_trainer").initialize())
    return Outcome("refused before anything is built", "data and plan", message)
