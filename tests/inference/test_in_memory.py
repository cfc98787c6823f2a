"""Prediction in memory: the command's label maps for arrays, images and paths, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import nnunet_fm
from nnunet_fm.inference.inputs import PredictionInputError
from nnunet_fm.inference.predict import predict_folder
from tests.helpers.tiny_models import write_model

HERE = {"device": torch.device("cpu"), "processes_preprocessing": 0, "processes_export": 0}
SHAPE = (14, 11, 12)
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_images(folder: Path, channels: int = 1, cases: int = 2, *, turned: bool = False) -> list[list[Path]]:
    """Images of noise with a bright block; the files of each case."""
    draw = np.random.default_rng(3)
    folder.mkdir()
    files = []
    for case in range(cases):
        files.append([folder / f"case_{case}_{channel:04d}.nii.gz" for channel in range(channels)])
        for file in files[-1]:
            voxels = draw.normal(100, 20, SHAPE).astype(np.float32)
            voxels[3:9, 2:7, 4:10] += 80
            image = sitk.GetImageFromArray(voxels)
            image.SetSpacing((1.0, 1.25, 2.0)), image.SetOrigin((5.0, -3.0, 9.0))
            if turned:
                image = sitk.DICOMOrient(image, "SAL")
            sitk.WriteImage(image, str(file))
    return files


def by_command(model: Path, images: Path, output: Path, **options: Any) -> list[sitk.Image]:
    """Label maps that the command writes."""
    predict_folder(model, images, output, **{"folds": [0], **HERE, **options})
    return [sitk.ReadImage(str(file)) for file in sorted(output.glob("*.nii.gz"))]


@pytest.mark.parametrize(
    ("made", "channels", "turned"),
    [
        ({}, 1, False),
        ({"folds": (0, 1), "labels": REGIONS, "regions_class_order": [1, 2], "channels": ["T1", "T2"]}, 2, False),
        ({"reader": "NibabelIOWithReorient"}, 1, True),
        ({"configuration": "2d"}, 1, False),
    ],
    ids=["labels", "regions, folds and channels", "turned", "2d"],
)
def test_every_kind_of_image_gives_the_label_map_of_the_command(
    made: dict[str, Any], channels: int, turned: bool, tmp_path: Path, one_thread: None
) -> None:
    folds = made.get("folds", (0,))
    model = write_model(tmp_path / "model", **made)
    files = write_images(tmp_path / "images", channels, turned=turned)
    wanted = by_command(model, tmp_path / "images", tmp_path / "out", folds=folds)
    predictor = nnunet_fm.Predictor(model)
    assert predictor.channels == list(made.get("channels", ["MRI"])) and predictor.labels["background"] == 0
    for case, expected in zip(files, wanted, strict=True):
        labels = sitk.GetArrayFromImage(expected)
        assert len(np.unique(labels)) > 1
        images = [sitk.ReadImage(str(file)) for file in case]
        found = predictor.predict(images[0] if channels == 1 else images)
        assert (sitk.GetArrayFromImage(found) == labels).all()
        assert found.GetOrigin() == pytest.approx(expected.GetOrigin())
        assert found.GetDirection() == pytest.approx(expected.GetDirection())
        read = predictor.predict(case if channels > 1 else case[0])
        if not turned:
            assert (read == labels).all()
            arrays = np.stack([sitk.GetArrayFromImage(image) for image in images])
            given = arrays if channels > 1 else arrays[0]
            assert (predictor.predict(given, spacing=(2.0, 1.25, 1.0)) == labels).all()
        _, shares = predictor.predict(case, probabilities=True)
        assert shares.shape[1:] == read.shape and shares.min() >= 0 and shares.max() <= 1


def test_threads_share_a_predictor(tmp_path: Path, one_thread: None) -> None:
    files = write_images(tmp_path / "images", cases=4)
    wanted = by_command(write_model(tmp_path / "model"), tmp_path / "images", tmp_path / "out")
    predictor = nnunet_fm.Predictor(tmp_path / "model", device="cpu")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.predict, [files[case][0] for case in (0, 1, 2, 3) * 2]))
    for number, labels in enumerate(found):
        assert (labels == sitk.GetArrayFromImage(wanted[number % 4])).all()


def test_a_slice_without_a_third_axis(tmp_path: Path) -> None:
    predictor = nnunet_fm.Predictor(write_model(tmp_path / "model", configuration="2d"))
    voxels = np.random.default_rng(0).normal(100, 20, (12, 10)).astype(np.float32)
    labels, shares = predictor.predict(voxels, spacing=(1.5, 1.5), probabilities=True)
    assert labels.shape == voxels.shape and shares.shape == (3, 1, *voxels.shape)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.5, 1.5))
    assert (sitk.GetArrayFromImage(predictor.predict(image)) == labels).all()


def test_what_is_refused(tmp_path: Path) -> None:
    predictor = nnunet_fm.Predictor(write_model(tmp_path / "model"), mirroring=False)
    sound = np.zeros(SHAPE, np.float32)
    spoiled = sound.copy()
    spoiled[0, 0, 0] = np.nan
    image = sitk.GetImageFromArray(sound)
    for given, options, code in (
        (sound, {}, "spacing-missing"),
        (sound, {"spacing": (1, 0, 1)}, "spacing-missing"),
        (sound[None, None], {"spacing": (1, 1, 1)}, "image-axes"),
        (np.stack([sound] * 2), {"spacing": (1, 1, 1)}, "channels-count"),
        (spoiled, {"spacing": (1, 1, 1)}, "image-not-finite"),
        (image, {"spacing": (1, 1, 1)}, "spacing-twice"),
        ([image, str(tmp_path / "a.nii.gz")], {}, "channels-mixed"),
        ([image, image[:5, :5, :5]], {}, "channels-differ"),
    ):
        with pytest.raises(PredictionInputError) as refused:
            predictor.predict(given, **options)  # type: ignore[call-overload]
        assert refused.value.code == code
    with pytest.raises(PredictionInputError):
        nnunet_fm.Predictor(tmp_path / "nowhere")
    with pytest.raises(PredictionInputError) as refused:
        nnunet_fm.Predictor(write_model(tmp_path / "cascade", previous_stage="3d_lowres"))
    assert refused.value.code == "previous-stage-missing"
