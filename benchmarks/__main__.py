"""Measure speed and memory beside stock nnU-Net and the official code.

    python -m benchmarks                              # everything, in full size: hours on a few cores
    python -m benchmarks --only 'encoder*' -o out.json
    python -m benchmarks --small                      # does it run? tiny sizes, one pair, no judgement
    python -m benchmarks --saved out.json --markdown  # the table of measurements that were saved, for a page

Run from the repository's root, in an environment where nnunet-fm is installed. For each comparison, ours and the
opponent run in turns, each in a fresh process. A ratio is the opponent's median over ours: above 1, ours is faster or
smaller. On a machine that others use as well, the ratio of CPU times says more than that of wall-clock times.
Exit code 1: a benchmark failed or, in full size, a ratio is below its "at least"; the others are measured all the same.
Ctrl-C ends with what is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, markdown, measure_pairs, missed, table
from nnunet_fm.records.machine import processor_name, versions

MODULES = (
    "preprocess", "export", "encoder", "dinov2", "swinunetr", "augmentation", "training", "prediction", "lookup"
)  # fmt: skip
OPPONENTS = ("segment-anything", "batchgenerators", "scipy", "scikit-image", "SimpleITK", "blosc2")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def selected(patterns: list[str]) -> list[tuple[str, Benchmark]]:
    """Module and benchmark of every name that fits one of the patterns."""
    listed = [(module, b) for module in MODULES for b in import_module(f"benchmarks.{module}").BENCHMARKS]
    return [(module, b) for module, b in listed if any(fnmatch(b.name, pattern) for pattern in patterns)]


def print_results(content: Mapping[str, Any], *, as_markdown: bool) -> int:
    """Print machine and table, and on standard error what failed or is missed; returns the exit code."""
    small = ", tiny sizes: these ratios mean nothing" if content["small"] else ""
    machine = f"{content['processor']}, {content['cores']} cores, {content['threads']} threads{small}"
    if as_markdown:
        machine += "; " + ", ".join(f"{name} {version}" for name, version in content["versions"].items()) + "\n"
    results = [result for result in content["benchmarks"] if "error" not in result]
    print(machine)
    print((markdown if as_markdown else table)(results))
    failed = [result["name"] for result in content["benchmarks"] if "error" in result]
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    below = [
        f"{result['name']} ({quantity} {result['ratios'][quantity]['median']:.2f}, at least {goal['at_least']:g})"
        for result in results
        for quantity, goal in result["goals"].items()
        if quantity in missed(result)
    ]
    if below:
        print(f'Below "at least": {", ".join(below)}', file=sys.stderr)
    return int(bool(failed or below))


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
    parser.add_argument("--saved", type=Path, metavar="FILE.json", help="print what -o has written; measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args()
    if given.saved is not None:
        return print_results(json.loads(given.saved.read_text(encoding="utf-8")), as_markdown=given.markdown)
    chosen = selected(given.only)
    if not chosen:
        parser.error(f"no benchmark is called {' or '.join(given.only)}; --list prints the names")
    if given.list:
        print("\n".join(f"{benchmark.name:22} {benchmark.title}" for _, benchmark in chosen))
        return 0
    if given.output is not None and not given.output.parent.is_dir():
        parser.error(f"{given.output.parent} is no folder")

    os.environ |= {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    results: list[dict[str, Any]] = []
    content = {
        "processor": processor_name(),
        "cores": cores,
        "threads": given.threads,
        "load_average": os.getloadavg(),
        "small": given.small,
        "versions": versions() | {name: metadata.version(name) for name in OPPONENTS},
        "benchmarks": results,
    }
    interrupted = False
    for module, benchmark in chosen:
        print(f"{benchmark.name}: {benchmark.title}", file=sys.stderr, flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
                pairs = 1 if given.small else given.pairs
                results.append(measure_pairs(benchmark, module, Path(folder), pairs=pairs, small=given.small))
            interrupted = "interrupted" in results[-1]
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            results.append({"name": benchmark.name, "title": benchmark.title, "error": str(error)})
        except KeyboardInterrupt:
            interrupted = True
        if given.output is not None:  # after each, as all together take long
            given.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
        if interrupted:
            print("Interrupted; what is finished:", file=sys.stderr)
            break
    code = print_results(content, as_markdown=given.markdown)
    return INTERRUPTED if interrupted else code


if __name__ == "__main__":
    sys.exit(main())
