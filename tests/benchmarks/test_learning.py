"""The comparison of trainings with and without the fast paths runs, and judges by the spread of seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import learning

ROOT = Path(__file__).parents[2]


def test_ways_agree_within_the_spread_of_seeds() -> None:
    def found(fast: list[float], plain: list[float]) -> dict[learning.Way, list[dict[str, float]]]:
        return {"fast": [{"dice": d, "seconds": 1} for d in fast], "plain": [{"dice": d, "seconds": 3} for d in plain]}

    near = found([0.70, 0.72, 0.71], [0.73, 0.71, 0.72])
    assert learning.agree(near) and not learning.agree(found([0.70, 0.72, 0.71], [0.74, 0.75, 0.76]))
    lines = [line.split() for line in learning.table(near, [0, 1, 2]).splitlines()]
    assert lines[1] == ["0", "0.7000", "0.7300"] and lines[-3:] == [
        ["mean", "0.7100", "0.7200"],
        ["spread", "0.0200", "0.0200"],
        ["seconds", "1", "3"],
    ]


@pytest.mark.slow
@pytest.mark.long
def test_learning_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.learning", "--small", "--threads", "1", "-o", tmp_path / "out.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["iterations"] == 3
    for way in learning.WAYS:
        (one,) = written[way]
        assert 0 < one["dice"] < 1 and one["seconds"] > 0
