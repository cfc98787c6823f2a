#!/usr/bin/env python
"""Compare our networks with outputs of the official implementations, with the same made-up weights and inputs.

    python tests/parity/run.py tests/parity/cases [--only GLOB]

Prints one line per output: case, output, max |ours - official| / std(official). Exits 1 if one exceeds the limit or a
case is not supported, 2 if there is nothing to compare.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.parity.adapters import builder
from tests.parity.cases import Case, NotSupportedError, read_cases

LIMIT = 3e-4
"""Largest deviation allowed, in standard deviations of the official output; both sides compute in float32."""


def compare(case: Case) -> dict[str, float]:
    """Deviation of each output of a case.

    Raises:
        NotSupportedError: if no network of ours corresponds to the case, or an output of it is not one of ours.
    """
    build = builder(case)
    with mock.patch.dict(os.environ, {"NNUNET_FM_BF16": "0"}), torch.no_grad():
        ours = build(case)
    missing = [out.name for out in case.outputs if out.name not in ours]
    if missing:
        raise NotSupportedError(f"no output called {', '.join(missing)}")
    return {out.name: out.error(ours[out.name]) for out in case.outputs}


def selected(folder: Path, only: str) -> Iterator[Case]:
    """Cases of a folder whose name, or whose file's stem, matches a glob pattern."""
    for case in read_cases(folder):
        if fnmatch(case.name, only) or fnmatch(case.name.split("/")[0], only):
            yield case


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with <case>.json and <case>.npz files")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases to run, by file or FILE/CASE name")
    options = parser.parse_args(arguments)
    cases = list(selected(options.folder, options.only))
    if not cases:
        print(f"no case in {options.folder} matches '{options.only}'", file=sys.stderr)
        return 2
    failures = 0
    for case in cases:
        try:
            errors = compare(case)
        except NotSupportedError as reason:
            failures += 1
            print(f"{case.name}  -  NOT SUPPORTED: {reason}", flush=True)
            continue
        except Exception as error:  # one broken case must not hide the others
            failures += 1
            print(f"{case.name}  -  ERROR: {type(error).__name__}: {error}", flush=True)
            continue
        for output, deviation in errors.items():
            good = deviation <= LIMIT
            failures += not good
            print(f"{case.name}  {output}  {deviation:.2e}{'' if good else '  FAILED'}", flush=True)
        gc.collect()  # the largest networks must not overlap
    print(f"{len(cases)} cases, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
