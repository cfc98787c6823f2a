"""Sampled voxels of each class in a preprocessed case: the samples of nnU-Net in half the memory and time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Locations = dict[int | tuple[int, ...], NDArray[np.int64] | list[int]]

SEED = 1234
SAMPLES = 10000
"""Voxels kept of a class, or all if it has fewer, or `SHARE` of them if that is more."""
SHARE = 0.01


def sample_locations(seg: NDArray[np.integer], classes: Sequence[int | Sequence[int]]) -> Locations:
    """Voxels drawn without replacement for each class or region; equals nnU-Net's `_sample_foreground_locations`.

    Args:
        seg: label map ``(1, Z, Y, X)``.
        classes: labels, and tuples of labels that are taken together.

    Returns:
        class -> indices ``(n, 4)`` into ``seg``, an empty list for a class that does not occur.
    """
    groups = [tuple(int(v) for v in c) if isinstance(c, Sequence) else (int(c),) for c in classes]
    keys = [group if isinstance(c, Sequence) else group[0] for c, group in zip(classes, groups, strict=True)]
    flat = seg.reshape(-1)
    voxels = np.flatnonzero(np.isin(flat, list({label for group in groups for label in group})))
    values = flat[voxels]
    voxels = voxels[np.argsort(values, kind="stable")]
    labels, counts = np.unique(values, return_counts=True)
    ends = np.cumsum(counts)
    ranges = {int(v): (int(end - n), int(n)) for v, n, end in zip(labels, counts, ends, strict=True)}

    random = np.random.RandomState(SEED)
    locations: Locations = {}
    for key, group in zip(keys, groups, strict=True):
        parts = [ranges[label] for label in group if label in ranges]
        total = sum(n for _, n in parts)
        if total == 0:
            locations[key] = []
            continue
        wanted = max(min(SAMPLES, total), int(np.ceil(total * SHARE)))
        drawn = random.choice(total, wanted, replace=False)
        starts = np.array([start for start, _ in parts])
        behind = np.cumsum([n for _, n in parts])
        part = np.searchsorted(behind, drawn, side="right")
        before = np.concatenate(([0], behind[:-1]))
        picked = voxels[starts[part] + drawn - before[part]]
        locations[key] = np.stack(np.unravel_index(picked, seg.shape), axis=1)
    return locations
