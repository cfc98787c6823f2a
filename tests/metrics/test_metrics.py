"""Every metric against closed forms and MONAI's, on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from nnunet_fm.metrics import boundary
from nnunet_fm.metrics.case import CaseScores, ScoringOptions, score_codes
from nnunet_fm.metrics.label_codes import Coding

METRICS = ("Dice", "Jaccard", "HD95", "NSD", "volume_reference", "volume_prediction")
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.9), (0.5, 2.0, 4.0)]
spacings = pytest.mark.parametrize("spacing", SPACINGS, ids=str)


def score_arrays(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], settings: ScoringOptions
) -> CaseScores:
    coding = Coding.of(settings.classes, settings.ignore)
    (expected, unknown), (found, more) = coding.encode(reference), coding.encode(prediction)
    return replace(score_codes(expected, found, spacing, coding, settings), unknown=unknown | more)


def scores(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), tolerance: float = 1.0
) -> dict[str, float]:
    """Metrics of the class of all voxels that are set."""
    settings = ScoringOptions({"x": (1,)}, tolerance=tolerance)
    arrays = (np.asarray(array, np.uint8) for array in (reference, prediction))
    return {metric: value for (_, metric), value in score_arrays(*arrays, spacing, settings).values.items()}


def box(shape: tuple[int, ...], corner: tuple[int, ...], edges: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, bool)
    array[tuple(slice(first, first + edge) for first, edge in zip(corner, edges, strict=True))] = True
    return array


def area(edges: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    """Area of a box by marching cubes: its faces, with edges and corners cut off half a voxel from each."""
    (a, b, c), (z, y, x) = edges, spacing
    faces = 2 * ((b - 1) * (c - 1) * y * x + (a - 1) * (c - 1) * z * x + (a - 1) * (b - 1) * z * y)
    cut = 4 * 0.5 * ((a - 1) * z * math.hypot(y, x) + (b - 1) * y * math.hypot(z, x) + (c - 1) * x * math.hypot(z, y))
    return faces + cut + 8 * 0.125 * math.sqrt((y * x) ** 2 + (z * x) ** 2 + (z * y) ** 2)


def ball(radius: float, spacing: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A ball, radius in mm, in the middle of an array."""
    centre = [(edge - 1) / 2 for edge in shape]
    square = sum(((i - c) * s) ** 2 for i, c, s in zip(np.indices(shape), centre, spacing, strict=True))
    return square <= radius**2


@spacings
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [1, 3])
def test_shifted_cubes(spacing: tuple[float, ...], axis: int, shift: int) -> None:
    edge = 10
    reference = box((20, 20, 20), (5, 5, 5), (edge,) * 3)
    distance = shift * spacing[axis]
    got = scores(reference, np.roll(reference, shift, axis), spacing, tolerance=distance)
    assert got["Dice"] == pytest.approx((edge - shift) / edge)
    assert got["Jaccard"] == pytest.approx((edge - shift) / (edge + shift))
    assert got["HD95"] == pytest.approx(distance)
    assert got["NSD"] == 1
    assert got["volume_reference"] == pytest.approx(edge**3 * math.prod(spacing) / 1000)
    assert scores(reference, np.roll(reference, shift, axis), spacing, tolerance=0.99 * distance)["NSD"] < 0.95


@spacings
def test_areas_of_boxes(spacing: tuple[float, ...]) -> None:
    """The prediction has a second box, far away: the share of the surface is that of its area."""
    shape, first, second = (40, 40, 40), (6, 8, 9), (5, 4, 11)
    reference = box(shape, (2, 2, 2), first)
    prediction = reference | box(shape, (25, 25, 25), second)
    both = 2 * area(first, spacing)
    got = scores(reference, prediction, spacing)
    assert got["NSD"] == pytest.approx(both / (both + area(second, spacing)), abs=1e-6)
    assert scores(prediction, reference, spacing)["NSD"] == pytest.approx(got["NSD"])


@spacings
def test_concentric_balls(spacing: tuple[float, ...]) -> None:
    small, large = 12.0, 17.0
    shape = tuple(math.ceil(2 * (large + 2) / step) + 1 for step in spacing)
    reference, prediction = ball(large, spacing, shape), ball(small, spacing, shape)
    voxel = math.hypot(*spacing)
    got = scores(reference, prediction, spacing, tolerance=large - small - voxel)
    assert got["HD95"] == pytest.approx(large - small, abs=voxel)
    assert got["NSD"] == 0
    assert scores(reference, prediction, spacing, tolerance=large - small + voxel)["NSD"] == 1
    assert got["Dice"] == pytest.approx(2 * small**3 / (small**3 + large**3), rel=0.05)
    assert got["Jaccard"] == pytest.approx((small / large) ** 3, rel=0.05)
    assert got["volume_reference"] == pytest.approx(4 / 3 * math.pi * large**3 / 1000, rel=0.05)
    assert got["volume_prediction"] == pytest.approx(4 / 3 * math.pi * small**3 / 1000, rel=0.05)


