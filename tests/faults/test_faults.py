"""Every fault of `tests/faults` ends as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.faults.all import FAULTS
from tests.faults.registry import STAGES, Bench, check
from tests.helpers.site_programs import site_program


def parameters() -> list[object]:
    slow = pytest.mark.slow
    return [pytest.param(name, id=name.replace(" ", "_"), marks=[slow] if f.slow else []) for name, f in FAULTS.items()]


@pytest.mark.parametrize("name", parameters())
def test_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check(FAULTS[name], FAULTS[name].run(Bench(tmp_path, monkeypatch)))
    finally:
        torch.set_num_threads(threads)


def test_the_page_has_every_fault() -> None:
    shown = site_program("faults").rows()
    assert {(r.stage, r.broken, r.happens, r.keeps, r.code, r.case, r.says) for r in shown} == {
        (f.stage, f.broken, f.happens, f.keeps, f.code, f.case, f.says) for f in FAULTS.values()
    }
    assert [row.stage for row in shown] == sorted((row.stage for row in shown), key=STAGES.index)
    tables = site_program("faults").as_tables(site_program("errors").messages)
    assert all(f"| {row.broken} |" in tables and row.code in tables for row in shown) and len(shown) > 150
    assert {row.code for row in shown} | {row.case for row in shown} <= {"", *site_program("errors").codes()}
