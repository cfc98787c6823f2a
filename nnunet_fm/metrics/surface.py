"""Distances between the surfaces of a class in two label maps, in mm: HD95 and the normalised surface Dice.

Both agree with MONAI's, whose dense maps of every class need many times the memory of a sparse boundary, and which
cannot leave out the surface against ignored voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunet_fm.metrics.boundary import Boundary

_ROUNDING = 1e-6
"""Share by which a distance may exceed the tolerance because of rounding, as in 3 x 0.1."""


@dataclass(frozen=True)
class _Surface:
    """Surface of a class: sorted flat indices of its points, (N,), and their areas or ones, (N,)."""

    places: NDArray[np.int64]
    weights: NDArray[np.float64]


def hd95(
    reference: Boundary, prediction: Boundary, members: Sequence[int], ignored: int | None, spacing: Sequence[float]
) -> float:
    """95th percentile of the Hausdorff distance in mm; NaN if a map has no surface.

    The larger of the two directed 95th percentiles of distances between edge voxels, voxels of the class with a face
    neighbour outside of it. The outside of the array is no class. Equal to MONAI's
    ``compute_hausdorff_distance(percentile=95)``.

    Args:
        reference: boundary from `nnunet_fm.metrics.boundary.voxels`.
        prediction: boundary of the other map.
        members: codes of the class.
        ignored: a face against a voxel of this code makes no edge.
        spacing: spacing of the axes in mm.
    """
    here, there = (_edge_voxels(boundary, members, ignored) for boundary in (reference, prediction))
    if len(here.places) == 0 or len(there.places) == 0:
        return float("nan")
    step, shape = np.asarray(spacing), reference.shape
    return max(float(np.percentile(_distances(*pair, shape, step), 95)) for pair in ((here, there), (there, here)))


def surface_dice(
    reference: Boundary,
    prediction: Boundary,
    members: Sequence[int],
    ignored: int | None,
    spacing: Sequence[float],
    tolerance: float,
) -> float:
    """Normalised surface Dice: the share of both surfaces that is at most ``tolerance`` from the other one.

    Surfaces run between voxels and have areas in mm² (in 2D lengths in mm), by marching cubes. Equal to
    DeepMind's ``surface-distance`` (Nikolov et al. 2021, https://doi.org/10.2196/26151) and MONAI's
    ``compute_surface_dice(use_subvoxels=True)``. NaN if neither map has a surface, 0 if only one has.

    Args:
        reference: boundary from `nnunet_fm.metrics.boundary.corners`.
        prediction: boundary of the other map.
        members: codes of the class.
        ignored: surface that touches a voxel of this code does not count.
        spacing: spacing of the axes in mm.
        tolerance: distance in mm.
    """
    areas = _areas(tuple(map(float, spacing)))
    here, there = (_surface_elements(boundary, members, ignored, areas) for boundary in (reference, prediction))
    whole = float(here.weights.sum() + there.weights.sum())
    if len(here.places) == 0 or len(there.places) == 0:
        return 0.0 if whole else float("nan")
    step, shape, reach = np.asarray(spacing), reference.shape, tolerance * (1 + _ROUNDING)
    close = sum(
        float(mine.weights[_distances(mine, other, shape, step, reach) <= reach].sum())
        for mine, other in ((here, there), (there, here))
    )
    return close / whole


def _edge_voxels(boundary: Boundary, members: Sequence[int], ignored: int | None) -> _Surface:
    centre = np.isin(boundary.codes[:, 0], members)
    places, around = boundary.places[centre], boundary.codes[centre, 1:]
    inside = members if ignored is None else [*members, ignored]
    edge = ~np.isin(around, inside).all(1)
    return _Surface(places[edge], np.ones(np.count_nonzero(edge)))


def _surface_elements(
    boundary: Boundary, members: Sequence[int], ignored: int | None, areas: NDArray[np.float64]
) -> _Surface:
    inside = np.isin(boundary.codes, members)
    bits = np.left_shift(1, np.arange(inside.shape[1])[::-1])
    weights = areas[inside @ bits]
    if ignored is not None:
        weights[(boundary.codes == ignored).any(1)] = 0.0
    return _Surface(boundary.places[weights > 0], weights[weights > 0])


@lru_cache(maxsize=8)
def _areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area in mm² (2D: length in mm) of the surface at a corner, by the bits of its voxels, the first's the highest."""
    from monai.metrics.utils import get_code_to_measure_table  # takes seconds to import

    return get_code_to_measure_table(spacing)[0].double().numpy()


def _distances(
    here: _Surface, there: _Surface, shape: tuple[int, ...], spacing: NDArray[np.float64], reach: float = np.inf
) -> NDArray[np.float64]:
    """Distance in mm of each point to the other surface; infinite beyond ``reach``."""
    distances = np.zeros(len(here.places))
    apart = ~np.isin(here.places, there.places, assume_unique=True)
    if apart.any():
        mine, other = (
            np.stack(np.unravel_index(places, shape), 1) * spacing for places in (here.places[apart], there.places)
        )
        bound = np.nextafter(reach, np.inf)  # the tree's bound is exclusive
        distances[apart] = cKDTree(other, leafsize=32).query(mine, distance_upper_bound=bound)[0]
    return distances
