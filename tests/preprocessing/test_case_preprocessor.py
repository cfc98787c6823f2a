"""A case goes through our preprocessing with nnU-Net's result, whatever the plan asks for."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_fm.hook import install
from nnunet_fm.preprocessing.case_preprocessor import CasePreprocessor
from nnunet_fm.preprocessing.class_locations import sample_locations
from nnunet_fm.preprocessing.cropping import nonzero_region
from tests.helpers.datasets import write_image
from tests.helpers.errors import fails

DATA = Path(__file__).parents[1] / "images"
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
INTENSITIES = {"mean": 50.0, "std": 80.0, "percentile_00_5": -100.0, "percentile_99_5": 300.0}
LABELS = {"background": 0, "one": 1, "two": 2, "absent": 3}
Managers = tuple[PlansManager, ConfigurationManager]


@pytest.fixture(autouse=True)
def _hook() -> None:
    install()


def managers(
    *,
    stock: bool,
    spacing: Sequence[float] = (2.0, 1.5, 1.7),
    schemes: Sequence[str] = ("CTNormalization",),
    masked: bool = False,
    transpose: Sequence[int] = (0, 1, 2),
) -> Managers:
    """What nnU-Net hands to a preprocessor, with the stock resampling or ours."""
    configuration = {
        "data_identifier": "here",
        "preprocessor_name": "FMPreprocessor",
        "patch_size": [16] * len(spacing),
        "spacing": list(spacing),
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": [masked] * len(schemes),
        "resampling_fn_data": "resample_data_or_seg_to_shape" if stock else "fm_resample_data_to_shape",
        "resampling_fn_data_kwargs": RESAMPLING,
        "resampling_fn_seg": "resample_data_or_seg_to_shape" if stock else "fm_resample_seg_to_shape",
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "architecture": {},
    }
    plans = {
        "plans_name": "here",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): INTENSITIES for i in range(len(schemes))},
        "configurations": {"here": configuration},
    }
    manager = PlansManager(plans)
    return manager, manager.get_configuration("here")


def case(channels: int = 1, empty: str = "none", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (C, 18, 22, 20) and labels (1, ...) as nnU-Net's readers return them, with a rim of zeros or holes."""
    rng = np.random.default_rng(seed)
    images = rng.normal(60, 50, (channels, 18, 22, 20)).round().astype(np.float32)
    labels = np.zeros((1, 18, 22, 20), np.float32)
    labels[0, 4:12, 5:15, 6:16], labels[0, 10:17, 2:9, 3:12] = 1, 2
    if empty == "rim":
        images[:, :2], images[:, :, -4:], images[..., :3] = 0, 0, 0
    if empty == "all":
        images[:] = 0
    images[:, 8:10, 10:13, 10:14] = 0
    return images, labels


def assert_same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Images to 1e-4 of their range; label maps, properties and class locations to the last bit."""
    assert ours[0].shape == theirs[0].shape and ours[0].dtype == theirs[0].dtype == np.float32
    assert np.abs(ours[0] - theirs[0]).max() <= 1e-4 * (np.ptp(theirs[0]) or 1)
    assert ours[1].dtype == theirs[1].dtype and np.array_equal(ours[1], theirs[1])
    assert list(ours[2]) == list(theirs[2])
    for key, value in theirs[2].items():
        if key != "class_locations":
            assert ours[2][key] == value, key
    found, expected = (properties.get("class_locations", {}) for properties in (ours[2], theirs[2]))
    assert list(found) == list(expected)
    for key, where in expected.items():
        assert type(found[key]) is type(where) and np.array_equal(found[key], where), key


def both(images: np.ndarray, labels: np.ndarray | None, dataset: dict[str, Any], **plan: Any) -> tuple[Any, ...]:
    """Our result, after a comparison with stock's."""
    results = []
    for stock, preprocessor in ((False, CasePreprocessor(verbose=False)), (True, DefaultPreprocessor(verbose=False))):
        before = images.copy(), None if labels is None else labels.copy()
        properties = {"spacing": [1.0, 1.2, 0.8]}
        results.append(preprocessor.run_case_npy(images, labels, properties, *managers(stock=stock, **plan), dataset))
        assert np.array_equal(images, before[0]) and (labels is None or np.array_equal(labels, before[1]))
    assert_same(*results)
    return results[0]


