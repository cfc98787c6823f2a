"""Label tables, labels stored as floats, merging of masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnunet_fm.dataset_conversion.freesurfer import BRAIN
from nnunet_fm.dataset_conversion.labels import LabelTable, count_values, merge_masks, whole_numbers
from tests.helpers.errors import fails


def test_wide_labels_are_not_cut_to_eight_bit() -> None:
    array = np.array([[[0, 1035, 2035, 8, 47]], [[3001, 11101, 26, 85, 255]]], np.int32)
    mapped, counts, others = BRAIN.apply(array, "aseg")
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[[0, 3, 3, 1, 1]], [[0, 0, 3, 4, 4]]]
    assert counts[1035] == 1 and others == {3001: 1, 11101: 1}
    assert list(BRAIN.names) == [
        "background", "cerebellum_gm", "cerebellum_wm", "cerebral_gm", "cerebral_wm", "thalamus", "hippocampus",
        "amygdala", "ventricles", "caudate", "putamen", "pallidum", "ventral_dc", "csf", "brain_stem",
    ]  # fmt: skip
    groups = {value: number for value, number in BRAIN.values.items() if value < 1000}
    assert {v for v, n in groups.items() if n == 4} == {2, 41, 251, 252, 253, 254, 255, 5, 44, 30, 62, 77, 80, 85}
    assert {v for v, n in groups.items() if n == 8} == {4, 43, 14, 15, 72, 31, 63} and len(BRAIN.values) == 2046


def test_other_numbers_are_refused() -> None:
    table = LabelTable.of("one", "two")
    with fails("labels-unknown", "-1", "7", "2", "0"):
        table.apply(np.array([[[0, 1, 7, 7, -1]]], np.int16), "file")
    with fails("labels-range"):
        LabelTable({"background": 0}, {0: 0}, unlisted=0).apply(np.array([[[0, 2**31 - 1]]], np.int64), "file")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_labels_if_they_are_whole(dtype: Any) -> None:
    array = np.array([[[0, 24, 3]], [[1, 2, 0]]], dtype)
    cast = whole_numbers(array, "file")
    assert cast.dtype == np.int32 and np.array_equal(cast, array)
    for value, expected in (
        (0.5, ("labels-fraction", "0.5")),
        (np.nan, ("labels-not-finite",)),
        (np.inf, ("labels-not-finite",)),
        (1e12, ("labels-fraction",)),
    ):
        spoiled = array.copy()
        spoiled[1, 0, 0] = value
        with fails(*expected):
            whole_numbers(spoiled, "file")


def test_masks_are_painted_in_order_and_overlaps_counted() -> None:
    masks = np.zeros((3, 2, 4, 5), np.uint8)
    masks[0, 0], masks[1, :, :2], masks[2, 1, 1:3] = 1, 255, 1
    merged, overlaps = merge_masks((2, 4, 5), ((value, mask) for value, mask in zip((4, 5, 9), masks, strict=True)))
    assert overlaps == {(4, 5): 10, (5, 9): 5}  # never 4 + 5 = 9
    assert count_values(merged) == {0: 5, 4: 10, 5: 15, 9: 10}
    again, _ = merge_masks((2, 4, 5), ((value, masks[i]) for value, i in ((9, 2), (5, 1), (4, 0))))
    assert count_values(again) == {0: 5, 4: 20, 5: 10, 9: 5}
