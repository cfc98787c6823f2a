"""Every number of a study's report, computed again from its predictions, records and checkpoints, by other code.

    python tests/helpers/study_check.py STUDY_FOLDER      with nnU-Net's variables set as for the study

Nothing of ``nnunet_fm`` is used: Dice, Jaccard and volumes are counted in NumPy, HD95 is taken from distance maps.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from scipy import ndimage, stats

STEPS = ("reading", "preprocessing", "inference", "export")
Scores = dict[tuple[str, str, str, str, str], float]
"""(run, target, case, class, metric) -> value."""


def mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def edge(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def hd95(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> float:
    if not reference.any() or not prediction.any():
        return math.nan
    here, there = edge(np.pad(reference, 1)), edge(np.pad(prediction, 1))
    distances = []
    for one, other in ((here, there), (there, here)):
        to_other = ndimage.distance_transform_edt(~other, sampling=spacing)
        distances.append(np.percentile(to_other[one], 95))
    return float(max(distances))


def read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), tuple(reversed(image.GetSpacing()))


def score(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    both, either = int((reference & prediction).sum()), int((reference | prediction).sum())
    size = int(reference.sum()) + int(prediction.sum())
    millilitres = math.prod(spacing) / 1000
    return {
        "Dice": 2 * both / size if size else math.nan,
        "Jaccard": both / either if either else math.nan,
        "HD95": hd95(reference, prediction, spacing),
        "volume_reference": float(reference.sum()) * millilitres,
        "volume_prediction": float(prediction.sum()) * millilitres,
    }


class Study:
    """A study's folder, read without the package."""

    def __init__(self, folder: Path) -> None:
        self.tables = folder / "report" / "tables"
        self.runs = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/run.json")}
        self.scores: Scores = {}
        self.seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.compared = 0
        for run in self.runs:
            for target in (path for path in (folder / "runs" / run).iterdir() if path.is_dir()):
                self._score(run, target)

    def _score(self, run: str, target: Path) -> None:
        raw = Path(os.environ["nnUNet_raw"], target.name)
        labels = json.loads((raw / "dataset.json").read_text())["labels"]
        for file in sorted((target / "predictions").glob("*.nii.gz")):
            (truth,) = (path for name in ("labelsTs", "labelsTr") for path in raw.glob(f"{name}/{file.name}"))
            (reference, spacing), (prediction, _) = read(truth), read(file)
            for name, label in labels.items():
                if label != 0:
                    found = score(reference == label, prediction == label, spacing)
                    for metric, value in found.items():
                        self.scores[run, target.name, file.name.removesuffix(".nii.gz"), name, metric] = value
        times = json.loads((target / "predictions" / "prediction_times.json").read_text())
        self.seconds[run] += times["cases"].values()

    def table(self, name: str) -> list[dict[str, Any]]:
        frame = pd.read_csv(self.tables / f"{name}.csv", keep_default_na=False, na_values=[""])
        return frame.to_dict("records")

    def same(self, what: Any, ours: float, report: float, tolerance: float = 1e-9) -> None:
        close = math.isclose(ours, report, rel_tol=tolerance, abs_tol=tolerance)
        assert close or (math.isnan(ours) and pd.isna(report)), f"{what}: {ours} here, {report} in the report"
        self.compared += 1

    def labels(self, *, adapted: bool = False) -> dict[str, list[str]]:
        """Label -> its runs; those of adapted models only where they are asked for."""
        found = defaultdict(list)
        for name, run in self.runs.items():
            if adapted or run["method"] is None:
                found[run["label"]].append(name)
        return found

    def case_means(self, runs: list[str]) -> dict[tuple[str, str], float]:
        """(target, case) -> mean over runs of means over classes, in the domain the runs were trained on."""
        values: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (run, target, case, _, metric), value in self.scores.items():
            if run in runs and metric == "Dice" and target == self.runs[run]["dataset"]:
                values[target, case][run].append(value)
        return {case: mean(mean(v) for v in by_run.values()) for case, by_run in values.items()}


