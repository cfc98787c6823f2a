"""Worker processes that end with the process that started them, however that ends.

One that is killed tells nobody: its workers would wait for work for ever, with their memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import parent_process

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Called first in a worker process: let it end when its parent does.

    On Linux the parent is the thread that started the worker. `multiprocessing.Pool` replaces lost workers from a
    thread that ends before the pool does, whose other workers are killed then, perhaps with a lock in their hands:
    use a `ProcessPoolExecutor`, which replaces none.
    """
    parent = parent_process()
    if parent is None:  # no process of multiprocessing
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if not parent.is_alive():  # it was killed before this line
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
