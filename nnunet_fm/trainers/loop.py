"""What all trainers of this package share: an exact budget, a seed, few-shot cases, exact continuation, a record."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import IO, Any, cast
from unittest import mock

import torch
import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_fm.cpu.devices import DeviceError, device_fault
from nnunet_fm.cpu.limits import shared_memory_fault, threads
from nnunet_fm.data.folds import first_cases
from nnunet_fm.io.dataset_json import canonical, fault_of_numbers
from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.io.messages import listed
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.pairs import check_count, check_images
from nnunet_fm.preprocessing.shared_cache import NOT_WRITABLE, label_settings, lease, read_stamp
from nnunet_fm.records.training import End, Overlap
from nnunet_fm.trainers.budget import Budget, Stopwatch, epochs_without_best, is_best
from nnunet_fm.trainers.finite import LEFT_OUT, check_weights, stop
from nnunet_fm.trainers.fold_lock import check_free, training_in
from nnunet_fm.trainers.loading import ProcessLoader, ThisProcessLoader, end_loaders, loading_processes
from nnunet_fm.trainers.random_state import random_state, seed_everything, set_random_state
from nnunet_fm.trainers.recorder import Recorder
from nnunet_fm.trainers.split import check_split
from nnunet_fm.trainers.tensorboard import TensorBoardLogger, tensorboard_enabled
from nnunet_fm.weights.files import data_only, misfit, read_trained, write_checkpoint

CHECKPOINT_KEY = "nnunet_fm"


class BudgetTrainer(nnUNetTrainer):
    """nnU-Net's trainer on a `Budget`; a subclass calls `set_budget` in its constructor."""

    loss: Any
    _best_ema: float | None
    model_name: str | None = None
    """Model that the record names; None for stock nnU-Net."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        if reason := device_fault(device):  # refused before nnU-Net creates folders and logs
            raise DeviceError(reason)
        with_tensorboard = tensorboard_enabled()
        plans.setdefault("continue_training", False)
        dataset_json = canonical(dataset_json)
        if reason := fault_of_numbers(dataset_json):
            raise PlanError(f"dataset.json of {plans['dataset_name']}: {reason}")
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and device.type == "cpu":  # nnU-Net takes several processes for as many GPUs
            self.device, self.grad_scaler = device, None
        self.tensorboard: TensorBoardLogger | None = None
        if with_tensorboard and self.local_rank == 0:
            self.tensorboard = TensorBoardLogger(Path(self.output_folder))
            self.logger.loggers.append(self.tensorboard)
        self.recorder = Recorder(self)
        self.iteration = 0
        """Optimiser steps taken so far."""
        self._stopwatch = Stopwatch()
        self._agreed_seconds = 0.0
        """`seconds_spent` as `progress` counts it: the same in every process of a training."""
        self._epochs_without_best = 0
        self._restored_random_state: dict[str, Any] | None = None
        self._restoring = False
        self._split: tuple[list[str], list[str]] | None = None
        self._split_of_checkpoint: tuple[list[str], list[str]] | None = None
        self.source_cases: dict[str, list[str]] = {}
        """Dataset -> cases of it that the model which this training starts from was trained on."""
        self._lease: IO[str] | None = None
        self._not_finite = 0
        """Steps in a row whose loss was no number."""

    def set_budget(self, budget: Budget) -> None:
        """Set what nnU-Net's loop reads."""
        self.budget = budget
        self.num_iterations_per_epoch = budget.iterations_of_epoch(0)
        self.num_val_iterations_per_epoch = budget.validation_iterations
        self.num_epochs = budget.epochs
        self.save_every = budget.save_every

    @property
    def bare_network(self) -> nn.Module:
        """The network without DDP and compile wrappers."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return cast(nn.Module, getattr(module, "_orig_mod", module))

    def initialize(self) -> None:
        """As nnU-Net's, from the seed.

        Raises:
            FolderBusyError: if another process trains in the fold's folder, before anything is built.
            PlanError: for a batch that several processes cannot share, and for preprocessed data that are missing, of
                other labels or of fewer cases than ``numTraining``, likewise.
        """
        if self.local_rank == 0:
            check_free(Path(self.output_folder))
        if fault := shared_memory_fault():  # which nnU-Net's validation needs in any case
            raise PlanError(fault)
        self._check_shares()
        if not Path(self.preprocessed_dataset_folder).is_dir():
            raise PlanError(
                f"plans '{self.plans_manager.plans_name}' are not preprocessed, {self.preprocessed_dataset_folder} is "
                f"not there: run `{self._preprocess_again}`"
            )
        written = read_stamp(Path(self.preprocessed_dataset_folder)).get("labels")
        if written is not None and written != label_settings(self.dataset_json):
            raise PlanError(
                f"the labels of dataset.json have changed since {self.preprocessed_dataset_folder} was preprocessed: "
                f"run `{self._preprocess_again}`"
            )
        if not self._restoring:
            self._check_raw_images()
        if (budget := self.budget_of_fold()) != self.budget:
            self.set_budget(budget)
        seed_everything(self.budget.seed + self.local_rank)
        if self.device.type == "cpu":  # nnU-Net takes a thread for each core of the machine
            torch.set_num_threads(min(torch.get_num_threads(), threads()))
        super().initialize()

    def _check_raw_images(self) -> None:
        """Compare raw label maps with raw images, where both are there; stock preprocessing only looks at images."""
        raw = Path(nnUNet_raw, self.plans_manager.dataset_name) if nnUNet_raw.is_set() else None
        if raw is not None and "dataset" not in self.dataset_json:
            check_images(raw, self.dataset_json["file_ending"])

    def budget_of_fold(self) -> Budget:
        """The budget as it is for the fold's training cases."""
        return self.budget

    @property
    def _preprocess_again(self) -> str:
        number = dataset_number(self.plans_manager.dataset_name)
        return (
            f"nnUNetv2_preprocess -d {number} -plans_name {self.plans_manager.plans_name} -c {self.configuration_name}"
        )

    def _check_shares(self) -> None:
        """A Dice over the batch is summed up over processes, for which each must have as many images."""
        batch, batch_dice = self.configuration_manager.batch_size, self.configuration_manager.batch_dice
        processes = dist.get_world_size() if self.is_ddp else 1
        if batch < processes or (batch_dice and batch % processes):
            raise PlanError(
                f"{processes} processes cannot share the batch of {batch} that plans '{self.plans_manager.plans_name}' "
                f"have: train with another number of them (-num_gpus)"
            )

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's training and validation cases, the former restricted to ``train_cases``; read once.

        Raises:
            PlanError: for a split that cannot be used.
        """
        if self._split is None:
            self._split = self._read_split()
        return self._split

    def _read_split(self) -> tuple[list[str], list[str]]:
        folder, base = Path(self.preprocessed_dataset_folder), Path(self.preprocessed_dataset_folder_base)
        dataset = self.dataset_class or infer_dataset_class(str(folder))
        cases = dataset.get_identifiers(str(folder))
        check_split(base / "splits_final.json", cases, folder, self._preprocess_again, self.fold)
        if not self._restoring:
            hint = f" in dataset.json of nnUNet_raw and nnUNet_preprocessed, and run `{self._preprocess_again}`"
            check_count(self.dataset_json, cases, str(folder), hint)
        with mock.patch.object(nnunet_trainer_module, "save_json", self._save_if_writable):
            training, validation = super().do_split()
        wanted = self.budget.train_cases
        if wanted is None:
            return training, validation
        try:
            chosen = first_cases(training, wanted, self.budget.seed)
        except ValueError:
            raise PlanError(
                f"plans '{self.plans_manager.plans_name}' want train_cases={wanted}, but fold {self.fold} of "
                f"{self.plans_manager.dataset_name} has {len(training)} training cases: plan with "
                f"--train-cases {len(training)} or less"
            ) from None
        self.print_to_log_file(f"Training on {wanted} of {len(training)} cases: {', '.join(chosen)}")
        return chosen, validation

    def _save_if_writable(self, content: Any, file: str) -> None:
        """Save the split that nnU-Net draws; in a folder that is read-only every fold draws the same one anew."""
        try:
            save_json(content, file)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            self.print_to_log_file(f"The split is not saved: {file} cannot be written.")

    # The training loop

    @property
    def seconds_spent(self) -> float:
        """Training time so far in s, over all interruptions."""
        return self._stopwatch.seconds

    @property
    def progress(self) -> float:
        """Share of the training that is done: of the iterations or, if that is more, of ``max_minutes``."""
        return self.budget.progress(self.iteration, self._agreed_seconds)

    @property
    def ended_by(self) -> End | None:
        """What ends the training, None while nothing does."""
        return self._ended_by(epochs=self.current_epoch)

    def _ended_by(self, epochs: int) -> End | None:
        if epochs >= self.num_epochs:
            return "iterations"
        return self.budget.ended_by(self.iteration, self._agreed_seconds, self._epochs_without_best)

    def _take_time(self) -> None:
        """Let `progress` know the time, which is the first process's in all of them.

        With times of their own, processes would step at different rates, and one would end its epoch alone.
        """
        seconds = torch.tensor(self.seconds_spent, dtype=torch.float64)
        if self.is_ddp and self.budget.max_minutes is not None:
            seconds = seconds.to(self.device)
            dist.broadcast(seconds, src=0)
        self._agreed_seconds = float(seconds)

    def run_training(self) -> None:
        """nnU-Net's loop, except that the last epoch ends with the budget, not with a full count of iterations.

        Raises:
            FolderBusyError: if another process trains in the fold's folder.
            NotFiniteError: for a loss or weights that are no numbers.
            LoadingError: for a damaged case, or a loading process that was killed.
            CheckpointError: if the disk is full.
            PlanError: for a training that goes on after its cases have changed.
        """
        self._check_cases_kept()
        with training_in(Path(self.output_folder)) if self.local_rank == 0 else nullcontext():
            try:
                self._run_training()
            except KeyboardInterrupt:
                end_loaders(self.dataloader_train, self.dataloader_val)
                raise

    def _check_cases_kept(self) -> None:
        """Compare the fold's cases with those that the checkpoint was trained and validated on."""
        if self._split_of_checkpoint is None:
            return
        changes = []
        for what, before, now in zip(("train", "val"), self._split_of_checkpoint, self.do_split(), strict=True):
            for verb, names in (("no longer", set(before) - set(now)), ("newly", set(now) - set(before))):
                if names:
                    changes.append(f"{listed(sorted(names))} {verb} in {what}")
        if changes:
            raise PlanError(
                f"the cases of fold {self.fold} have changed since this training began: {'; '.join(changes)}. Bring "
                f"the former {self._split_file} back to go on with --c, or train the fold anew without it"
            )

    @property
    def _split_file(self) -> Path:
        return Path(self.preprocessed_dataset_folder_base, "splits_final.json")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's prediction of the validation cases.

        Raises:
            PlanError: if the split has changed, and the model was trained on some of them.
        """
        if self._split_of_checkpoint is not None and self.fold != "all":
            training, validation = self.do_split()
            trained = set(self._split_of_checkpoint[0]) - set(training)  # a split may name a case twice on purpose
            if seen := trained & set(validation):
                raise PlanError(
                    f"fold {self.fold} was trained on {listed(sorted(seen))}, which {self._split_file} now names for "
                    "validation: bring the former file back, or train the fold anew"
                )
        super().perform_actual_validation(save_probabilities)

    def _run_training(self) -> None:
        self.on_train_start()
        self._take_time()
        self.finished = self.ended_by is not None
        while not self.finished:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs: list[dict[str, Any]] = []
            while len(outputs) < self.num_iterations_per_epoch and (not outputs or self.progress < 1):
                outputs.append(self._timed_step())
                self._take_time()
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                outputs = [
                    self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(outputs)
            self.on_epoch_end()
        self.on_train_end()

    def _timed_step(self) -> dict[str, Any]:
        start = perf_counter()
        batch = next(self.dataloader_train)
        waited = perf_counter() - start
        output = self.train_step(batch)
        self.recorder.step(waited, perf_counter() - start)
        return output

    def check_loss(self, loss: float, batch: dict[str, Any]) -> None:
        """End the training with a loss that is no number, unless a gradient scaler mends it within some steps."""
        if math.isfinite(loss):
            self._not_finite = 0
            return
        self._not_finite += 1
        if self._not_finite > (0 if self.grad_scaler is None else LEFT_OUT):
            stop(Path(self.output_folder), batch, loss, self.iteration + 1)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's, no more than there are cores; they name a case or the memory when they fail."""
        with (
            mock.patch.object(nnunet_trainer_module, "NonDetMultiThreadedAugmenter", ProcessLoader),
            mock.patch.object(nnunet_trainer_module, "SingleThreadedAugmenter", ThisProcessLoader),
            mock.patch.object(nnunet_trainer_module, "get_allowed_n_proc_DA", loading_processes),
        ):
            return cast(tuple[Any, Any], super().get_dataloaders())

    def on_train_start(self) -> None:
        self._lease = lease(Path(self.preprocessed_dataset_folder))
        super().on_train_start()
        if self.tensorboard is not None:
            self.tensorboard.start(self.current_epoch)
        self.recorder.start()
        if self._restored_random_state is not None:
            # Only now: starting the loaders draws a sample from each.
            if self.local_rank == 0:
                set_random_state(self._restored_random_state)
            else:  # the state is the first process's, whose patches this one would draw, too
                seed_everything(self.budget.seed + self.local_rank + self.iteration)
        self._stopwatch.start()

    def on_train_end(self) -> None:
        super().on_train_end()
        self.recorder.finish()
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self.num_iterations_per_epoch = self.budget.iterations_of_epoch(self.iteration)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, whose loss shows the recorder the network's output."""
        loss, self.loss = self.loss, self.recorder.slices.watched(self.loss)
        try:
            return super().validation_step(batch)
        finally:
            self.loss = loss

    def on_epoch_end(self) -> None:
        """As nnU-Net's, but the best score is updated, and the epoch recorded, before any checkpoint is written.

        In stock order a training that continues from ``checkpoint_latest`` can overwrite a better ``checkpoint_best``.
        """
        score = self.logger.get_value("ema_fg_dice", step=-1)
        self._epochs_without_best = epochs_without_best(self._epochs_without_best, score, self._best_ema)
        if new_best := is_best(score, self._best_ema):
            self._best_ema = score
        self._take_time()
        save_latest, self.save_every = self.save_every, self.num_epochs + 1
        try:
            super().on_epoch_end()  # prints and plots; its own saving is kept from running
        finally:
            self.save_every = save_latest
        self.finished = self.ended_by is not None
        if self.ended_by == "patience":
            self.print_to_log_file(
                f"The moving average of the Dice has not risen above {self._best_ema:.4f} in {self.budget.patience} "
                f"epochs (patience): the training ends here"
            )
        self.current_epoch -= 1
        volumes, domains = self.measure_volumes()
        files = self.best_checkpoints(new_best, volumes)
        self.recorder.validated(volumes, domains)
        for file in files:
            self.save_checkpoint(os.path.join(self.output_folder, file))
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch != self.num_epochs - 1:
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
        self.current_epoch += 1

    def measure_volumes(self) -> tuple[Overlap | None, dict[str, Overlap]]:
        """Whole volumes of this dataset, and of others by name, where they are measured after this epoch."""
        return None, {}

    def best_checkpoints(self, is_best: bool, volumes: Overlap | None) -> list[str]:
        """Checkpoints that this epoch is the best for; all scores are settled before any is written.

        Args:
            is_best: by nnU-Net's moving average over patches.
            volumes: by whole validation volumes, where they were measured.
        """
        if not is_best:
            return []
        self.print_to_log_file(f"New best EMA pseudo Dice: {self._best_ema:.4f}")
        return ["checkpoint_best.pth"]

    # Checkpoints

    def network_state(self) -> dict[str, Tensor]:
        """State dict of the network, as checkpoints hold it."""
        return self.bare_network.state_dict()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside nnU-Net's entries."""
        return {
            "iteration": self.iteration,
            "seconds_spent": self.seconds_spent,
            "epochs_without_best": self._epochs_without_best,
            "random_state": random_state(),
            "record": self.recorder.state(),
            "cases": [[str(case) for case in part] for part in self.do_split()],
            **self.further_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.iteration = state["iteration"]
        self._stopwatch.before = state["seconds_spent"]
        self._epochs_without_best = state.get("epochs_without_best", 0)  # older checkpoints have none
        self._restored_random_state = state["random_state"]
        self.recorder.load_state(state["record"])
        if "cases" in state:  # older checkpoints have none
            training, validation = state["cases"]
            self._split_of_checkpoint = list(training), list(validation)
        self.restore_further_state(state)

    def further_state(self) -> dict[str, Any]:
        """What a subclass needs besides to continue exactly, for `restore_further_state`."""
        return {}

    def restore_further_state(self, state: dict[str, Any]) -> None:
        """Take up what `further_state` gave; the dictionary holds other entries, too."""

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint with the training's progress and random state, in one step.

        The file is written under a temporary name and renamed, so that a crash leaves the previous one whole.

        Raises:
            NotFiniteError: for weights that are no numbers.
            CheckpointError: if it cannot be written.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        trained = {name: p.detach() for name, p in self.bare_network.named_parameters() if p.requires_grad}
        check_weights(trained, filename, self.iteration)
        checkpoint = {
            "network_weights": self.network_state(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            CHECKPOINT_KEY: self.state(),
        }
        write_checkpoint(checkpoint, Path(filename))

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue from a checkpoint: weights, optimiser, best score, progress, record and random state."""
        self._restoring = True
        # Memory-mapped: the weights, which nnU-Net reads next, are not read twice.
        extra = read_trained(Path(filename_or_checkpoint)).get(CHECKPOINT_KEY)
        try:
            with data_only():
                super().load_checkpoint(filename_or_checkpoint)
        except RuntimeError as error:
            raise misfit(error, filename_or_checkpoint) or error from None
        if extra is None:
            raise RuntimeError(f"{filename_or_checkpoint} was not written by a trainer of nnunet-fm")
        self.load_state(extra)
