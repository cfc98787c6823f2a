"""Measure how cost grows with slices, classes, channels and the size of slices, ours beside stock nnU-Net's.

    python -m benchmarks.scaling -o scaling.json --plot scaling.svg     # full sizes, all kinds of work
    python -m benchmarks.scaling --small                                # does it run? no numbers to judge by
    python -m benchmarks.scaling --saved scaling.json --plot scaling.svg

Run from the repository's root. One property of a case changes at a time; each measurement is a process of its own.
The exponents are slopes in double logarithmic scale: 1 is cost in proportion, 0 is none. Those above 1.2 are marked.
A size that takes longer than a minute, or more memory than the machine has, is the last of its line.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.harness import SIDES, Side
from benchmarks.measure import Measurement, measure
from benchmarks.scaled import SUBJECTS, Axis, Size, Subject
from nnunet_fm.records.machine import processor_name, versions

PRELOADED = ["nnunetv2.inference.predict_from_raw_data", "nnunetv2.evaluation.evaluate_predictions"]
"""Imported once, by the process that those of the measurements are forked from."""
LONGEST = 60
"""CPU seconds after which the next larger size is left out."""
FIRST = Size(8, 24, 2)
"""What a process does before the size that is measured."""
MARKED = 1.2
FLOOR = {"cpu": 5e-3, "memory": 2e6}
"""Seconds and bytes below which nothing is said about growth."""
SHRUNK = {"slices": 16, "classes": 4, "channels": 2, "pixels": 112}
"""Largest value in the small form."""


def sizes(subject: Subject, axis: Axis, small: bool) -> list[tuple[int, Size]]:
    """Values along an axis, the cost of which is expected to be in proportion, and the sizes of the cases."""
    values: Sequence[int] = subject.values[axis]
    base = subject.base
    if small:
        values = (SHRUNK[axis] // 2, SHRUNK[axis])
        base = Size(8, 56, 2)
    if axis == "pixels":
        return [(edge * edge, replace(base, edge=edge)) for edge in values]
    return [(value, replace(base, **{axis: value})) for value in values]


def measure_point(subject: Subject, side: Side, size: Size) -> Measurement:
    """Cost of one size, in a fresh process.

    Raises:
        RuntimeError: if it fails there, with why; a process that was killed had too little memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(theirs, subject.name, side, size))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = "was killed, for want of memory?"
    finally:
        process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"{subject.name}, {side}, {size}: {answer}")
    return answer


def _in_process(answer: Connection, name: str, side: Side, size: Size) -> None:
    """Send a measurement, or why there is none."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    subject = next(s for s in SUBJECTS if s.name == name)
    try:
        with tempfile.TemporaryDirectory(prefix="scaling_") as folder:
            for place in (first := Path(folder, "first"), second := Path(folder, "second")):
                place.mkdir()
            subject.build(side, FIRST, first)()  # so that what is imported late is not measured
            answer.send(measure(subject.build(side, size, second), repeats=1, warm_up=0))
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


def lines(subjects: Sequence[Subject], small: bool) -> Iterator[dict[str, Any]]:
    """All lines of the picture, each when it is finished: subject, axis, side and its points."""
    for subject in subjects:
        for axis in subject.values:
            for side in SIDES if subject.opponent else SIDES[:1]:
                line: dict[str, Any] = {"subject": subject.name, "axis": axis, "side": side, "points": []}
                for value, size in sizes(subject, axis, small):
                    try:
                        found = measure_point(subject, side, size)
                    except RuntimeError as error:
                        line["error"] = str(error)
                        break
                    line["points"].append({"value": value, **asdict(found)})
                    if found.cpu > LONGEST:
                        break
                yield line


def exponent(points: Sequence[Mapping[str, float]], quantity: str) -> float | None:
    """Slope of a cost in double logarithmic scale by least squares; None for what is too little to say."""
    told = [(math.log(p["value"]), math.log(p[quantity])) for p in points if p[quantity] > FLOOR[quantity]]
    if len(told) < 2:
        return None
    x, y = (sum(column) / len(told) for column in zip(*told, strict=True))
    spread = sum((a - x) ** 2 for a, _ in told)
    return sum((a - x) * (b - y) for a, b in told) / spread


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Exponents of all lines, and the cost of the largest size."""
    rows = [("work", "grows with", "side", "exponent of time", "of memory", "largest", "CPU s", "MB")]
    for line in found:
        slopes = [exponent(line["points"], quantity) for quantity in ("cpu", "memory")]
        told = ["-" if s is None else f"{s:.2f}{' !' if s > MARKED else ''}" for s in slopes]
        if line["points"]:
            last = line["points"][-1]
            end = [f"{last['value']:,}", f"{last['cpu']:.2f}", f"{last['memory'] / 1e6:.0f}"]
        else:
            end = ["", "", ""]
        rows.append((line["subject"], line["axis"], line["side"], *told, *end))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*text, *(f"failed: {line['error']}" for line in found if "error" in line)])


def main() -> int:
    """Measure, print, write; 1 if something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--small", action="store_true", help="two tiny sizes per line")
    parser.add_argument("--threads", type=int, default=cores, help=f"default: {cores}, the cores")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="every measurement, machine, versions")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="picture; the ending says which kind")
    parser.add_argument("--saved", type=Path, metavar="FILE.json", help="print and plot what -o has written")
    given = parser.parse_args()
    interrupted = False
    if given.saved is not None:
        content = json.loads(given.saved.read_text(encoding="utf-8"))
    else:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "nnUNet_def_n_proc"):
            os.environ[name] = str(given.threads)
        content = {
            "processor": processor_name(), "cores": cores, "threads": given.threads, "small": given.small,
            "versions": versions(), "lines": [],
        }  # fmt: skip
        try:
            for line in lines([s for s in SUBJECTS if s.name in given.only], given.small):
                content["lines"].append(line)
                print(f"{line['subject']}, {line['axis']}, {line['side']}", file=sys.stderr, flush=True)
                if given.output is not None:
                    given.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
        except KeyboardInterrupt:
            interrupted = True
    print(f"{content['processor']}, {content['cores']} cores, {content['threads']} threads")
    print(table(content["lines"]))
    if given.plot is not None:
        from benchmarks.scaling_plot import plot

        plot(content["lines"], given.plot)
    return 130 if interrupted else int(any("error" in line for line in content["lines"]))


if __name__ == "__main__":
    sys.exit(main())
