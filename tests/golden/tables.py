"""Tables: scores of label maps, and all numbers of a report on made-up results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_fm.reporting.report import write_report
from tests.golden.command import succeed
from tests.golden.record import Subjects, plain
from tests.helpers.datasets import blobs, write_dataset, write_image
from tests.helpers.results_maker import make_results

SHAPE, SPACING = (14, 40, 36), (2.5, 1.0, 1.2)
EVALUATIONS = {
    "plain": [],
    "smoothed, background": ["--empty", "smoothed", "--include-background", "--tolerance", "2"],
    "slices": ["--per-slice", "--metrics", "Dice", "Jaccard", "--slice-axis", "y", "--group-by", "case"],
}


def tables(root: Path) -> Subjects:
    """Files ``tables/evaluation ...`` and ``tables/report``."""
    predictions, references = _label_maps(root)
    for name, options in EVALUATIONS.items():
        file = root / f"{name}.csv"
        said = succeed("evaluate", predictions, references, *options, "-np", "1", "-o", file)
        content = json.loads(succeed("evaluate", predictions, references, *options, "-np", "1", "--json")["out"][-1])
        del content["scores"]
        yield f"tables/evaluation, {name}", plain({"printed": said, "csv": _rows(file), "json": content}, root)
    results = make_results(
        models=("A", "B"),
        controls=("stock", "scratch"),
        datasets=("Dataset905_MRI", "Dataset906_CT"),
        across=True,
        adapted=("selftraining",),
        cases=6,
        nan_share=0.1,
    )
    missing = write_report(results, root / "report", pictures=False)
    found = {file.name: _rows(file) for file in sorted((root / "report" / "tables").glob("*.csv"))}
    yield "tables/report", plain({"missing": missing, **found}, root)


def _label_maps(root: Path) -> tuple[Path, Path]:
    """Predictions of test images that are off by a little, one without a structure; and their references."""
    labels = {"background": 0, "one": 1, "two": 2, "never": 3}
    raw = write_dataset(root / "nnUNet_raw", 701, shape=SHAPE, spacing=SPACING, cases=3, test_cases=0, labels=labels)
    predictions, references = root / "predicted", raw / "labelsTs"
    for folder in (predictions, references):
        folder.mkdir()
    rng = np.random.default_rng(1)
    for case in range(4):
        _, reference = blobs(SHAPE, 2, rng)
        predicted = np.roll(reference, case, axis=1 + case % 2)
        if case == 3:
            predicted[predicted == 2] = 0
        write_image(references / f"t{case}.nii.gz", reference, SPACING)
        write_image(predictions / f"t{case}.nii.gz", predicted, SPACING)
    return predictions, references


def _rows(file: Path) -> list[Any]:
    with file.open(newline="", encoding="utf-8") as opened:
        return [" | ".join(_number(cell) for cell in row) for row in csv.reader(opened)]


def _number(cell: str) -> str:
    """A number to nine digits: the last ones are the processor's."""
    try:
        return f"{float(cell):.9g}" if "." in cell else cell
    except ValueError:
        return cell
