"""One step of one benchmark in a process of its own: ``python -m benchmarks.process MODULE NAME ACTION FOLDER``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Do it and print the result as one line of JSON; whatever else is printed goes to standard error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("name")
    parser.add_argument("action", choices=("prepare", "ours", "opponent", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    listed = import_module(f"benchmarks.{given.module}").BENCHMARKS
    benchmark = next(b for b in listed if b.name == given.name)
    with contextlib.redirect_stdout(sys.stderr):
        if given.action == "prepare":
            result = benchmark.prepare(given.folder, given.small)
        elif given.action == "compare":
            result = dict(benchmark.compare(given.folder, given.small))
        else:
            result = asdict(benchmark.run(given.action, given.folder, given.small))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