def test_95th_percentile() -> None:
    """Of 20 predicted pixels 19 are right and one is 40 mm away: between the 19th and the 20th, near the 19th."""
    reference = np.zeros((60, 30), bool)
    reference[0, :19] = True
    prediction = reference.copy()
    prediction[20, 0] = True
    got = scores(reference, prediction, (2.0, 1.0))
    assert got["HD95"] == pytest.approx(0.05 * 40)
    assert scores(prediction, reference, (2.0, 1.0))["HD95"] == pytest.approx(0.05 * 40)


def test_single_voxels() -> None:
    reference, prediction = np.zeros((2, 10, 10, 10), bool)
    reference[1, 2, 3], prediction[4, 4, 3] = True, True
    got = scores(reference, prediction, (1.0, 2.0, 5.0), tolerance=5.0)
    assert (got["Dice"], got["Jaccard"], got["NSD"]) == (0, 0, 1) and got["HD95"] == pytest.approx(5)  # 3, 4, 5
    assert scores(reference, prediction, (1.0, 2.0, 5.0), tolerance=1.0)["NSD"] == 0
    same = scores(reference, reference)
    assert [same[metric] for metric in METRICS] == [1, 1, 0, 1, 0.001, 0.001]


@pytest.mark.parametrize("shape", [(6, 7, 8), (7, 8), (1, 7, 8), (1, 1, 1)], ids=str)
def test_empty_and_full(shape: tuple[int, ...]) -> None:
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    spacing = (1.0,) * len(shape)
    volume = math.prod(shape) / 1000
    expected = {
        (0, 0): [math.nan, math.nan, math.nan, math.nan, 0, 0],
        (0, 1): [0, 0, math.nan, 0, 0, volume],
        (1, 0): [0, 0, math.nan, 0, volume, 0],
        (1, 1): [1, 1, 0, 1, volume, volume],
    }
    for (here, there), values in expected.items():
        got = scores((empty, full)[here], (empty, full)[there], spacing)
        assert [got[metric] for metric in METRICS] == pytest.approx(values, nan_ok=True), (here, there)


@pytest.mark.parametrize(("here", "there", "dice", "jaccard"), [(0, 0, 1, 1), (0, 5, 1 / 6, 1 / 6), (5, 5, 1, 1)])
def test_smoothed(here: int, there: int, dice: float, jaccard: float) -> None:
    reference, prediction = np.zeros((2, 3, 4, 5), np.uint8)
    reference.flat[:here], prediction.flat[:there] = 1, 1
    settings = ScoringOptions({"x": (1,)}, metrics=("Dice", "Jaccard"), empty="smoothed", per_slice=True)
    got = score_arrays(reference, prediction, (1, 1, 1), settings)
    assert got.values == pytest.approx({("x", "Dice"): dice, ("x", "Jaccard"): jaccard})
    assert got.slices["x", "Dice"].tolist() == pytest.approx([dice, 1, 1])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_touches_the_border_scores_as_inside(dimensions: int) -> None:
    generator = np.random.default_rng(0)
    arrays = generator.random((2, *(7, 8, 9)[:dimensions])) < 0.6
    spacing = (2.0, 0.5, 1.0)[:dimensions]
    inside = [np.pad(array, 3) for array in arrays]
    assert scores(*arrays, spacing) == pytest.approx(scores(*inside, spacing))


def test_2d() -> None:
    """A rectangle moved by two pixels, and the length of a rectangle's outline with corners cut off."""
    reference = box((20, 30), (4, 5), (6, 10))
    got = scores(reference, np.roll(reference, 2, 1), (3.0, 0.5), tolerance=0.5)
    assert (got["Dice"], got["HD95"]) == (pytest.approx(0.8), pytest.approx(1.0))

    def outline(rows: int, columns: int) -> float:
        return 2 * ((rows - 1) * 3.0 + (columns - 1) * 0.5) + 4 * 0.5 * math.hypot(3.0, 0.5)

    prediction = reference | box((20, 30), (13, 20), (4, 7))
    both = 2 * outline(6, 10)
    assert scores(reference, prediction, (3.0, 0.5))["NSD"] == pytest.approx(both / (both + outline(4, 7)))


