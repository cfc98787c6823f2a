"""Apply a function to many files, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from typing import Any, TypeVar

from nnunet_fm.cpu.limits import startable
from nnunet_fm.errors import FailedError
from nnunet_fm.io.worker_processes import worker_processes

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the number of files done and the number of all."""


def over_files(
    function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], processes: int = 1, progress: Progress | None = None
) -> list[T]:
    """Call a function with each tuple of arguments; results are in the same order.

    Args:
        function: a function of a module, which new processes can import.
        tasks: arguments of each call.
        processes: number of processes; 1 starts none.
        progress: called after each task.

    Raises:
        RuntimeError: if a process was killed.
        Exception: the first error of the function; remaining tasks are not started.
    """
    report = progress or (lambda done, of: None)
    workers = startable(min(processes, len(tasks)))
    if workers <= 1:
        results = []
        for done, arguments in enumerate(tasks, 1):
            results.append(function(*arguments))
            report(done, len(tasks))
        return results
    killed = FailedError("a process was killed, often for want of memory: use fewer processes", code="process-killed")
    with worker_processes(workers, killed=killed) as pool:
        futures = [pool.submit(function, *arguments) for arguments in tasks]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            report(done, len(tasks))
        return [future.result() for future in futures]
