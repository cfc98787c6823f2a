"""A case's logits -> its label map file: our plan and export against stock nnU-Net's default plan."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import dataset
from benchmarks.harness import Benchmark, Goal, Side
from benchmarks.measure import Measurement, measure, threads

CLASSES = 24
SPACING, FILE_SPACING = (1.5, 1.5, 1.5), (1.2, 1.2, 1.2)
STOCK = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
"""Arguments of ``resample_data_or_seg_to_shape`` for probabilities in nnU-Net's own plans."""


def prepare(folder: Path, small: bool) -> None:
    """A plan, and logits as smooth as a trained network's: 24 classes on 128 × 240 × 240 voxels."""
    import json

    import numpy as np
    import torch

    dataset.write_dataset(folder, [(24, 24, 24)], FILE_SPACING, organs=CLASSES - 1)
    plans = dataset.plan("FMPlans_export", "FMPlanner_stunet_s", spacing=list(SPACING), patch=[32, 32, 32])
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    shape = (16, 24, 24) if small else (128, 240, 240)
    coarse = torch.randn(1, CLASSES, *(edge // 8 for edge in shape), generator=torch.Generator().manual_seed(0))
    logits = 5 * torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0]
    np.save(folder / "logits.npy", logits.numpy())


def run(side: Side, folder: Path, small: bool) -> Measurement:
    """Export once; nothing warms up, as a folder's cases are exported by workers that have just started."""
    os.environ["nnUNet_def_n_proc"] = str(threads())  # nnU-Net lets PyTorch use so many threads
    import json

    import numpy as np
    import torch

    torch.set_num_threads(threads())
    plans: dict[str, Any] = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    description = json.loads((folder / "nnUNet_raw" / dataset.NAME / "dataset.json").read_text(encoding="utf-8"))
    task = exporter(side, plans, description, np.load(folder / "logits.npy"), folder / side)
    return measure(task, repeats=1, warm_up=0)


def exporter(
    side: Side, plans: dict[str, Any], description: dict[str, Any], logits: Any, target: Path
) -> Callable[[], None]:
    """What writes the label map of logits ``(K, Z, Y, X)`` on the plan's grid, a quarter finer along each axis."""
    import numpy as np
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_fm.hook import install
    from nnunet_fm.inference.cases import CaseFailure, CaseFiles, PlannedModel
    from nnunet_fm.inference.export import export

    install()
    entry = plans["configurations"]["3d_fullres"]
    if side == "opponent":
        entry["resampling_fn_probabilities"] = "resample_data_or_seg_to_shape"
        entry["resampling_fn_probabilities_kwargs"] = STOCK
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    _ = configuration.resampling_fn_probabilities, manager.image_reader_writer_class
    shape = tuple(round(edge * 1.25) for edge in logits.shape[1:])
    properties = {
        "spacing": list(FILE_SPACING),
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, edge] for edge in shape],
        "sitk_stuff": {
            "spacing": FILE_SPACING[::-1], "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel().tolist()),
        },
    }  # fmt: skip

    def ours() -> None:
        case = CaseFiles([], None, target)
        done = export(PlannedModel(manager, configuration, description), case, logits, copy.deepcopy(properties), False)
        if isinstance(done, CaseFailure):
            raise RuntimeError(done.reason)

    def stock() -> None:
        export_prediction_from_logits(
            torch.from_numpy(logits), properties, configuration, manager, description, str(target)
        )

    return ours if side == "ours" else stock


def compare(folder: Path, small: bool) -> dict[str, float]:
    """Share of the foreground on which the label maps differ."""
    import SimpleITK as sitk

    ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(folder / f"{side}.nii.gz")) for side in ("ours", "opponent"))
    return {"share of the foreground that differs": float((ours != theirs).sum() / ((ours > 0) | (theirs > 0)).sum())}


BENCHMARKS = (
    Benchmark(
        "export", "export of logits, 24 × 128 × 240 × 240 to 160 × 300 × 300", run, prepare, compare,
        {"wall": Goal(5, 10)},
    ),
)  # fmt: skip
