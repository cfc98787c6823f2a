"""Lock of a fold's folder, for one training at a time; the operating system releases it when the process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.errors import FMError
from nnunet_fm.io.file_locks import lock_file
from nnunet_fm.io.locks import holder_json, read_holder
from nnunet_fm.trainers.callbacks import Callback

FILE = ".training.lock"


class FolderBusyError(FMError, RuntimeError):
    """Another process trains in this folder; the message names it."""


class FoldLock(Callback):
    """Lock the fold's folder during the training; of several processes, the first one does."""

    def __init__(self, trainer: nnUNetTrainer) -> None:
        super().__init__(trainer)
        self._held = ExitStack()

    def begin(self) -> None:
        if self.trainer.local_rank == 0:
            self._held.enter_context(training_in(Path(self.trainer.output_folder)))

    def close(self) -> None:
        self._held.close()


def check_free(folder: Path) -> None:
    """Raise a `FolderBusyError` if another process trains in a fold's folder; write nothing."""
    if not (folder / FILE).is_file():
        return
    with (folder / FILE).open(encoding="utf-8") as handle:
        _lock(handle, folder, reading=True)


@contextmanager
def training_in(folder: Path) -> Iterator[None]:
    """Lock a fold's folder. The lock of a process that has ended is free at once, on any host that shares the disk.

    The lock belongs to this process alone: loading processes that it starts do not keep it alive.

    Raises:
        FolderBusyError: if another process trains there, or this account may not write there.
    """
    try:
        opened = (folder / FILE).open("a+", encoding="utf-8")
    except PermissionError:
        raise FolderBusyError(
            f"{folder} belongs to another account, which trained there first: export nnUNet_results to a folder of "
            "your own, or plan under a name of your own",
            code="fold-foreign",
        ) from None
    with opened as handle:
        _lock(handle, folder)
        handle.truncate(0)
        handle.write(holder_json())
        handle.flush()
        yield


def _lock(handle: IO[str], folder: Path, *, reading: bool = False) -> None:
    """Lock a file; with a handle for reading, only check that nobody has locked it."""
    try:
        lock_file(handle, shared=reading, wait=False, inherited=False)
    except BlockingIOError:
        # Who has just taken the lock may not have written its name yet.
        who = read_holder(folder / FILE) or "another process"
        raise FolderBusyError(
            f"{folder} is being trained by {who}: wait until it ends, or end it and continue with --c. Another fold, "
            "trainer or plans of another name have a folder of their own",
            code="fold-busy",
        ) from None
