"""Small datasets in nnU-Net's raw layout, made on the spot, for tests of planning, preprocessing and training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch


def nnunet_folders(root: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> dict[str, str]:
    """Create nnU-Net's three folders and point its variables to them; returns the variables."""
    variables = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in variables.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        if monkeypatch is not None:
            monkeypatch.setenv(name, folder)
    return variables


@contextmanager
def training_folders(root: Path) -> Iterator[dict[str, str]]:
    """nnU-Net's folders for trainings in this process: one thread, no worker processes, no plot of every epoch.

    Gives the variables; what was written goes at the end.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        variables = nnunet_folders(root, patch)
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr("multiprocessing.get_context", lambda _: SimpleNamespace(Pool=ThreadPool, Event=Event))
        patch.setattr("nnunetv2.training.logging.nnunet_logger.MetaLogger.plot_progress_png", lambda *_: None)
        yield variables
    torch.set_num_threads(threads)
    shutil.rmtree(root)


def write_image(path: Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    """Write an array (z, y, x) with a spacing in mm (z, y, x)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    sitk.WriteImage(image, str(path))


def skew(file: Path) -> None:
    """Tilt the first axis of a NIfTI file against the second."""
    import nibabel

    affine = np.eye(4)
    affine[0, 1] = 0.3
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T
    nibabel.save(nibabel.Nifti1Image(array, affine), file)


def blobs(shape: Sequence[int], labels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image with one bright ellipsoid per label, and its label map."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = rng.normal(0, 10, shape).astype(np.float32) + 100
    seg = np.zeros(shape, np.uint8)
    for label in range(1, labels + 1):
        centre = rng.uniform(-0.4, 0.4, 3)
        inside = (((grid - centre[:, None, None, None]) / 0.35) ** 2).sum(0) < 1
        seg[inside] = label
        image[inside] += 60 * label
    return image, seg


def write_dataset(
    raw: str | Path,
    number: int,
    *,
    shape: Sequence[int] = (24, 32, 28),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    cases: int = 6,
    channels: Sequence[str] = ("MRI",),
    labels: Mapping[str, Any] | None = None,
    name: str = "Blobs",
    test_cases: int = 1,
    **dataset_json: Any,
) -> Path:
    """Write ``Dataset<number>_<name>`` into nnUNet_raw; returns its folder."""
    folder = Path(raw, f"Dataset{number:03d}_{name}")
    labels = labels or {"background": 0, "one": 1, "two": 2}
    values = {v for value in labels.values() for v in (value if isinstance(value, (list, tuple)) else [value])}
    rng = np.random.default_rng(number)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in range(cases + test_cases):
        images = "imagesTr" if case < cases else "imagesTs"
        image, seg = blobs(shape, max(values), rng)
        for channel in range(len(channels)):
            write_image(folder / images / f"case_{case:02d}_{channel:04d}.nii.gz", image * (1 + channel), spacing)
        if case < cases:
            write_image(folder / "labelsTr" / f"case_{case:02d}.nii.gz", seg, spacing)
    content = {
        "channel_names": {str(i): c for i, c in enumerate(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **dataset_json,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_files(raw: Path, name: str, number: int = 1, labels: Mapping[str, int] | None = None, cases: int = 6) -> Path:
    """Write a dataset of empty files into nnUNet_raw; returns its folder."""
    folder = raw / f"Dataset{number:03d}_{name}"
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True)
        for case in range(cases if part.endswith("Tr") else 2):
            (folder / part / f"c{case}{'_0000' if part.startswith('images') else ''}.nii.gz").touch()
    content = {
        "channel_names": {"0": "CT"},
        "labels": labels or {"background": 0, "one": 1},
        "file_ending": ".nii.gz",
        "numTraining": cases,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_fingerprint(folder: Path, shapes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> None:
    """Write the fingerprint a dataset of such images would have, without making the images."""
    channels = json.loads((folder / "dataset.json").read_text())["channel_names"]
    numbers = {"mean": 50.0, "std": 80.0, "min": -900.0, "max": 900.0, "median": 40.0,
               "percentile_00_5": -200.0, "percentile_99_5": 400.0}  # fmt: skip
    target = Path(os.environ["nnUNet_preprocessed"], folder.name)
    target.mkdir(parents=True, exist_ok=True)
    fingerprint = {
        "spacings": [list(map(float, s)) for s in spacings],
        "shapes_after_crop": [list(map(int, s)) for s in shapes],
        "foreground_intensity_properties_per_channel": {c: numbers for c in channels},
        "median_relative_size_after_cropping": 1.0,
    }
    (target / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def extract_fingerprint(number: int) -> None:
    """nnU-Net's fingerprint of a dataset, from 10,000 voxels in place of 100 million, which it draws of any dataset."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    class Brief(DatasetFingerprintExtractor):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.num_foreground_voxels_for_intensitystats = 1e4

    extract_fingerprint_dataset(number, Brief, num_processes=1, show_progress_bar=False)


def empty(folder: Path) -> None:
    """Remove what a folder holds: checkpoints are large."""
    shutil.rmtree(folder)
    folder.mkdir()
