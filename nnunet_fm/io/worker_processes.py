"""Worker processes that end with their parent, for all commands; or the process itself instead of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

from nnunet_fm.errors import FMError
from nnunet_fm.io.orphans import end_with_parent

T = TypeVar("T")
Start = Callable[[], object]


class InThisProcess(Executor):
    """Runs each submitted function at once, in this process."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def worker_processes(
    count: int,
    start: Start | None = None,
    *,
    killed: FMError,
    prints_to_stderr: bool = False,
    end_at_once: bool = False,
) -> Iterator[Executor]:
    """Yield an executor with spawned processes, or with this process for 0.

    Ctrl-C and SIGTERM end the processes in the middle of their work.

    Args:
        count: number of processes.
        start: called once in each process before any work; a function of a module, or a partial of one.
        killed: error to raise if a process was killed.
        prints_to_stderr: whether workers print to standard error, where standard output belongs to the command's
            result.
        end_at_once: whether to end the processes without their clean-up, which takes a second; for workers that have
            written all they have to when their last result is there.
    """
    if count == 0:
        if start is not None:
            start()
        yield InThisProcess()
        return
    others = set(active_children())
    pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (start, prints_to_stderr))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise killed from error
    except (KeyboardInterrupt, SystemExit):
        end_at_once = True
        raise
    finally:
        if end_at_once:
            for process in set(active_children()) - others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _start(start: Start | None, prints_to_stderr: bool) -> None:
    end_with_parent()
    if prints_to_stderr:
        sys.stdout = sys.stderr
    if start is not None:
        start()
