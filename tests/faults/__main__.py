"""``python -m tests.faults``: make every fault, or those named, and print how each ended."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import sys
import tempfile
from pathlib import Path


def main() -> int:
    import pytest
    import torch

    from tests.faults.all import FAULTS
    from tests.faults.registry import Bench, check

    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(FAULTS)
    failed = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            try:
                seen = FAULTS[name].run(Bench(Path(folder), patch))
                check(FAULTS[name], seen)
                print(f"{name}: {FAULTS[name].happens}", *filter(None, seen or ()), sep="\n    ")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed.append(name)
                print(f"{name}: FAILED {error!r}")
    print(f"{len(chosen)} faults, {len(failed)} ended otherwise than they say{': ' * bool(failed)}{', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