@pytest.mark.parametrize(
    "scheme, masked, empty",
    [
        ("CTNormalization", False, "rim"),
        ("CTNormalization", False, "all"),
        ("ZScoreNormalization", False, "none"),
        ("ZScoreNormalization", False, "all"),
        ("ZScoreNormalization", True, "none"),
        ("ZScoreNormalization", True, "rim"),
        ("AdvancedNormalization", False, "rim"),
        ("FMPercentileNormalization", True, "rim"),
    ],
)
def test_crops_and_normalisations(scheme: str, masked: bool, empty: str) -> None:
    images, labels = case(2, empty)
    for given in (labels, None):
        both(images, given, {"labels": LABELS}, schemes=[scheme, "ZScoreNormalization"], masked=masked)


@pytest.mark.parametrize(
    "plan",
    [
        {"spacing": (1.0, 1.2, 0.8)},  # as it is
        {"spacing": (0.7, 0.9, 0.8)},
        {"spacing": (6.0, 1.5, 1.5)},
        {"transpose": (2, 0, 1)},
        {"spacing": (1.5, 0.6), "transpose": (1, 0, 2)},
    ],
    ids=["unchanged", "finer", "thick", "transposed", "2d"],
)
def test_geometries(plan: dict[str, Any]) -> None:
    both(*case(2, "rim"), {"labels": LABELS}, schemes=["ZScoreNormalization"] * 2, **plan)


@pytest.mark.parametrize(
    "labels, more",
    [
        ({**LABELS, "ignore": 4}, {}),
        ({"background": 0, "whole": [1, 2], "core": 2, "absent": 3}, {"regions_class_order": [1, 2, 3]}),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, {"regions_class_order": [1, 2]}),
    ],
    ids=["ignore", "regions", "regions and ignore"],
)
def test_classes(labels: dict[str, Any], more: dict[str, Any]) -> None:
    images, seg = case(empty="rim")
    seg[0, :, :6][seg[0, :, :6] == 0] = labels.get("ignore", 0)
    locations = both(images, seg, {"labels": labels, **more})[2]["class_locations"]
    assert len(locations) == len(labels) - 1 and any(len(where) for where in locations.values())


def test_many_voxels_of_a_class_are_sampled_as_stock_samples_them() -> None:
    seg = np.random.default_rng(0).integers(-1, 3, size=(1, 30, 40, 50)).astype(np.int8)
    seg[:, 5:] = 2  # more than nnU-Net keeps of a class
    classes = [1, 2, 77, (1, 2), (-1, 0, 1, 2)]
    ours, theirs = sample_locations(seg, classes), DefaultPreprocessor._sample_foreground_locations(seg, classes)
    assert list(ours) == list(theirs) and len(ours[2]) < (seg == 2).sum()
    for key in theirs:
        assert np.array_equal(ours[key], theirs[key])


@pytest.mark.parametrize("share", (0.01, 0.3, 0.6, 0.9, 0.995, 0.9999))
def test_nonzero_region_is_stocks(share: float) -> None:
    """From almost empty to almost full: voxels linked with the border are followed one by one, or labelled."""
    rng = np.random.default_rng(int(share * 10000))
    for shape in ((1, 9, 9), (20, 31, 27), (40, 50, 60)):
        data = (rng.random((2, *shape)) < 1 - np.sqrt(1 - share)).astype(np.float32)
        mask, box, slices = nonzero_region(data)
        _, seg, expected = crop_to_nonzero(data)
        assert box == expected and np.array_equal(mask, seg[0] == 0)
        assert mask.shape == tuple(part.stop - part.start for part in slices)


