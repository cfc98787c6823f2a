"""nnU-Net's training transforms, as our trainers and as nnU-Net's run them, on samples from the same seeds."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import dataset
from benchmarks.harness import Benchmark, Goal, Side
from benchmarks.measure import Measurement, measure, threads

EDGE = 128
SEEDS = 24
WARM_UP, COMPARED = 4, 8
ANGLE = math.pi / 6


def prepare(folder: Path, small: bool, *, organs: int) -> None:
    """One loaded patch of a made-up CT, normalised; larger than the network's, as nnU-Net cuts it out."""
    import numpy as np
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

    angle = (-ANGLE, ANGLE)
    loaded = get_patch_size(_patch(small), angle, angle, angle, (0.85, 1.25))
    image, labels = dataset.body([int(edge) for edge in loaded], seed=0, organs=organs)
    scale, offset = 1 / dataset.INTENSITIES["std"], dataset.INTENSITIES["mean"]
    np.save(folder / "image.npy", (image[None].astype(np.float32) - offset) * scale)
    np.save(folder / "labels.npy", labels[None].astype(np.int16))


def run(side: Side, folder: Path, small: bool, *, organs: int) -> Measurement:
    """Augment a sample for each seed, one after the other in one process."""
    import torch

    torch.set_num_threads(threads())
    transforms, sample = _transforms(side, small, organs), _sample(folder)
    for seed in range(WARM_UP):
        _draw(transforms, sample, seed)
    return measure(lambda: [_draw(transforms, sample, seed) for seed in range(_seeds(small))], repeats=1, warm_up=0)


def compare(folder: Path, small: bool, *, organs: int) -> dict[str, float]:
    """How far the sides are from each other, over samples of a few seeds."""
    import numpy as np

    ours, stock, sample = _transforms("ours", small, organs), _transforms("opponent", small, organs), _sample(folder)
    voxels, labels, differences = 0, 0, []
    for seed in range(min(COMPARED, _seeds(small))):
        found, expected = _draw(ours, sample, seed), _draw(stock, sample, seed)
        differences.append(float((found["image"] - expected["image"]).abs().max() / expected["image"].std()))
        voxels += expected["segmentation"][0].numel()
        labels += int((found["segmentation"][0] != expected["segmentation"][0]).sum())
    return {
        "largest difference of images, in standard deviations": float(np.max(differences)),
        "share of labels that differ": labels / voxels,
    }


def _patch(small: bool) -> list[int]:
    return [24 if small else EDGE] * 3


def _seeds(small: bool) -> int:
    return 4 if small else SEEDS


def _transforms(side: Side, small: bool, organs: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_fm.data.augmentation import accelerated, without_timing

    scales = [[0.5**level] * 3 for level in range(4)]
    stock = nnUNetTrainer.get_training_transforms(
        _patch(small), (-ANGLE, ANGLE), scales, (0, 1, 2), False,
        use_mask_for_norm=[False], foreground_labels=list(range(1, organs + 1)),
    )  # fmt: skip
    # A training times stock's blur when it begins; the method without is the faster one for so small kernels.
    return accelerated(stock) if side == "ours" else without_timing(stock)


def _sample(folder: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    return {key: torch.from_numpy(np.load(folder / f"{file}.npy")) for key, file in
            (("image", "image"), ("segmentation", "labels"))}  # fmt: skip


def _draw(transforms: Any, sample: dict[str, Any], seed: int) -> dict[str, Any]:
    import numpy as np
    import torch

    np.random.seed(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        return transforms(**{key: value.clone() for key, value in sample.items()})


BENCHMARKS = tuple(
    Benchmark(
        name, f"augmentation of {SEEDS} samples, {EDGE} × {EDGE} × {EDGE}, {organs} labels",
        partial(run, organs=organs), partial(prepare, organs=organs), partial(compare, organs=organs),
        {"wall": goal},
    )
    for name, organs, goal in (("augmentation", 24, Goal(3, 10)), ("augmentation-few", 2, Goal(2, 4)))
)  # fmt: skip
