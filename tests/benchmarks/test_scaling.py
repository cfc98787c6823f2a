"""Growth of cost: slopes, marks, the picture, and that every kind of work runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaled import SUBJECTS
from benchmarks.scaling import exponent, sizes, table
from benchmarks.scaling_plot import plot

ROOT = Path(__file__).parents[2]


def line(power: float, subject: str = "export", side: str = "ours", axis: str = "slices") -> dict[str, Any]:
    points = [{"value": n, "cpu": 0.01 * n**power, "wall": 1.0, "memory": 1e6 * n} for n in (4, 8, 16)]
    return {"subject": subject, "axis": axis, "side": side, "points": points}


def test_a_slope_is_the_power_of_growth() -> None:
    assert exponent(line(1.5)["points"], "cpu") == pytest.approx(1.5)
    assert exponent(line(1)["points"], "memory") == pytest.approx(1)
    assert exponent([{"value": 1, "cpu": 1e-4}, {"value": 2, "cpu": 1.0}], "cpu") is None


def test_worse_than_in_proportion_is_marked() -> None:
    failed = {**line(1), "points": [], "error": "no memory"}
    head, fast, slow, _, last = table([line(1), line(1.5), failed]).splitlines()
    assert "exponent of time" in head and "!" not in fast and "1.50 !" in slow and last == "failed: no memory"


def test_one_property_changes_at_a_time() -> None:
    for subject in SUBJECTS:
        for axis in subject.values:
            for small in (False, True):
                found = [size for _, size in sizes(subject, axis, small)]
                changed = "edge" if axis == "pixels" else axis
                assert len({getattr(size, changed) for size in found}) == len(found) >= 2
                assert len({(s.slices, s.edge, s.classes, s.channels) for s in found}) == len(found)


def test_the_picture(tmp_path: Path) -> None:
    found = [line(1), line(1.5, side="opponent"), line(1, axis="pixels"), line(0.5, "overlap")]
    plot(found, tmp_path / "a.svg")
    plot(found, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "stock nnU-Net" in text and "overlap" in text and text == (tmp_path / "b.svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_kind_of_work_runs(tmp_path: Path) -> None:
    out, picture = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    command = [sys.executable, "-m", "benchmarks.scaling", "--small", "--threads", "1", "-o", out, "--plot", picture]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["lines"]
    assert len(found) == sum(len(s.values) * (2 if s.opponent else 1) for s in SUBJECTS)
    assert all(len(entry["points"]) == 2 for entry in found) and picture.stat().st_size > 10_000
