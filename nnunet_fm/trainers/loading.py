"""Data loaders whose errors name the case, or say that memory ran out.

nnU-Net says "One or more background workers are no longer alive" whatever the reason.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from functools import partial
from math import prod
from multiprocessing import RawArray
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_fm.cpu.limits import SHARED, usable_cores
from nnunet_fm.errors import FMError
from nnunet_fm.io.orphans import end_with_parent
from nnunet_fm.planfile.schema import PlanError

NAME_BYTES = 256


def loading_processes() -> int:
    """Number of loading processes: ``nnUNet_n_proc_DA``, else nnU-Net's number, but no more than usable cores."""
    wanted = int(get_allowed_n_proc_DA())
    return wanted if "nnUNet_n_proc_DA" in os.environ else min(wanted, usable_cores())


class LoadingError(FMError, RuntimeError):
    """A batch could not be loaded; the message names the case or the memory, and what to do."""


class _Noted:
    """Wrap nnU-Net's dataset to note the case that each process reads.

    Args:
        data: the dataset.
        notes: a row of bytes for each process.
    """

    def __init__(self, data: Any, notes: Any) -> None:
        self._noted, self._notes, self.row = data, notes, 0

    def load_case(self, identifier: str) -> Any:
        name = identifier.encode()[: NAME_BYTES - 1]
        start = self.row * NAME_BYTES
        self._notes[start : start + NAME_BYTES] = name.ljust(NAME_BYTES, b"\0")
        return self._noted.load_case(identifier)

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # during unpickling `_noted` does not exist yet
            raise AttributeError(name)
        return getattr(self._noted, name)


def _in_worker(set_thread_id: Callable[[int], None], data: _Noted, number: int) -> None:
    """Start a loading process: note its cases in its own row, and end it with its parent.

    Ctrl-C reaches all processes of a terminal; here it is ignored, so that only the parent prints a message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_thread_id(number)
    data.row = number
    end_with_parent()


def _watch(loader: Any, processes: int) -> Any:
    """Note the cases of a loader, and return the notes; ``processes`` is 0 for loading in this process."""
    notes: Any = RawArray(ctypes.c_char, processes * NAME_BYTES) if processes else bytearray(NAME_BYTES)
    loader._data = _Noted(loader._data, notes)
    loader.set_thread_id = partial(_in_worker, loader.set_thread_id, loader._data)
    return notes


def _cases(notes: Any) -> list[str]:
    """Name of the case that each process read last."""
    raw = bytes(notes)
    rows = (raw[start : start + NAME_BYTES].rstrip(b"\0") for start in range(0, len(raw), NAME_BYTES))
    return [row.decode(errors="replace") for row in rows]


def shape_of(data: Any, case: str) -> tuple[int, ...]:
    """Shape ``(Z, Y, X)`` in voxels of a case of nnU-Net's dataset; raises LoadingError for one that is damaged."""
    try:
        return tuple(int(size) for size in data.load_case(case)[0].shape[1:])
    except Exception:
        error = _damaged(data, [case])
        if error is None:
            raise
        raise error from None


def _damaged(data: Any, cases: list[str]) -> LoadingError | None:
    """Error for the first of these cases whose files are damaged; None if all can be read."""
    while not hasattr(data, "source_folder"):  # unwrap a dataset that hides labels
        data = data._data
    for case in dict.fromkeys(filter(None, cases)):
        try:
            image, labels, _, _ = data.load_case(case)
            np.asarray(image[:]), np.asarray(labels[:])
        except Exception as error:  # any fault of its files
            folder = Path(data.source_folder)
            files = ", ".join(sorted(f.name for f in folder.glob(f"{case}*") if f.stem in (case, f"{case}_seg")))
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return LoadingError(
                f"the preprocessed case {case} is damaged ({reason}): delete {files or 'what is left of it'} and "
                f"{folder.name}.stamp.json in {folder.parent}, run nnUNetv2_preprocess again, and continue with --c",
                code="case-damaged",
            )
    return None


def end_loaders(*loaders: Any) -> None:
    """End the processes of loaders, which would print errors after an interrupted training."""
    for loader in loaders:
        if isinstance(loader, NonDetMultiThreadedAugmenter):
            loader._finish()


class ThisProcessLoader(SingleThreadedAugmenter):
    """Load batches in this process."""

    def __init__(self, data_loader: Any, transform: Any) -> None:
        super().__init__(data_loader, transform)
        self._notes = _watch(data_loader, 0)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except (MemoryError, PlanError):
            raise
        except Exception:
            error = _damaged(self.data_loader._data._noted, _cases(self._notes))
            if error is None:
                raise
            raise error from None


class ProcessLoader(NonDetMultiThreadedAugmenter):
    """Load batches in other processes, which end with this one."""

    def __init__(self, data_loader: Any, transform: Any, num_processes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(data_loader, transform, num_processes, *args, **kwargs)
        self._notes = _watch(data_loader, num_processes)
        self._ends: list[int | None] = []

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except RuntimeError:
            cases = _cases(self._notes)
            error = _damaged(self.generator._data._noted, cases) or self._killed(cases)
            if error is None:
                raise
            raise error from None

    def _finish(self, *args: Any, **kwargs: Any) -> None:
        if self._processes:
            self._ends = [process.exitcode for process in self._processes]
        super()._finish(*args, **kwargs)

    def _killed(self, cases: list[str]) -> LoadingError | None:
        """Error for processes that a signal ended, for example when memory ran out; None if there are none."""
        dead = [number for number, end in enumerate(self._ends) if end is not None and end < 0]
        if not dead:
            return None
        loader = self.generator
        signals = ", ".join(dict.fromkeys(signal.Signals(-(self._ends[number] or 0)).name for number in dead))
        if {-(self._ends[number] or 0) for number in dead} == {signal.SIGBUS}:
            return LoadingError(
                f"{len(dead)} of {self.num_processes} processes that load data ended by SIGBUS: {SHARED}, through "
                "which they send batches, is full. Start the container with more of it (docker run --shm-size=8g), or "
                "export nnUNet_n_proc_DA=0 to load in the training's own process, and continue with --c",
                code="shared-memory",
            )
        read = ", ".join(dict.fromkeys(filter(None, (cases[number] for number in dead)))) or "its first case"
        channels = loader._data.load_case(cases[dead[0]])[0].shape[0] if cases[dead[0]] else 1
        batch = 4 * loader.batch_size * (channels + 1) * prod(int(size) for size in loader.patch_size)
        held = f"{max(1, 3 * batch // 10**6)} MB of batches"
        return LoadingError(
            f"{len(dead)} of {self.num_processes} processes that load data ended by {signals} while reading {read}, "
            f"most likely because memory ran out: each holds about {held} beside what PyTorch takes. Export "
            f"nnUNet_n_proc_DA={self.num_processes // 2} (0: load in the training's own process), and continue with "
            "--c; `nnunet-fm doctor` shows memory and its limits",
            code="process-killed",
        )