def test_large_and_fractional_labels() -> None:
    images, labels = case()
    assert both(images, labels * 300, {"labels": {"background": 0, "one": 300}})[1].dtype == np.int16
    both(images, labels * 0.75, {"labels": LABELS})


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., tuple[list[str], str]]:
    """Writes a case; returns its image files and its label file."""

    def write(images: np.ndarray, labels: np.ndarray, ending: str = ".nii.gz") -> tuple[list[str], str]:
        paths = [tmp_path / f"größe_{index:04d}{ending}" for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            write_image(path, image, (1.0, 1.2, 0.8))
        write_image(tmp_path / f"größe{ending}", labels[0].astype(np.uint8), (1.0, 1.2, 0.8))
        return [str(path) for path in paths], str(tmp_path / f"größe{ending}")

    return write


def test_files_and_saved_cases(files: Callable[..., tuple[list[str], str]], tmp_path: Path) -> None:
    written = files(*case(2, "rim"))
    schemes = ["ZScoreNormalization"] * 2
    for stock, preprocessor in ((True, DefaultPreprocessor(False)), (False, CasePreprocessor(False))):
        plan = managers(stock=stock, schemes=schemes)
        preprocessor.run_case_save(str(tmp_path / f"stock_{stock}"), *written, *plan, {"labels": LABELS})
    saved = []
    for stock in (False, True):
        arrays = [blosc2.open(str(tmp_path / f"stock_{stock}{part}.b2nd")) for part in ("", "_seg")]
        saved.append((*arrays, pickle.loads((tmp_path / f"stock_{stock}.pkl").read_bytes())))
    for ours, theirs in zip(saved[0][:2], saved[1][:2], strict=True):
        assert ours.chunks == theirs.chunks and ours.blocks == theirs.blocks
    assert_same(*[(images[:], seg[:], properties) for images, seg, properties in saved])


def test_real_images() -> None:
    for name, scheme in (("ct_spine", "CTNormalization"), ("mr", "ZScoreNormalization")):
        images, labels = (
            sitk.GetArrayFromImage(sitk.ReadImage(DATA / f"{name}{part}.nii.gz"))[None].astype(np.float32)
            for part in ("", "_labels")
        )
        both(images, labels, {"labels": {"background": 0, **{str(i): i for i in range(1, 6)}}}, schemes=[scheme])


def test_errors_name_the_files(files: Callable[..., tuple[list[str], str]]) -> None:
    images, labels = case()
    written = files(images, labels[:, 1:])
    with fails("grid-differs", "größe_0000", "größe.nii.gz"):
        CasePreprocessor(False).run_case(*written, *managers(stock=False), {"labels": LABELS})
    images[0, 3, 3, 3] = np.nan
    written = files(images, labels, ".mha")  # ITK reads NaN in NIfTI files as 0
    with fails("image-not-finite", "größe_0000"):
        scaled = managers(stock=False, schemes=["ScaleIntensity"])
        CasePreprocessor(False).run_case(*written, *scaled, {"labels": LABELS})
    with fails("normalization-unknown", "Nothing"):
        CasePreprocessor(False).run_case(*written, *managers(stock=False, schemes=["Nothing"]), {"labels": LABELS})


def test_memory_is_bounded_by_single_channels() -> None:
    images = np.random.default_rng(0).normal(100, 9, (4, 40, 50, 60)).astype(np.float32)
    labels = np.zeros_like(images[:1])
    labels[:, 10:25, 10:30, 20:40] = 1
    peaks = {}
    for stock, preprocessor in ((True, DefaultPreprocessor(False)), (False, CasePreprocessor(False))):
        plan = managers(stock=stock, schemes=["ZScoreNormalization"] * 4, spacing=(1.0, 1.0, 1.0))
        _ = plan[1].resampling_fn_data, plan[1].resampling_fn_seg  # imports modules, which take memory
        tracemalloc.start()
        out = preprocessor.run_case_npy(images, labels, {"spacing": [1.0, 1.2, 0.8]}, *plan, {"labels": LABELS})[0]
        peaks[stock] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[False] < peaks[True] / 2
    assert peaks[False] < out.nbytes + 5 * max(images[0].nbytes, out[0].nbytes)
