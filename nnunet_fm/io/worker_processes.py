"""Worker processes that end with their parent and do not print to its standard output; or this process instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from nnunet_fm.errors import FailedError
from nnunet_fm.io.orphans import end_with_parent

T = TypeVar("T")


class InThisProcess(Executor):
    """Runs each submitted function at once, in this process."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def worker_processes(count: int, start: Callable[[], None], killed: str) -> Iterator[Executor]:
    """Yield an executor with spawned processes, or with this process for 0.

    Args:
        count: number of processes.
        start: called once in each process before any work.
        killed: message of the error if a process was killed.

    Raises:
        RuntimeError: if a process was killed.
    """
    if count == 0:
        start()
        yield InThisProcess()
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start, initargs=(start,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise FailedError(killed, code="process-killed") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(start: Callable[[], None]) -> None:
    end_with_parent()
    sys.stdout = sys.stderr  # standard output belongs to the command's own result
    start()
