"""Loop of all trainers: an exact budget, a seed, few-shot cases, exact continuation, callbacks.

Methods stand in the order in which nnU-Net calls them.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter, time
from typing import IO, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_fm.cpu.devices import DeviceError, device_fault
from nnunet_fm.cpu.limits import threads
from nnunet_fm.insides import replaced
from nnunet_fm.io.dataset_json import canonical, fault_of_numbers
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.pairs import check_count
from nnunet_fm.preprocessing.shared_cache import NOT_WRITABLE, lease
from nnunet_fm.records.training import End
from nnunet_fm.trainers import checkpoints
from nnunet_fm.trainers.budget import Budget, Stopwatch, epochs_without_best, is_best
from nnunet_fm.trainers.callbacks import Callback, EpochResult
from nnunet_fm.trainers.callbacks.fold_lock import FoldLock
from nnunet_fm.trainers.callbacks.nan_guard import NanGuard
from nnunet_fm.trainers.callbacks.pictures import Pictures
from nnunet_fm.trainers.callbacks.record import Recorder
from nnunet_fm.trainers.callbacks.slice_overlap import SliceOverlap
from nnunet_fm.trainers.callbacks.tensorboard import Loggers, tensorboard_enabled
from nnunet_fm.trainers.callbacks.time_left import TimeLeft
from nnunet_fm.trainers.loading import ProcessLoader, ThisProcessLoader, end_loaders, loading_processes
from nnunet_fm.trainers.preflight import check_start, preprocess_command
from nnunet_fm.trainers.random_state import random_state, seed_everything, set_random_state
from nnunet_fm.trainers.split import check_cases_kept, check_split, check_unseen, few_cases


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
        tensorboard = tensorboard_enabled()
        plans.setdefault("continue_training", False)
        dataset_json = canonical(dataset_json)
        if reason := fault_of_numbers(dataset_json):
            raise PlanError(f"dataset.json of {plans['dataset_name']}: {reason}", code="dataset-json")
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and device.type == "cpu":  # nnU-Net takes several processes for as many GPUs
            self.device, self.grad_scaler = device, None
        self.slice_overlap, self.recorder, self.nan_guard = SliceOverlap(self), Recorder(self), NanGuard()
        self.callbacks: list[Callback] = [
            FoldLock(self),
            self.slice_overlap,
            Pictures(self),
            self.recorder,
            Loggers(self, tensorboard),
            TimeLeft(self),
        ]
        """Called in this order at each point."""
        self.best_checkpoints = checkpoints.BestCheckpoints()
        self.iteration = 0
        """Optimiser steps taken so far."""
        self.finished = False
        self._stopwatch = Stopwatch()
        self._agreed_seconds = 0.0
        """`seconds_spent` as `progress` counts it: the same in every process of a training."""
        self._epochs_without_best = 0
        self._restored_random_state: dict[str, Any] | None = None
        self._restoring = False
        self._split: tuple[list[str], list[str]] | None = None
        self._split_of_checkpoint: tuple[list[str], list[str]] | None = None
        self.source_cases: dict[str, list[str]] = {}
        """Dataset -> training cases of the model that this training starts from."""
        self._lease: IO[str] | None = None

    def set_budget(self, budget: Budget) -> None:
        """Set the lengths that nnU-Net's methods read."""
        self.budget = budget
        self.num_iterations_per_epoch = budget.iterations_of_epoch(0)
        self.num_val_iterations_per_epoch = budget.validation_iterations
        self.num_epochs = budget.epochs
        self.save_every = budget.save_every

    @property
    def bare_network(self) -> nn.Module:
        """Network without DDP and compile wrappers."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return cast(nn.Module, getattr(module, "_orig_mod", module))

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
        """Reason why the training ends now; None while it goes on."""
        return self._ended_by(epochs=self.current_epoch)

    def _ended_by(self, epochs: int) -> End | None:
        if epochs >= self.num_epochs:
            return "iterations"
        return self.budget.ended_by(self.iteration, self._agreed_seconds, self._epochs_without_best)

    # Before the training

    def initialize(self) -> None:
        """Check the training's requirements, and build network, optimiser and loss from the seed.

        Raises:
            FolderBusyError: if another process trains in the fold's folder, before anything is built.
            PlanError: for a batch that several processes cannot share; for preprocessed data that are missing, have
                other labels or fewer cases than ``numTraining``.
        """
        check_start(self, raw_images=not self._restoring)
        if (budget := self.budget_of_fold()) != self.budget:
            self.set_budget(budget)
        seed_everything(self.budget.seed + self.local_rank)
        if self.device.type == "cpu":  # nnU-Net takes a thread for each core of the machine
            torch.set_num_threads(min(torch.get_num_threads(), threads()))
        super().initialize()

    def budget_of_fold(self) -> Budget:
        """Budget for the training cases of the fold."""
        return self.budget

    @property
    def _split_file(self) -> Path:
        return Path(self.preprocessed_dataset_folder_base, "splits_final.json")

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's training and validation cases, the former restricted to ``train_cases``; read once.

        Raises:
            PlanError: for a split that cannot be used.
        """
        if self._split is None:
            self._split = self._read_split()
        return self._split

    def _read_split(self) -> tuple[list[str], list[str]]:
        folder = Path(self.preprocessed_dataset_folder)
        dataset = self.dataset_class or infer_dataset_class(str(folder))
        cases = dataset.get_identifiers(str(folder))
        again = preprocess_command(self)
        check_split(self._split_file, cases, folder, again, self.fold)
        if not self._restoring:
            hint = f" in dataset.json of nnUNet_raw and nnUNet_preprocessed, and run `{again}`"
            check_count(self.dataset_json, cases, str(folder), hint)
        with replaced(nnunet_trainer_module, "save_json", self._save_if_writable):
            training, validation = super().do_split()
        wanted, plans = self.budget.train_cases, self.plans_manager
        if wanted is None:
            return training, validation
        chosen = few_cases(training, wanted, self.budget.seed, plans.plans_name, plans.dataset_name, self.fold)
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

    # The training

    def run_training(self) -> None:
        """Train until the budget is spent; nnU-Net's own loop only ends with whole epochs.

        Raises:
            FolderBusyError: if another process trains in the fold's folder.
            NotFiniteError: for a loss or weights that are NaN or infinite.
            LoadingError: for a damaged case, or a loading process that was killed.
            CheckpointError: if the disk is full.
            PlanError: for a training that goes on after its cases have changed.
        """
        if self._split_of_checkpoint is not None:
            check_cases_kept(self._split_of_checkpoint, self.do_split(), self.fold, self._split_file)
        try:
            for callback in self.callbacks:
                callback.begin()
            self._run_epochs()
        except KeyboardInterrupt:
            end_loaders(self.dataloader_train, self.dataloader_val)
            raise
        finally:
            for callback in self.callbacks:
                callback.close()

    def _run_epochs(self) -> None:
        self.on_train_start()
        self._agree_on_time()
        self.finished = self.ended_by is not None
        while not self.finished:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs: list[dict[str, Any]] = []
            while len(outputs) < self.num_iterations_per_epoch and (not outputs or self.progress < 1):
                outputs.append(self._timed_step())
                self._agree_on_time()
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                outputs = [
                    self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(outputs)
            self.on_epoch_end()
        self.on_train_end()

    def _agree_on_time(self) -> None:
        """Count the time of the first process in all of them.

        Else processes would use different learning rates, and one of them would end its epoch alone.
        """
        seconds = torch.tensor(self.seconds_spent, dtype=torch.float64)
        if self.is_ddp and self.budget.max_minutes is not None:
            seconds = seconds.to(self.device)
            dist.broadcast(seconds, src=0)
        self._agreed_seconds = float(seconds)

    def on_train_start(self) -> None:
        self._lease = lease(Path(self.preprocessed_dataset_folder))
        super().on_train_start()
        for callback in self.callbacks:
            callback.train_start()
        if self._restored_random_state is not None:
            # Not earlier, because each loader draws a sample when it starts.
            if self.local_rank == 0:
                set_random_state(self._restored_random_state)
            else:  # with the state of the first process this one would draw the same patches
                seed_everything(self.budget.seed + self.local_rank + self.iteration)
        self._stopwatch.start()

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Build nnU-Net's loaders in at most one process per core; an error names the case or the lack of memory."""
        with (
            replaced(nnunet_trainer_module, "NonDetMultiThreadedAugmenter", ProcessLoader),
            replaced(nnunet_trainer_module, "SingleThreadedAugmenter", ThisProcessLoader),
            replaced(nnunet_trainer_module, "get_allowed_n_proc_DA", loading_processes),
        ):
            return cast(tuple[Any, Any], super().get_dataloaders())

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self.num_iterations_per_epoch = self.budget.iterations_of_epoch(self.iteration)

    def _timed_step(self) -> dict[str, Any]:
        start = perf_counter()
        batch = next(self.dataloader_train)
        waited = perf_counter() - start
        output = self.train_step(batch)
        total = perf_counter() - start
        for callback in self.callbacks:
            callback.step_end(waited, total)
        return output

    def check_loss(self, loss: float, batch: dict[str, Any]) -> None:
        """End the training at a loss that is NaN or infinite; `train_step` calls this.

        Raises:
            NotFiniteError: see `NanGuard.check`.
        """
        self.nan_guard.check(loss, batch, self)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run nnU-Net's validation step, and gather its logits for the Dice per slice."""
        with self.slice_overlap.watching(self.network, batch["target"]):
            return cast(dict[str, Any], super().validation_step(batch))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        for callback in self.callbacks:
            callback.validation_end()

    def on_epoch_end(self) -> None:
        """End the epoch: judge it, print it, measure, record, write checkpoints.

        nnU-Net's own `on_epoch_end` is not called: it writes checkpoints before the epoch is measured and recorded, and
        a training that continues from ``checkpoint_latest`` could overwrite a better ``checkpoint_best``.
        """
        result = self._judge_epoch()
        self._agree_on_time()
        self._print_epoch()
        ended_by = self._ended_by(epochs=self.current_epoch + 1)
        self.finished = ended_by is not None
        if ended_by == "patience":
            self.print_to_log_file(
                f"The moving average of the Dice has not risen above {self._best_ema:.4f} in {self.budget.patience} "
                f"epochs (patience): the training ends here"
            )
        for callback in self.callbacks:
            callback.measure(result)
        files = self.best_checkpoints.choose(result, self.print_to_log_file)
        for callback in self.callbacks:
            callback.epoch_end(result)
        if (self.current_epoch + 1) % self.save_every == 0 and self.current_epoch != self.num_epochs - 1:
            files.append(checkpoints.LATEST)
        for file in files:
            self.save_checkpoint(str(Path(self.output_folder, file)))
        self.current_epoch += 1

    def _judge_epoch(self) -> EpochResult:
        """Compare nnU-Net's moving average of the Dice with its best so far."""
        loss, score = (self.logger.get_value(key, step=-1) for key in ("val_losses", "ema_fg_dice"))
        new_best = is_best(score, self._best_ema)
        self._epochs_without_best = epochs_without_best(self._epochs_without_best, score, self._best_ema)
        if new_best:
            self._best_ema = score
        return EpochResult(self.current_epoch, val_loss=float(loss), dice_ema=float(score), new_best=new_best)

    def _print_epoch(self) -> None:
        """Log the time, print the scores and draw progress.png as nnU-Net does."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)

        def last(key: str) -> Any:
            return self.logger.get_value(key, step=-1)

        self.print_to_log_file("train_loss", np.round(last("train_losses"), decimals=4))
        self.print_to_log_file("val_loss", np.round(last("val_losses"), decimals=4))
        self.print_to_log_file("Pseudo dice", [np.round(i, decimals=4) for i in last("dice_per_class_or_region")])
        seconds = np.round(last("epoch_end_timestamps") - last("epoch_start_timestamps"), decimals=2)
        self.print_to_log_file(f"Epoch time: {seconds} s")
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)

    def on_train_end(self) -> None:
        super().on_train_end()
        for callback in self.callbacks:
            callback.train_end()
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases as nnU-Net does.

        Raises:
            PlanError: if the split has changed, so that the model was trained on some of these cases.
        """
        if self._split_of_checkpoint is not None and self.fold != "all":
            check_unseen(self._split_of_checkpoint[0], self.do_split(), self.fold, self._split_file)
        super().perform_actual_validation(save_probabilities)

    # Checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint with the training's progress and random state, see `checkpoints.write`."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoints.write(Path(filename), self, self.network_state(), self.state())

    def network_state(self) -> dict[str, Tensor]:
        """State dict of the network for a checkpoint."""
        return self.bare_network.state_dict()

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint beside nnU-Net's own, for `load_state`."""
        return {
            "iteration": self.iteration,
            "seconds_spent": self.seconds_spent,
            "epochs_without_best": self._epochs_without_best,
            "random_state": random_state(),
            "record": self.recorder.state(),
            "cases": [[str(case) for case in part] for part in self.do_split()],
            **self.extra_state(),
        }

    def extra_state(self) -> dict[str, Any]:
        """Further entries that a subclass needs to continue exactly, for `load_extra_state`."""
        return {}

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Continue from a checkpoint: weights, optimiser, best score, progress, record and random state."""
        self._restoring = True
        self.load_state(checkpoints.read(filename_or_checkpoint, super().load_checkpoint))

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
        self.load_extra_state(state)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from what `extra_state` returned; the dictionary holds other entries, too."""
