"""Comparisons of ours with an opponent: pairs of runs in turns, a process for each run, ratios with their spread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import Measurement

Side = Literal["ours", "opponent"]
SIDES: tuple[Side, Side] = ("ours", "opponent")
LEAST = {"wall": 1e-6, "cpu": 1e-6, "memory": 1e6}
"""Smaller numbers (s, bytes) are taken for these: they say nothing, and may be zero."""
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Goal:
    """How many times as fast, or as small, ours is to be."""

    at_least: float
    aim: float


@dataclass(frozen=True)
class Benchmark:
    """One comparison.

    Args:
        name: how ``--only`` calls it.
        title: what is compared, for the table.
        run: runs one side on data in a folder, small or in full size, and measures it.
        prepare: writes the data before the first run.
        compare: what differs between the sides' results; called once after the last run.
        goals: for ``wall`` (time) and ``memory``.
    """

    name: str
    title: str
    run: Callable[[Side, Path, bool], Measurement]
    prepare: Callable[[Path, bool], None] | None = None
    compare: Callable[[Path, bool], Mapping[str, float]] | None = None
    goals: Mapping[Literal["wall", "memory"], Goal] = field(default_factory=dict)


def measure_pairs(benchmark: Benchmark, module: str, folder: Path, *, pairs: int, small: bool) -> dict[str, Any]:
    """Run a benchmark's pairs in turns; which side comes first alternates.

    Args:
        module: of ``benchmarks``, where the benchmark is listed.
        folder: an empty one, for its data.

    Returns:
        what goes into the JSON file: every measurement, ratios and differences. One that is interrupted (Ctrl-C)
        after its first pair has those that are finished, and the entry ``interrupted``.

    Raises:
        RuntimeError: with the end of what it said, if a side fails.
    """

    def process(action: str) -> Any:
        command = [sys.executable, "-m", "benchmarks.process", module, benchmark.name, action, str(folder)]
        if small:
            command.append("--small")
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{benchmark.name}, {action} failed:\n{done.stderr[-6000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    if benchmark.prepare is not None:
        process("prepare")
    measured: list[dict[str, Any]] = []
    differences: Mapping[str, float] = {}
    interrupted = False
    try:
        for index in range(pairs):
            order = SIDES if index % 2 == 0 else SIDES[::-1]
            pair = {side: process(side) for side in order}
            measured.append({**pair, "load_average": os.getloadavg()[0]})
            print(f"  pair {index + 1} of {pairs}: {_times(pair)}", file=sys.stderr, flush=True)
        if benchmark.compare is not None:
            differences = process("compare")
    except KeyboardInterrupt:
        if not measured:
            raise
        interrupted = True
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "goals": {} if small else {quantity: asdict(goal) for quantity, goal in benchmark.goals.items()},
        "ratios": {quantity: ratio(measured, quantity) for quantity in ("wall", "cpu", "memory")},
        "differences": differences,
        "pairs": measured,
        **({"interrupted": True} if interrupted else {}),
    }


def ratio(measured: Sequence[Mapping[str, Any]], quantity: str) -> dict[str, float]:
    """Opponent's median over ours, and the smallest and largest ratio of a pair; above 1 ours is better."""
    least = LEAST[quantity]
    ours, theirs = ([max(pair[side][quantity], least) for pair in measured] for side in SIDES)
    each = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(theirs) / statistics.median(ours), "min": min(each), "max": max(each)}


def missed(result: Mapping[str, Any]) -> list[str]:
    """The quantities of a benchmark that are below their "at least"."""
    return [q for q, goal in result["goals"].items() if result["ratios"][q]["median"] < goal["at_least"]]


def _rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Head and lines of the table; a goal that is not met is marked."""
    rows = [("comparison", "", "ours", "opponent", "ratio", "(of pairs)", "CPU ratio", "at least", "aim")]
    for result in results:
        for quantity, unit in (("wall", "s"), ("memory", "MB")):
            found, goal = result["ratios"][quantity], result["goals"].get(quantity)
            ours, theirs = (statistics.median(pair[side][quantity] for pair in result["pairs"]) for side in SIDES)
            scale = 1e-6 if unit == "MB" else 1
            rows.append(
                (
                    result["title"] if quantity == "wall" else "",
                    {"wall": "time", "memory": "memory"}[quantity],
                    f"{_digits(ours * scale)} {unit}",
                    f"{_digits(theirs * scale)} {unit}",
                    f"{found['median']:.2f}{' !' if quantity in missed(result) else ''}",
                    f"{found['min']:.2f} to {found['max']:.2f}",
                    f"{result['ratios']['cpu']['median']:.2f}" if quantity == "wall" else "",
                    f"{goal['at_least']:g}" if goal else "",
                    f"{goal['aim']:g}" if goal else "",
                )
            )
        for what, value in result["differences"].items():
            rows.append((f"  {what}: {value:.{3 if value < 1 else 6}g}", *[""] * 8))
    return rows


def _digits(value: float) -> str:
    """Three digits, or all before the point: no exponents for large numbers."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table for a page of documentation."""
    head, *rows = (tuple(cell.strip() for cell in row) for row in _rows(results))
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Ratios of all benchmarks as text."""
    rows = _rows(results)
    widths = [max(len(row[column]) for row in rows if row[1] or column) for column in range(9)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _times(pair: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{side} {m['wall']:.3g} s (CPU {m['cpu']:.3g} s), {m['memory'] / 1e6:.0f} MB" for side, m in pair.items()
    )
