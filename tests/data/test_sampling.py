"""Where patches are cut: ratios in expectation, uniform voxels, never around ignored ones."""

from __future__ import annotations

import math
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_fm.data.sampling import FMDataLoader

DRAWS = 2000
SHAPE = (40, 24, 24)
PATCH = (7, 5, 5)
LABELS: dict[str, Any] = {"background": 0, "large": 1, "small": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)


def label_manager(labels: dict[str, Any]) -> LabelManager:
    return LabelManager(labels, regions_class_order=[1, 2] if labels.get("whole") else None)


class Cases:
    """What nnU-Net's dataset is to a loader; segmentations compressed, as it stores them."""

    def __init__(self, segmentations: list[np.ndarray], manager: LabelManager) -> None:
        self.identifiers = [f"case_{i}" for i in range(len(segmentations))]
        keys = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
        if manager.has_ignore_label:
            keys.append([-1, *manager.all_labels])
        self._cases = {}
        for name, seg in zip(self.identifiers, segmentations, strict=True):
            locations = DefaultPreprocessor._sample_foreground_locations(seg[None], keys)
            self._cases[name] = (
                seg[None].astype(np.float32),
                blosc2.asarray(seg[None]),
                None,
                {"class_locations": locations},
            )

    def load_case(self, identifier: str) -> Any:
        return self._cases[identifier]


def segmentation() -> np.ndarray:
    """Nonzero region with a border of -1; 800 voxels of class 1, 27 of class 2, in its midst."""
    seg = np.zeros(SHAPE, dtype=np.int8)
    seg[:, :2] = -1
    seg[10:30, 8:16, 8:13] = 1
    seg[18:21, 10:13, 9:12] = 2
    return seg


def loader(
    segmentations: list[np.ndarray],
    sampling: str,
    positive: float,
    labels: dict[str, Any] = LABELS,
    patch: tuple[int, ...] = PATCH,
    final: tuple[int, ...] | None = None,
) -> FMDataLoader:
    manager = label_manager(labels)
    cases = Cases(segmentations, manager)
    return FMDataLoader(cases, 2, patch, final or patch, manager, sampling=sampling, positive=positive)  # type: ignore[arg-type]


def centres(made: FMDataLoader, draws: int = DRAWS) -> np.ndarray:
    """Labels in the middle of patches, as nnU-Net's loader asks for them; -9 outside the image."""
    found = []
    for _ in range(draws):
        _, seg, _, properties = made.cases.load_case(made.get_indices()[0])
        lower, upper = made.get_bbox(seg.shape[1:], made.get_do_oversample(0), properties["class_locations"])
        assert np.array_equal(np.subtract(upper, lower), made.patch_size)
        middle = np.add(lower, np.asarray(made.patch_size) // 2)
        inside = (middle >= 0).all() and (middle < seg.shape[1:]).all()
        found.append(int(np.asarray(seg[(0, *middle)]).item()) if inside else -9)
    return np.array(found)


def assert_share(count: int, probability: float, draws: int = DRAWS) -> None:
    assert abs(count - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability)) + 1e-9


@pytest.mark.parametrize("positive", [2 / 3, 1 / 2, 3 / 4, 0.0, 1.0])
def test_positive_and_negative_patches_keep_their_ratio(positive: float) -> None:
    """2:1, 1:1, 3:1 with two patches per batch: only chance per patch can do that."""
    seg = segmentation()
    seg[[0, 1, 2, -3, -2, -1]] = seg[:, :4] = seg[:, -2:] = seg[:, :, :2] = seg[:, :, -2:] = -1  # centres stay centred
    found = centres(loader([seg], "pos_neg", positive))
    assert_share(int((found > 0).sum()), positive)
    assert_share(int((found == 0).sum()), 1 - positive)


def test_foreground_voxels_are_drawn_uniformly() -> None:
    """Class 1 is 29 times as large as class 2; classes drawn uniformly would give half of each."""
    seg = segmentation()
    found = centres(loader([seg], "pos_neg", 1.0))
    assert_share(int((found == 2).sum()), float((seg == 2).sum() / (seg > 0).sum()))


def test_voxels_are_drawn_uniformly_along_every_axis() -> None:
    seg = segmentation()
    made = loader([seg], "pos_neg", 0.5)
    made.cases.load_case("case_0")
    for wanted, mask in (("foreground", seg > 0), ("background", seg == 0)):
        voxels = np.array([made._draw(wanted) for _ in range(DRAWS)])  # type: ignore[arg-type]
        assert mask[tuple(voxels.T)].all()
        expected = np.argwhere(mask)
        for axis in range(3):
            bound = 4 * expected[:, axis].std() / math.sqrt(DRAWS)
            assert abs(voxels[:, axis].mean() - expected[:, axis].mean()) < bound


