"""One function over many files, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from nnunet_fm.cpu.limits import startable
from nnunet_fm.errors import FailedError
from nnunet_fm.io.orphans import end_with_parent

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the number of files done and the number of all."""


def over_files(
    function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], processes: int = 1, progress: Progress | None = None
) -> list[T]:
    """Results of a function for each tuple of arguments, in their order.

    Args:
        function: of a module, because several processes are started afresh and import it.
        tasks: arguments of each call.
        processes: 1 starts none.
        progress: called after each task.

    Raises:
        RuntimeError: if a process was killed.
        Exception: whatever the function raises; what has not been started is not started then.
    """
    tell = progress or (lambda done, of: None)
    workers = startable(min(processes, len(tasks)))
    if workers <= 1:
        results = []
        for done, arguments in enumerate(tasks, 1):
            results.append(function(*arguments))
            tell(done, len(tasks))
        return results
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        futures = [pool.submit(function, *arguments) for arguments in tasks]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                tell(done, len(tasks))
        except BrokenProcessPool:
            raise FailedError(
                "a process was killed, often for want of memory: use fewer processes", code="process-killed"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
