"""Two gloo processes on the CPU, each with a trainer of its own, as ``nnUNetv2_train -num_gpus 2`` has one per GPU."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2
PATIENCE = timedelta(seconds=120)
"""How long a process waits for the other one before the test fails."""


def in_two_processes(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(rank, *arguments)`` returns in each of two processes that are one group.

    Args:
        work: a function of a module.
        folder: an empty one, for the meeting point and the results.
    """
    folder.mkdir(parents=True)
    mp.spawn(_process, (work, folder, arguments), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def _process(rank: int, work: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES, timeout=PATIENCE
    )
    try:
        torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def make_trainer(plans: dict[str, Any], configuration: str) -> Any:
    """A trainer from random weights, in a group or alone."""
    from tests.helpers import trainings

    return trainings.make_trainer(plans, "fm_trainer_scratch", configuration=configuration)


def one_step(rank: int, plans: dict[str, Any], configuration: str, batch: dict[str, Any]) -> dict[str, Any]:
    """The network before and after one step on this process's share of a batch, and the loss."""
    trainer = make_trainer(plans, configuration)
    trainer.initialize()
    assert trainer.device.type == "cpu" and trainer.bare_network.training
    share = len(batch["data"]) // (dist.get_world_size() if dist.is_initialized() else 1)
    mine = slice(rank * share, (rank + 1) * share)
    target = batch["target"]
    batch = {
        "data": batch["data"][mine],
        "target": [level[mine] for level in target] if isinstance(target, list) else target[mine],
    }
    before = {name: value.clone() for name, value in trainer.bare_network.state_dict().items()}
    loss = float(trainer.train_step(batch)["loss"])
    return {"before": before, "after": trainer.bare_network.state_dict(), "loss": loss}


def steps(rank: int, jobs: list[tuple[dict[str, Any], str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """`one_step` for each of several plans, configurations and batches."""
    return [one_step(rank, *job) for job in jobs]


def interrupted_training(rank: int, plans: dict[str, Any], configuration: str, epochs: int) -> list[dict[str, Any]]:
    """A training that is broken off after so many epochs and goes on in a second trainer; each with its validation.

    The clock goes five times as fast in the second process.
    """
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from nnunet_fm.trainers import budget

    multiprocessing.get_context = lambda _: SimpleNamespace(Pool=ThreadPool, Event=Event)  # type: ignore[assignment]
    MetaLogger.plot_progress_png = lambda *_: None
    ticks = count()
    budget.monotonic = lambda: next(ticks) * (1 + 4.0 * rank)  # type: ignore[attr-defined]
    first = make_trainer(plans, configuration)
    first.initialize()
    epoch_end = first.on_epoch_end

    def on_epoch_end() -> None:
        epoch_end()
        first.finished |= first.current_epoch == epochs

    first.on_epoch_end = on_epoch_end
    results = [_trained(first)]
    dist.barrier()
    second = make_trainer(plans, configuration)
    second.load_checkpoint(os.path.join(first.output_folder, "checkpoint_final.pth"))
    return [*results, _trained(second)]


def _trained(trainer: Any) -> dict[str, Any]:
    """Rate and patches of every step, how the training ended, and the network."""
    seen: list[tuple[float, str]] = []
    step = trainer.train_step

    def train_step(batch: Any) -> Any:
        result = step(batch)
        digest = hashlib.sha256(batch["data"].numpy().tobytes()).hexdigest()
        seen.append((trainer.optimizer.param_groups[0]["lr"], digest))
        return result

    trainer.train_step = train_step
    trainer.run_training()
    trainer.perform_actual_validation(save_probabilities=False)
    return {
        "steps": seen,
        "ended_by": trainer.ended_by,
        "iteration": trainer.iteration,
        "network": {name: tensor.clone() for name, tensor in trainer.bare_network.state_dict().items()},
    }
