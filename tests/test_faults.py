"""Every fault of `tests/faults`: it ends as its function says, and the page of faults shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.faults.all import FAULTS
from tests.faults.registry import Bench


def parameters() -> list[object]:
    slow = pytest.mark.slow
    return [pytest.param(name, id=name, marks=[slow] if f.slow else []) for name, f in FAULTS.items()]


@pytest.mark.parametrize("name", parameters())
def test_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    outcome = FAULTS[name].run(Bench(tmp_path, monkeypatch))
    print(outcome)
