"""Made-up abdominal CT in nnU-Net's raw layout, plans for it, and nnU-Net's folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBER = 900
NAME = f"Dataset{NUMBER}_MadeUp"
ORGANS = 24
INTENSITIES = {"mean": 60.0, "std": 120.0, "min": -1024.0, "max": 900.0, "median": 50.0,
               "percentile_00_5": -300.0, "percentile_99_5": 400.0}  # fmt: skip
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def use(folder: Path) -> None:
    """Point nnU-Net's variables of this process, and of those it starts, into a folder."""
    for name in FOLDERS:
        os.environ[name] = str(folder / name)
        (folder / name).mkdir(parents=True, exist_ok=True)


def body(shape: Sequence[int], seed: int, organs: int = ORGANS) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A body in air with rugged organs of different sizes, scanner noise, and a round field of view; ``(Z, Y, X)``."""
    from scipy import ndimage

    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    coarse = random.normal(0, 1, [max(2, n // 16) for n in shape]).astype(np.float32)
    texture = ndimage.zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=1)
    inside = (y / 0.65) ** 2 + (x / 0.85) ** 2 < 1 - 0.1 * np.abs(z)
    image = np.where(inside, 20 + 30 * texture, np.float32(-1000))
    labels = np.zeros(shape, np.uint8)
    for organ in range(1, organs + 1):
        centre = random.uniform([-0.9, -0.45, -0.6], [0.9, 0.45, 0.6]).astype(np.float32)
        radii = random.uniform(0.08, 0.4, 3).astype(np.float32)
        axes = zip((z, y, x), centre, radii, strict=True)
        organ_mask = sum(((axis - c) / r) ** 2 for axis, c, r in axes) < 1 + 0.3 * texture
        labels[organ_mask] = organ
        image[organ_mask] = random.uniform(-100, 300)
    image = ndimage.gaussian_filter(image, 0.7) + random.normal(0, 15, shape).astype(np.float32)
    image[np.broadcast_to(y**2 + x**2 > 1, shape)] = -1024
    return image.clip(-1024, 3000).astype(np.int16), labels


def write_dataset(
    folder: Path, shapes: Sequence[Sequence[int]], spacing: Sequence[float], *, organs: int = ORGANS, channels: int = 1
) -> None:
    """Write a training case of each shape (z, y, x), spacing in mm, with its fingerprint; sets nnU-Net's variables.

    Channels are the same image.
    """
    import SimpleITK as sitk

    use(folder)
    raw, preprocessed = folder / "nnUNet_raw" / NAME, folder / "nnUNet_preprocessed" / NAME
    for part in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        part.mkdir(parents=True, exist_ok=True)
    for index, shape in enumerate(shapes):
        image, labels = body(shape, index, organs)
        files = {f"imagesTr/case_{index}_{channel:04}": image for channel in range(channels)}
        for file, array in {**files, f"labelsTr/case_{index}": labels}.items():
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing([float(edge) for edge in reversed(spacing)])
            sitk.WriteImage(volume, str(raw / f"{file}.nii.gz"), True)
    description = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, **{f"organ {i}": i for i in range(1, organs + 1)}},
        "numTraining": len(shapes),
        "file_ending": ".nii.gz",
    }
    fingerprint = {
        "spacings": [list(spacing)] * len(shapes),
        "shapes_after_crop": [list(shape) for shape in shapes],
        "foreground_intensity_properties_per_channel": {str(channel): INTENSITIES for channel in range(channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    (raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")


def plan(name: str, planner: str, **options: Any) -> dict[str, Any]:
    """Plan the dataset with one of our planners, its `Options` given by name; writes and returns the plans."""
    from nnunet_fm.plans.planner import Options, planner_class

    return planner_class(planner)(NUMBER, 40, plans_name=name, options=Options(**options)).plan_experiment()


def preprocess(name: str, configuration: str) -> None:
    """Preprocess the dataset for plans, in this process."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    from nnunet_fm.hook import install

    install()
    preprocess_dataset(NUMBER, name, (configuration,), (1,), show_progress_bar=False)
