"""``python -m tests.faults``: make every fault and write docs/reliability.md; with names, make those and print them."""

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
    from tests.faults.page import PAGE, text
    from tests.faults.registry import Bench, Outcome

    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(FAULTS)
    outcomes: dict[str, Outcome] = {}
    failed = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            try:
                outcomes[name] = FAULTS[name].run(Bench(Path(folder), patch))
                print(f"{name}: {outcomes[name]}")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failed.append(name)
                print(f"{name}: FAILED {error!r}")
    if failed:
        print(f"{len(failed)} of {len(chosen)} failed: {', '.join(failed)}")
        return 1
    if chosen == list(FAULTS):
        PAGE.write_text(text(outcomes), encoding="utf-8")
        print(f"{len(outcomes)} faults, {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
