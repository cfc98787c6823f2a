"""Stock nnU-Net on the demo's data, given the same minutes of training on the same machine.

    python benchmarks/stock_comparison.py DEMO_OUTPUT --minutes 6

``DEMO_OUTPUT`` is the folder of a finished `nnunet-fm demo`; its raw data are used. Stock planning (``nnUNetPlans``,
``3d_fullres``), stock augmentation, loss, optimiser and mirroring; only the length is set: a few steps are timed, and
the number of epochs is chosen so that the training, learning rate included, ends with the minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TRAINER = "nnUNetTrainerMinutes"
TRAINER_CODE = '''
import os, time
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerMinutes(nnUNetTrainer):
    """Stock training whose number of epochs fits a number of minutes."""

    def on_train_start(self):
        super().on_train_start()
        started = time.monotonic()
        for _ in range(8):
            self.train_step(next(self.dataloader_train))
        seconds = (time.monotonic() - started) / 8
        budget = 60 * float(os.environ["MINUTES"]) - (time.monotonic() - started)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 10, 1
        self.num_epochs = max(1, int(budget / (11 * seconds)))
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.lr_scheduler = PolyLRScheduler(self.optimizer, self.initial_lr, self.num_epochs)
        self.save_every = 1000
        self.started = time.monotonic()

    def on_train_end(self):
        print(f"TRAINED {self.num_epochs * 10} iterations in {time.monotonic() - self.started:.0f} s", flush=True)
        super().on_train_end()
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="output folder of `nnunet-fm demo`")
    parser.add_argument("--minutes", type=float, default=6.0)
    arguments = parser.parse_args()
    from nnunet_fm.evaluation.dice import dice_scores, mean_foreground, mean_per_class

    base = arguments.demo / "stock"
    external = base / "trainer"
    external.mkdir(parents=True)
    (external / "minutes.py").write_text(TRAINER_CODE)
    environment = os.environ | {
        "nnUNet_raw": str(arguments.demo / "nnUNet_raw"),
        "nnUNet_preprocessed": str(base / "preprocessed"),
        "nnUNet_results": str(base / "results"),
        "nnUNet_extTrainer": str(external),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "2",
        "MINUTES": str(arguments.minutes),
    }
    (dataset,) = (arguments.demo / "nnUNet_raw").iterdir()
    number, predictions = dataset.name[len("Dataset") :].split("_")[0], base / "predictions"
    model = ["-c", "3d_fullres", "-f", "all", "-tr", TRAINER, "-device", "cpu"]
    planning = "nnUNetv2_plan_and_preprocess"
    steps = {
        "plan and preprocess": [planning, "-d", number, "-c", "3d_fullres", "-npfp", "2", "-np", "2"],
        "train": ["nnUNetv2_train", number, "3d_fullres", "all", "-tr", TRAINER, "-device", "cpu"],
        "predict": ["nnUNetv2_predict", "-d", number, "-i", str(dataset / "imagesTs"), "-o", str(predictions), *model,
                    "-npp", "1", "-nps", "1"],
    }  # fmt: skip
    seconds = {}
    for step, command in steps.items():
        started = time.monotonic()
        program = Path(sys.executable).with_name(command[0])
        if (
            step == "train"
        ):  # as the demo: on two cores a loader process takes one from the training (planning needs one)
            environment["nnUNet_n_proc_DA"] = "0"
        done = subprocess.run([program, *command[1:]], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{step} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        seconds[step] = round(time.monotonic() - started, 1)
        print("\n".join(line for line in done.stdout.splitlines() if line.startswith("TRAINED")), file=sys.stderr)
    labels = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["labels"]
    scores = dice_scores(predictions, dataset / "labelsTs", labels)
    result = {
        "mean_dice": round(mean_foreground(scores), 4),
        "dice_per_class": {name: round(value, 4) for name, value in mean_per_class(scores).items()},
        "seconds": seconds,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