@pytest.mark.parametrize("positive", [3 / 4, 1.0])
def test_balanced_patches_draw_the_class_first(positive: float) -> None:
    seg = segmentation()
    found = centres(loader([seg], "balanced", positive))
    reachable = seg[tuple(slice(p // 2, s - p + p // 2 + 1) for s, p in zip(SHAPE, PATCH, strict=True))]
    for label, forced in ((1, 0.5), (2, 0.5), (0, 0.0)):
        share = positive * forced + (1 - positive) * float((reachable == label).mean())
        assert_share(int((found == label).sum()), share)


def test_regions_count_as_foreground_and_as_classes() -> None:
    seg = segmentation()
    assert (centres(loader([seg], "pos_neg", 1.0, REGIONS), 400) > 0).all()
    found = centres(loader([seg], "balanced", 1.0, REGIONS))
    core = float((seg == 2).sum() / (seg > 0).sum())
    assert_share(int((found == 2).sum()), 0.5 + 0.5 * core)  # the core, or a voxel of the whole that lies in it


@pytest.mark.parametrize("sampling", ["pos_neg", "balanced"])
@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_no_patch_is_centred_on_the_ignore_label(sampling: str, labels: dict[str, Any]) -> None:
    seg = np.full(SHAPE, 3, dtype=np.int8)  # mostly unlabelled
    seg[10:14, 8:16, 8:16] = 0
    seg[20:22, 8:16, 8:12] = 1
    seg[20:22, 8:16, 12:16] = 2
    found = centres(loader([seg], sampling, 0.5, labels | {"ignore": 3}), 1000)
    assert set(found.tolist()) == {0, 1, 2}
    nothing = loader([np.where(seg > 0, 3, seg)], sampling, 1.0, labels | {"ignore": 3})
    assert set(centres(nothing, 200).tolist()) == {0}


@pytest.mark.parametrize("sampling", ["pos_neg", "balanced"])
def test_without_foreground_or_background_patches_are_random(sampling: str) -> None:
    empty = loader([np.zeros(SHAPE, dtype=np.int8)], sampling, 1.0)
    lower = np.array(
        [empty.get_bbox(SHAPE, True, empty.cases.load_case("case_0")[3]["class_locations"])[0] for _ in range(500)]
    )
    assert (lower.min(0) == 0).all() and (lower.max(0) == np.array(SHAPE) - PATCH).all()
    full = loader([np.ones(SHAPE, dtype=np.int8)], sampling, 0.0)
    assert (centres(full, 50) == 1).all()


def test_a_patch_near_the_border_holds_its_voxel() -> None:
    seg = np.zeros(SHAPE, dtype=np.int8)
    seg[0, 0, 0] = seg[-1, -1, -1] = 1
    for final in (PATCH, (5, 5, 3)):  # a patch to rotate in is larger than what is left of it
        made = loader([seg], "pos_neg", 1.0, patch=PATCH, final=final)
        for _ in range(50):
            patch = next(made)["target"][:, 0]
            margins = [(edge - left) // 2 for edge, left in zip(PATCH, final, strict=True)]
            middle = patch[(slice(None), *[slice(m, m + left) for m, left in zip(margins, final, strict=True)])]
            assert (middle == 1).any(dim=3).any(dim=2).any(dim=1).all()


def test_images_smaller_than_the_patch_and_2d_patches() -> None:
    seg = segmentation()
    large = next(loader([seg[:5, :6, :7]], "pos_neg", 0.5, patch=(9, 9, 9)))
    assert large["data"].shape == (2, 1, 9, 9, 9)
    flat = next(loader([seg], "pos_neg", 1.0, patch=(5, 5)))["target"]
    assert flat.shape == (2, 1, 5, 5) and (flat[:, 0, 2, 2] > 0).all()


def test_every_case_is_counted_once() -> None:
    other = segmentation()
    other[30:] = 2
    made = loader([segmentation(), other], "pos_neg", 0.5)
    counted = 0
    count = made._count

    def counting(seg: Any) -> Any:
        nonlocal counted
        counted += 1
        return count(seg)

    made._count = counting  # type: ignore[method-assign]
    centres(made, 60)
    assert counted == 2 and made._counts["case_1"]["foreground"][-1] == 24 * 24