@pytest.mark.parametrize("slab", [1 << 22, 200], ids=["whole", "slabs"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_surfaces_are_monais(dimensions: int, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of labels, of a region and of the background, on shapes with holes and islands at the border."""
    monkeypatch.setattr(boundary, "_SLAB", slab)
    generator = np.random.default_rng(dimensions)
    classes = {"background": (0,), "one": (1,), "both": (1, 2)}
    for _ in range(8):
        shape = generator.integers(5, 16, dimensions)
        reference, prediction = (
            np.digitize(ndimage.gaussian_filter(generator.normal(size=shape), 1), (-0.1, 0.1)).astype(np.uint8)
            for _ in range(2)
        )
        spacing, tolerance = generator.uniform(0.4, 3, dimensions).tolist(), generator.uniform(0.4, 3)
        got = score_arrays(reference, prediction, spacing, ScoringOptions(classes, tolerance=tolerance)).values
        for name, values in classes.items():
            there, here = (
                torch.from_numpy(np.isin(array, values)).float()[None, None] for array in (prediction, reference)
            )
            options = {"include_background": True, "spacing": spacing}
            assert got[name, "HD95"] == pytest.approx(
                float(compute_hausdorff_distance(there, here, percentile=95, **options)), abs=1e-4
            )
            assert got[name, "NSD"] == pytest.approx(
                float(compute_surface_dice(there, here, [tolerance], use_subvoxels=True, **options)), abs=1e-5
            )


def test_ignored_voxels_have_no_part_in_any_score() -> None:
    """Whatever is predicted among them, and although the reference ends there."""
    generator = np.random.default_rng(0)
    reference = box((16, 16, 16), (3, 3, 3), (10, 10, 10)).astype(np.uint8)
    predictions = [reference.copy() for _ in range(3)]
    reference[8:] = 9
    predictions[1][8:] = 0
    predictions[2][8:] = generator.integers(0, 2, (8, 16, 16))
    for prediction in predictions:
        got = score_arrays(reference, prediction, (1, 1, 1), ScoringOptions({"x": (1,)}, ignore=9)).values
        assert [got["x", metric] for metric in METRICS] == pytest.approx([1, 1, 0, 1, 0.5, 0.5])
    outside = predictions[0].copy()
    outside[3:8, 3:5] = 0  # two rows are missing where the voxels count
    got = score_arrays(reference, outside, (1, 1, 1), ScoringOptions({"x": (1,)}, ignore=9)).values
    assert got["x", "Dice"] == pytest.approx(2 * 400 / 900) and got["x", "HD95"] == 2 and got["x", "NSD"] < 1


def test_what_lies_in_ignored_voxels_alone_is_empty() -> None:
    reference = np.full((4, 5, 6), 9, np.uint8)
    got = score_arrays(reference, np.ones_like(reference), (1, 1, 1), ScoringOptions({"x": (1,)}, ignore=9)).values
    assert [got["x", metric] for metric in METRICS] == pytest.approx([math.nan] * 4 + [0, 0], nan_ok=True)


def test_a_region_is_a_union() -> None:
    """The border between its labels is no surface, and labels within it may be mixed up."""
    generator = np.random.default_rng(0)
    whole = box((12, 12, 12), (2, 3, 4), (6, 6, 6))
    reference, prediction = (np.where(whole, generator.integers(1, 4, whole.shape), 0) for _ in range(2))
    settings = ScoringOptions({"whole": (1, 2, 3), "part": (2, 3)})
    got = score_arrays(reference, prediction, (1, 1, 1), settings).values
    assert [got["whole", metric] for metric in METRICS[:4]] == [1, 1, 0, 1]
    assert 0 < got["part", "Dice"] < 1 and got["part", "HD95"] > 0


def test_labels_may_have_any_number_and_any_type() -> None:
    array = np.zeros((4, 5, 6))
    array[1:3, 1:3, 1:3], array[3, 3, 3] = 30000, 2
    settings = ScoringOptions({"a": (30000,), "b": (2, 70000)}, metrics=("Dice", "volume_reference"))
    for kind in (np.uint16, np.int32, np.uint64, np.int64):
        got = score_arrays(array.astype(kind), array.astype(kind), (1, 1, 1), settings)
        assert list(got.values.values()) == [1, 0.008, 1, 0.001] and not got.unknown
    many = {str(label): (label,) for label in range(1, 400)}
    array = np.arange(1000).reshape(10, 10, 10)
    got = score_arrays(array, array, (1, 1, 1), ScoringOptions(many, metrics=("Dice",)))
    assert set(got.values.values()) == {1} and got.unknown == set(range(400, 1000))


@pytest.mark.parametrize(("axis", "length"), [(0, 4), (1, 5), (2, 6), (None, 5)])
def test_slices_of_each_axis(axis: int | None, length: int) -> None:
    generator = np.random.default_rng(0)
    reference, prediction = generator.integers(0, 3, (2, 4, 5, 6))
    settings = ScoringOptions({"x": (1, 2)}, metrics=("Jaccard", "HD95"), per_slice=True, slice_axis=axis)
    got = score_arrays(reference, prediction, (1, 3, 1), settings).slices
    assert list(got) == [("x", "Jaccard")]
    planes = zip(*(np.moveaxis(a > 0, 1 if axis is None else axis, 0) for a in (reference, prediction)), strict=True)
    expected = [np.count_nonzero(r & p) / np.count_nonzero(r | p) for r, p in planes]
    assert got["x", "Jaccard"].tolist() == pytest.approx(expected) and len(expected) == length


def test_corners_and_voxels_are_found_once() -> None:
    """Places of a boundary do not depend on how the array is cut, and rise."""
    codes = np.random.default_rng(0).integers(0, 2, (9, 4, 5)).astype(np.uint8)
    for find, ends in product((boundary.corners, boundary.voxels), (0, 2)):
        found = find(codes, ends)
        assert (np.diff(found.places) > 0).all() and len(found.codes) == len(found.places)
        assert (found.codes != found.codes[:, :1]).any(1).all()
