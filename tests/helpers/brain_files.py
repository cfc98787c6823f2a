"""Small files of the brain datasets: FreeSurfer's numbers, and the laboratory's HDF5 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.helpers.convert_tester import scene, voxels

CLASSES = (
    "background", "cerebellum_gm", "cerebellum_wm", "cerebral_gm", "cerebral_wm", "thalamus", "hippocampus", "amygdala",
    "ventricles", "caudate", "putamen", "pallidum", "ventral_dc", "csf", "brain_stem",
)  # fmt: skip

GROUPS = {
    8: 1, 47: 1, 7: 2, 46: 2, 3: 3, 42: 3, 26: 3, 58: 3, 1000: 3, 1035: 3, 2035: 3, 2999: 3, 2: 4, 41: 4, 251: 4,
    252: 4, 253: 4, 254: 4, 255: 4, 5: 4, 44: 4, 30: 4, 62: 4, 77: 4, 80: 4, 85: 4, 10: 5, 49: 5, 17: 6, 53: 6, 18: 7,
    54: 7, 4: 8, 43: 8, 14: 8, 15: 8, 72: 8, 31: 8, 63: 8, 11: 9, 50: 9, 12: 10, 51: 10, 13: 11, 52: 11, 28: 12,
    60: 12, 24: 13, 16: 14,
}  # fmt: skip
"""FreeSurfer's number -> class, with the first, the last and two more of the cortex's regions."""


def brain(seed: int, shape: tuple[int, int, int] = (10, 12, 14)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A float32 image, FreeSurfer's numbers (int16) and their classes (uint8), all (z, y, x)."""
    _, label = scene(seed, tuple(GROUPS), shape)
    classes = np.zeros(shape, np.uint8)
    for value, number in GROUPS.items():
        classes[label == value] = number
    image = np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32) + 30 * classes
    return image, label, classes


def write_flat(path: Path, seed: int, slices: tuple[int, ...], **changes: Any) -> list[dict[int, int]]:
    """A file of one volume per number of slices, 8 x 9 pixels; ``nx`` and ``ny`` mislead, as in real files.

    Returns:
        Voxels per class of each volume.
    """
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(CLASSES), (sum(slices), 8, 9), np.uint8)
    count = len(slices)
    content: dict[str, Any] = {
        "images": rng.random(classes.shape, np.float32),
        "labels": classes,
        "nx": np.full(count, 260, np.uint16),
        "ny": np.full(count, 311, np.uint16),
        "nz": np.array(slices, np.uint16),
        "px": np.full(count, 1.0, np.float32),
        "py": np.full(count, 1.2, np.float32),
        "pz": np.linspace(0.7, 1.5, count, dtype=np.float32),
        "patnames": np.array([f"{i + 1:06d}".encode() for i in range(count)]),
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
    return [voxels(part) for part in np.split(classes, np.cumsum(slices)[:-1])]
