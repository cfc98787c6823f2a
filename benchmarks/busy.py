"""Iterations of a training on a processor in some minutes: its threads wait as the hook chooses, or spin.

    python benchmarks/busy.py DEMO_OUTPUT --loops 4

``DEMO_OUTPUT`` is the folder of a finished `nnunet-fm demo`; its data and plan are used. ``--loops`` are processes that
compute meanwhile without end; 0 measures what the machine does anyway. Trainings of both kinds take turns. Spinning is
what GNU's OpenMP does without a word from anybody: 300,000 turns before a thread sleeps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLANS, TRAINER, CONFIGURATION = "FMPlans_busy", "fm_trainer_scratch", "3d_fullres"
KINDS: dict[str, dict[str, str]] = {"chosen": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def iterations(preprocessed: Path, minutes: float, kind: dict[str, str]) -> int:
    """Iterations of a training of so many minutes; its validation is left out."""
    with tempfile.TemporaryDirectory() as results:
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        folders = {"nnUNet_raw": str(preprocessed), "nnUNet_preprocessed": str(preprocessed), "nnUNet_results": results}
        command = [str(Path(sys.executable).with_name("nnUNetv2_train")), next(preprocessed.iterdir()).name]
        command += [CONFIGURATION, "all", "-tr", TRAINER, "-p", PLANS, "-device", "cpu"]
        process = subprocess.Popen(
            command, env={**kept, **folders, **kind, "nnUNet_n_proc_DA": "0"}, stdout=subprocess.DEVNULL
        )
        record = "*/*/fold_all/training_record.json"
        final = "*/*/fold_all/checkpoint_final.pth"
        while not any(Path(results).glob(final)):
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}")
            time.sleep(1)
        process.terminate()
        process.wait()
        (file,) = Path(results).glob(record)
        return int(json.loads(file.read_text(encoding="utf-8"))["iterations"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="output folder of `nnunet-fm demo`")
    parser.add_argument("--loops", type=int, default=0, help="processes that compute meanwhile (default: none)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind (default: 3)")
    given = parser.parse_args()
    (source,) = (given.demo / "nnUNet_preprocessed").iterdir()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / source.name
        shutil.copytree(source, folder)
        plan = json.loads((folder / "FMPlans_demo.json").read_text(encoding="utf-8"))
        plan["plans_name"] = PLANS
        plan["nnunet_fm"]["recipe"]["max_minutes"] = given.minutes
        (folder / f"{PLANS}.json").write_text(json.dumps(plan), encoding="utf-8")
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.loops)]
        found: dict[str, list[int]] = {name: [] for name in KINDS}
        try:
            for number in range(given.rounds):
                for name in list(KINDS)[:: 1 if number % 2 == 0 else -1]:
                    found[name].append(iterations(Path(temporary), given.minutes, KINDS[name]))
                    print(f"{name}: {found[name][-1]} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        finally:
            for loop in loops:
                loop.kill()
    print(json.dumps({"loops": given.loops, "minutes": given.minutes, "iterations": found}))


if __name__ == "__main__":
    main()
