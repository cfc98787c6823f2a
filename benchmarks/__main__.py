"""Measure speed and memory beside stock nnU-Net and the official code.

    python -m benchmarks                              # everything, in full size: hours on a few cores
    python -m benchmarks --only 'encoder*' -o out.json
    python -m benchmarks --small                      # does it run? tiny sizes, one pair, no judgement

Run from the repository's root, in an environment where nnunet-fm is installed. For each comparison, ours and the
opponent run in turns, each in a fresh process. A ratio is the opponent's median over ours: above 1, ours is faster or
smaller. On a machine that others use as well, the ratio of CPU times says more than that of wall-clock times.
Exit code 1: in full size, a ratio is below its "at least".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from fnmatch import fnmatch
from importlib import import_module, metadata
from pathlib import Path

from benchmarks.harness import Benchmark, measure_pairs, missed, table
from nnunet_fm.evaluation.machine import processor_name, versions

MODULES = ("preprocess", "export", "encoder", "swinunetr", "augmentation", "training", "prediction", "lookup")
OPPONENTS = ("segment-anything", "batchgenerators", "scipy", "scikit-image", "SimpleITK", "blosc2")


def selected(patterns: list[str]) -> list[tuple[str, Benchmark]]:
    """Module and benchmark of every name that fits one of the patterns."""
    listed = [(module, b) for module in MODULES for b in import_module(f"benchmarks.{module}").BENCHMARKS]
    return [(module, b) for module, b in listed if any(fnmatch(b.name, pattern) for pattern in patterns)]


def main() -> int:
    """Run the chosen benchmarks, print the table, write the JSON file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="names, with * and ?")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--small", action="store_true", help="tiny sizes, one pair, no judgement")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--threads", type=int, default=cores, help=f"of each process (default: {cores}, the cores)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="every measurement, machine, versions")
    given = parser.parse_args()
    chosen = selected(given.only)
    if not chosen:
        parser.error(f"no benchmark is called {' or '.join(given.only)}; --list prints the names")
    if given.list:
        print("\n".join(f"{benchmark.name:22} {benchmark.title}" for _, benchmark in chosen))
        return 0
    if given.output is not None and not given.output.parent.is_dir():
        parser.error(f"{given.output.parent} is no folder")

    os.environ |= {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    content = {
        "processor": processor_name(),
        "cores": cores,
        "threads": given.threads,
        "load_average": os.getloadavg(),
        "small": given.small,
        "versions": versions() | {name: metadata.version(name) for name in OPPONENTS},
        "benchmarks": (results := []),
    }
    for module, benchmark in chosen:
        print(f"{benchmark.name}: {benchmark.title}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            pairs = 1 if given.small else given.pairs
            results.append(measure_pairs(benchmark, module, Path(folder), pairs=pairs, small=given.small))
        if given.output is not None:  # after each, as all together take long
            given.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    small = ", tiny sizes: these ratios mean nothing" if given.small else ""
    print(f"{content['processor']}, {cores} cores, {given.threads} threads{small}")
    print(table(results))
    return 0 if given.small else int(any(missed(result) for result in results))


if __name__ == "__main__":
    sys.exit(main())