def check_ranking(study: Study) -> None:
    cases = {label: study.case_means(runs) for label, runs in study.labels().items()}
    means = {label: mean(values.values()) for label, values in cases.items()}
    best = max(means, key=means.__getitem__)
    pairs, raw = list(itertools.combinations(means, 2)), []
    for a, b in pairs:
        common = sorted(set(cases[a]) & set(cases[b]))
        differences = np.round([cases[a][c] - cases[b][c] for c in common], 12)
        raw.append(stats.wilcoxon(differences).pvalue if np.any(differences) else 1.0)
    holm, largest = {}, 0.0
    for place, index in enumerate(np.argsort(raw, kind="stable")):
        largest = max(largest, min(1.0, (len(raw) - place) * raw[index]))
        holm[frozenset(pairs[index])] = largest
    rows = study.table("ranking")
    assert {row["label"] for row in rows} == set(means)
    for row in rows:
        label = row["label"]
        study.same((label, "mean"), means[label], row["mean"])
        study.same((label, "rank"), 1 + sum(value > means[label] for value in means.values()), row["rank"])
        study.same((label, "difference"), 100 * (means[label] / means[best] - 1), row["difference %"])
        if label != best and len(means) > 1:
            study.same((label, "p"), holm[frozenset((label, best))], row["p (Holm) against the best"], 1e-6)
        values = [value for value in cases[label].values() if not math.isnan(value)]
        low = high = values[0]  # of cases that score alike, such as 0 each; their bootstrap is not defined
        if np.ptp(values) > 0:
            interval = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, random_state=1)
            low, high = interval.confidence_interval
        study.same((label, "low"), low, row["low"], 0.1 * (high - low))  # another seed
        study.same((label, "high"), high, row["high"], 0.1 * (high - low))
        by_run = [mean(study.case_means([run]).values()) for run in study.labels()[label]]
        if len(by_run) > 1 and "sd over runs" in row:  # runs of several datasets have none in common
            study.same((label, "sd"), float(np.std(by_run, ddof=1)), row["sd over runs"])


def check_classes(study: Study) -> None:
    labels = study.labels()

    def value(dataset: str, name: str, label: str, metric: str) -> float:
        values = defaultdict(list)
        for (run, target, case, cls, found), number in study.scores.items():
            own = study.runs[run]["dataset"] == target == dataset
            if run in labels[label] and own and cls == name and found == metric:
                values[case].append(number)
        return mean(mean(numbers) for numbers in values.values())

    for row in study.table("metrics"):
        for metric in ("Dice", "Jaccard", "HD95", "volume_reference", "volume_prediction"):
            what = row["dataset"], row["class"], row["label"], metric
            study.same(what, value(*what), row[metric], 1e-4 if metric == "HD95" else 1e-9)
    for row in study.table("classes"):
        for label in labels:
            study.same(("classes", row["class"]), value(row["dataset"], row["class"], label, "Dice"), row[label])


def check_cost(study: Study) -> None:
    labels = study.labels(adapted=True)
    for row in study.table("models"):
        folder = Path(study.runs[labels[row["label"]][0]]["model_folder"])
        (checkpoint,) = list(folder.glob("fold_*/checkpoint_final.pth"))[:1]
        weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
        counted = sum(w.numel() for k, w in weights.items() if "running_" not in k and "num_batches" not in k)
        # Some networks store buffers, and nnU-Net's decoders the encoder a second time.
        assert row["parameters"] <= counted, row["label"]
        study.compared += 1
    for row in study.table("seconds"):
        cases = [case for run in labels[row["label"]] for case in study.seconds[run]]
        for step in STEPS:
            study.same((row["label"], step), mean(case[step] for case in cases), row[step])
        study.same((row["label"], "total"), sum(mean(c[s] for c in cases) for s in STEPS), row["total"])


def check(folder: Path) -> int:
    """Number of values compared; raises where one differs."""
    study = Study(folder)
    assert study.scores
    check_ranking(study)
    check_classes(study)
    check_cost(study)
    return study.compared


if __name__ == "__main__":
    print(f"{check(Path(sys.argv[1]))} numbers of the report agree with the predictions")
