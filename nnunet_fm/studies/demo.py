"""The demo: a training on bundled MRI with the commands that a user would type, and a page about it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from nnunet_fm.cpu.limits import environment, usable_cores
from nnunet_fm.dataset_conversion.demo import CREDIT, unpack
from nnunet_fm.errors import FailedError
from nnunet_fm.io.atomic_write import replacing
from nnunet_fm.io.untrusted import read_object

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DATASET = 904
MODEL = "stunet_s"
PLANS = "FMPlans_demo"
TRAINER = "fm_trainer_scratch"
CONFIGURATION = "3d_fullres"


class Demo:
    """One run of the demo: its folders, its commands and the seconds of each step.

    Args:
        output: folder to write to.
        as_json: keep standard output free for a JSON object.
        quiet: print nothing.
    """

    def __init__(self, output: Path, *, as_json: bool, quiet: bool = False) -> None:
        self.output = output
        # With --json, standard output belongs to the JSON object.
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True, quiet=quiet)
        self.folders = {name: output / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        self.dataset = self.folders["nnUNet_raw"]
        self.processes = min(2, usable_cores())
        self.settings = {
            **{name: str(folder) for name, folder in self.folders.items()},
            # By default nnU-Net starts up to twelve loader workers and eight processes on any machine.
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": str(self.processes),
        }
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}

    @property
    def fold(self) -> Path:
        """Folder of the trained model."""
        return self.folders["nnUNet_results"] / self.dataset.name / f"{TRAINER}__{PLANS}__{CONFIGURATION}" / "fold_all"

    def run(self, minutes: float) -> dict[str, Any]:
        """Unpack the data, plan, preprocess, train, predict and report; returns the numbers of the report.

        Raises:
            RuntimeError: if a command fails; the message has the end of its output and the log's place.
        """
        self.unpack()
        self.nnunet("fingerprint", "nnUNetv2_extract_fingerprint", "-d", DATASET, "-np", self.processes)
        self.nnunet(
            "plan", "nnunet-fm", "plan", "-d", DATASET, "-m", MODEL, "--variant", "quick", "--minutes", f"{minutes:g}",
            "--name", PLANS,
        )  # fmt: skip
        self.nnunet(
            "preprocess", "nnUNetv2_preprocess", "-d", DATASET, "-plans_name", PLANS, "-c", CONFIGURATION,
            "-np", self.processes, "--no_pbar",
        )  # fmt: skip
        self.nnunet(
            "train", "nnUNetv2_train", DATASET, CONFIGURATION, "all", "-tr", TRAINER, "-p", PLANS, "-device", "cpu",
            watch=self.watch_training(minutes),
        )  # fmt: skip
        images, predictions = self.dataset / "imagesTs", self.output / "predictions"
        self.nnunet(
            "predict", "nnUNetv2_predict", "-d", DATASET, "-i", images, "-o", predictions, "-c", CONFIGURATION,
            "-f", "all", "-tr", TRAINER, "-p", PLANS, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_progress_bar",
        )  # fmt: skip
        return self.report(predictions)

    def unpack(self) -> None:
        """Write the bundled dataset into nnUNet_raw and print the variables that repeat the commands."""
        for folder in self.folders.values():
            folder.mkdir(parents=True)
        self.dataset = unpack(self.folders["nnUNet_raw"], DATASET)
        self.console.print(f"Data: {CREDIT}\n")
        for name, value in self.settings.items():
            self._show(f"export {name}={shlex.quote(value)}")

    def nnunet(self, step: str, program: str, *arguments: object, watch: Callable[[], str] | None = None) -> None:
        """Run and time a command of this environment; its output goes to a log.

        Raises:
            RuntimeError: if the command fails; the message has the end of its output and the log's place.
        """
        words = [program, *map(str, arguments)]
        self._show(shlex.join(words))
        log = self.output / "logs" / f"{step}.txt"
        log.parent.mkdir(exist_ok=True)
        started = time.monotonic()
        with log.open("wb") as stream:
            # A program of this interpreter's environment, which need not be activated.
            words[0] = str(Path(sys.executable).with_name(program))
            process = subprocess.Popen(
                words,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment() | self.settings,
                stdin=subprocess.DEVNULL,
            )
            try:
                self._wait(process, step, started, watch)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        self.seconds[step] = round(time.monotonic() - started, 1)
        if process.returncode != 0:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
            raise FailedError(
                f"{program} failed with exit code {process.returncode}: {' | '.join(last)} (see {log})",
                code="command-failed",
            )

    def _wait(
        self, process: subprocess.Popen[bytes], step: str, started: float, watch: Callable[[], str] | None
    ) -> None:
        with self.console.status(step) as status:
            while process.poll() is None:
                time.sleep(0.5)
                seconds = time.monotonic() - started
                status.update(f"{step}: {watch() if watch else f'{seconds:.0f} s'}")

    def watch_training(self, minutes: float) -> Callable[[], str]:
        """Return a function that reports the training's state: seconds elapsed and left, epoch, Dice."""
        from nnunet_fm.reporting.training_log import newest_log, parse_log

        started = time.monotonic()

        def state() -> str:
            elapsed = time.monotonic() - started
            left = max(0.0, 60 * minutes - elapsed)
            log = newest_log(self.fold)
            epochs = parse_log(log.read_text(encoding="utf-8")) if log else None
            dice = (
                f", epoch {len(epochs)}, pseudo Dice {epochs['dice'].iloc[-1]:.3f}"
                if epochs is not None and len(epochs)
                else ""
            )
            return f"{elapsed:.0f} s, about {left:.0f} s left{dice}"

        return state

    def report(self, predictions: Path) -> dict[str, Any]:
        """Score the predictions, write the page, print the table; returns the object for --json."""
        # Imported late, so that PyTorch, pandas and Matplotlib take no memory while the commands run.
        from nnunet_fm.metrics.folder import evaluate_folder
        from nnunet_fm.metrics.labels import foreground
        from nnunet_fm.metrics.scores_table import DICE
        from nnunet_fm.metrics.summary import mean_foreground, mean_per_class
        from nnunet_fm.reporting.page import write_page
        from nnunet_fm.reporting.training_log import newest_log, parse_log

        started = time.monotonic()
        labels = read_object(self.dataset / "dataset.json")["labels"]
        scores = evaluate_folder(predictions, self.dataset / "labelsTs", labels, metrics=[DICE])
        figures = self._pictures(predictions, scores, foreground(labels)[0])
        self.seconds["report"] = round(time.monotonic() - started, 1)
        iterations, page = _iterations(self.fold), self.output / "page.html"
        log = newest_log(self.fold)
        write_page(
            page,
            title="nnunet-fm demo: hippocampus MRI",
            scores=scores,
            log=parse_log(log.read_text(encoding="utf-8") if log else ""),
            seconds=self.seconds,
            commands=self.commands,
            overlays=[(title, figure) for _, title, figure in figures],
            facts={
                "Network": "STU-Net small, from random weights",
                "Training": f"{len(os.listdir(self.dataset / 'labelsTr'))} cases, {iterations} iterations",
                "Curve": "of the training cases: fold `all` keeps none back",
                "Cores": str(usable_cores()),
                "Data": "Medical Segmentation Decathlon, Task04_Hippocampus, CC BY-SA 4.0",
            },
        )
        result = {
            "mean_dice": round(mean_foreground(scores), 4),
            "dice_per_class": {name: round(value, 4) for name, value in mean_per_class(scores).items()},
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 1)},
            "iterations": iterations,
            "output": str(self.output),
            "page": str(page),
            "pictures": [str(picture) for picture, _, _ in figures],
            "plans": str(self.folders["nnUNet_preprocessed"] / self.dataset.name / f"{PLANS}.json"),
            "model": str(self.fold.parent),
            "predictions": str(predictions),
        }
        self._print_table(scores, result)
        return result

    def _pictures(
        self, predictions: Path, scores: pd.DataFrame, classes: Mapping[str, Any]
    ) -> list[tuple[Path, str, Figure]]:
        """Write pictures of the worst, the median and the best case; returns file, title and figure of each."""
        from nnunet_fm.reporting.overlay import overlay_figure

        made = []
        for rank, case in _worst_median_best(scores).items():
            files = (self.dataset / "imagesTs" / f"{case}_0000.nii.gz", self.dataset / "labelsTs" / f"{case}.nii.gz")
            dice = scores.loc[scores["case"] == case, "value"].mean()
            figure = overlay_figure(*files, predictions / f"{case}.nii.gz", classes)
            picture = self.output / "pictures" / f"{rank}_{case}.png"
            picture.parent.mkdir(exist_ok=True)
            with replacing(picture) as partial:
                figure.savefig(partial, format="png")
            made.append((picture, f"{case}, {rank} of the unseen cases: mean Dice {dice:.3f}", figure))
        return made

    def _print_table(self, scores: pd.DataFrame, result: dict[str, Any]) -> None:
        from nnunet_fm.metrics.summary import per_case

        table = Table(title="Dice on unseen cases")
        table.add_column("case")
        by_case = per_case(scores)
        for name in by_case.columns:
            table.add_column(name, justify="right")
        for case, row in by_case.iterrows():
            table.add_row(str(case), *(f"{value:.3f}" for value in row))
        table.add_section()
        table.add_row("mean", *(f"{value:.3f}" for value in by_case.mean()))
        self.console.print(table)
        steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in result["seconds"].items())
        self.console.print(f"Mean foreground Dice {result['mean_dice']:.3f}. Seconds: {steps}.")
        self.console.print(f"Page with pictures: {result['page']}")

    def _show(self, command: str) -> None:
        self.commands.append(command)
        self.console.print(f"$ {command}", markup=False)


def _worst_median_best(scores: pd.DataFrame) -> dict[str, str]:
    """Cases of lowest, median and highest mean Dice."""
    ranked = scores.groupby("case")["value"].mean().sort_values().index
    return {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}


def _iterations(fold: Path) -> int:
    """Optimiser steps of the finished training, from its checkpoint."""
    from nnunet_fm.weights.files import read_trained

    return int(read_trained(fold / "checkpoint_final.pth")["nnunet_fm"]["iteration"])
