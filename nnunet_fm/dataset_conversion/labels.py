"""Label maps: whole numbers, a fixed table of values, masks of single structures merged into one map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.dataset_conversion.problems import Invalid
from nnunet_fm.io.image_faults import exact

MAX_RANGE = 1 << 20
"""More different numbers than any label file has."""

LabelValue = int | tuple[int, ...]


@dataclass(frozen=True)
class LabelTable:
    """Mapping from numbers in a source's label files to classes.

    Attributes:
        names: name -> number in our files, or numbers of a region, as in nnU-Net's ``dataset.json``.
        values: number in the source -> number in our files.
        unlisted: what other numbers become; None: they are refused.
        regions_class_order: nnU-Net's, where names are regions.
    """

    names: Mapping[str, LabelValue]
    values: Mapping[int, int]
    unlisted: int | None = None
    regions_class_order: tuple[int, ...] | None = None

    @classmethod
    def of(cls, *names: str) -> LabelTable:
        """Structures numbered from 1 in the source as in our files."""
        numbers = dict(enumerate(("background", *names)))
        return cls({name: number for number, name in numbers.items()}, {number: number for number in numbers})

    @property
    def foreground(self) -> dict[int, str]:
        """Number in our files -> name; of regions those of one number."""
        return {value: name for name, value in self.names.items() if isinstance(value, int) and value != 0}

    def apply(self, array: NDArray[Any], file: str) -> tuple[NDArray[np.uint8], dict[int, int], dict[int, int]]:
        """Map a source's numbers to ours.

        Args:
            array: whole numbers of any type.
            file: what to call the source in messages.

        Returns:
            The mapped array; voxels per number of the source; and those per number that the table does not list.

        Raises:
            Invalid: if a number is not in the table and the table refuses others.
        """
        counts = count_values(array)
        others = {value: count for value, count in counts.items() if value not in self.values}
        if others and self.unlisted is None:
            found = ", ".join(f"{value} ({count} voxels)" for value, count in list(others.items())[:5])
            known = ", ".join(map(str, sorted(self.values)))
            raise Invalid(
                file,
                f"label values that the dataset's table does not have: {found}; known: {known}",
                code="labels-unknown",
            )
        target = {value: self.values.get(value, self.unlisted or 0) for value in counts}
        # A table over the range of values that occur, which no value is cast for: FreeSurfer's numbers reach 14000.
        low, high = min(target), max(target)
        if high - low >= MAX_RANGE:
            raise Invalid(file, f"label values from {low} to {high} are no numbers of structures", code="labels-range")
        numbers = np.zeros(high - low + 1, np.uint8)
        for value, number in target.items():
            numbers[value - low] = number
        mapped = np.empty(array.shape, np.uint8)
        for section, out in zip(array, mapped, strict=True):
            out[...] = numbers[section.astype(np.int64) - low]
        return mapped, counts, others


def whole_numbers(array: NDArray[Any], file: str) -> NDArray[Any]:
    """A label array as integers.

    Args:
        array: of any number type; floats are cast if every value is a whole number.
        file: what to call the source in messages.

    Raises:
        Invalid: if a value is NaN, infinite or has a fraction.
    """
    if array.dtype.kind in "iub":
        return array.view(np.uint8) if array.dtype == bool else array
    if array.dtype.kind != "f":
        raise Invalid(file, f"labels of type {array.dtype} are no numbers", code="labels-type")
    result = np.empty(array.shape, np.int32)
    for section, out in zip(array, result, strict=True):
        if not np.isfinite(section).all():
            raise Invalid(file, "the label map has NaN or infinite values", code="labels-not-finite")
        with np.errstate(invalid="ignore"):  # numbers beyond 32 bit differ from what they are cast to
            np.rint(section, out=out, casting="unsafe")
        if not np.array_equal(out, section):
            wrong = section[out != section][0]
            raise Invalid(
                file,
                f"the label map has fractions, such as {exact(wrong)}: labels are whole numbers",
                code="labels-fraction",
            )
    return result


def count_values(array: NDArray[Any]) -> dict[int, int]:
    """Voxels per value of an integer array, sorted by value."""
    counts: dict[int, int] = {}
    for section in array:  # by slices: numpy's counting needs eight bytes a voxel
        for value, count in zip(*_unique(section), strict=True):
            counts[int(value)] = counts.get(int(value), 0) + int(count)
    return dict(sorted(counts.items()))


def merge_masks(
    shape: Sequence[int], masks: Iterable[tuple[int, NDArray[Any]]]
) -> tuple[NDArray[np.uint8], dict[tuple[int, int], int]]:
    """One label map of several masks: where masks overlap, the later one wins.

    Args:
        shape: (z, y, x).
        masks: number in the result and mask (nonzero inside), in the order in which they are painted; read one by one.

    Returns:
        The label map; and voxels per pair ``(painted over, winner)``.
    """
    merged = np.zeros(shape, np.uint8)
    overlaps: dict[tuple[int, int], int] = {}
    for value, mask in masks:
        inside = mask != 0
        for below, count in count_values(merged[inside][None]).items():
            if below != 0:
                overlaps[below, value] = count
        merged[inside] = value
    return merged, overlaps


def _unique(section: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and their counts; without sorting where the values are small, as labels are."""
    if section.size and section.min() >= 0 and section.max() < MAX_RANGE:
        counts = np.bincount(section.ravel().astype(np.int64))
        values = counts.nonzero()[0]
        return values, counts[values]
    values, counts = np.unique(section, return_counts=True)
    return values, counts
