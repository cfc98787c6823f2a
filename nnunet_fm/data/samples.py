"""Samples that a training draws in one pass over its images."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count_samples(shapes: Sequence[Sequence[int]], patch: Sequence[int]) -> int:
    """Samples of one pass over images: their slices, or as many patches as hold their voxels, one for each at least.

    Args:
        shapes: of the images in the network's grid, voxels; the first axis is the one across the slices.
        patch: two edges for slices, three for patches, voxels.
    """
    if len(patch) == 2:
        return sum(int(shape[0]) for shape in shapes)
    return math.ceil(sum(max(1.0, math.prod(map(int, shape)) / math.prod(patch)) for shape in shapes))
