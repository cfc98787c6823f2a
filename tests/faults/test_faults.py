"""Every fault of `tests/faults` ends as its function says, and as the page of faults shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.faults.all import FAULTS
from tests.faults.page import row, rows
from tests.faults.registry import Bench


def parameters() -> list[object]:
    slow = pytest.mark.slow
    return [pytest.param(name, id=name.replace(" ", "_"), marks=[slow] if f.slow else []) for name, f in FAULTS.items()]


@pytest.mark.parametrize("name", parameters())
def test_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = FAULTS[name].run(Bench(tmp_path, monkeypatch))
    finally:
        torch.set_num_threads(threads)
    assert rows().get(FAULTS[name].broken) == row(name, outcome), "run `python -m tests.faults`, which writes the page"


def test_the_page_lists_all_faults() -> None:
    assert list(rows()) == [f.broken for f in sorted(FAULTS.values(), key=lambda f: list(stages()).index(f.stage))]
    assert len(FAULTS) >= 60


def stages() -> tuple[str, ...]:
    from tests.faults.registry import STAGES

    return STAGES
