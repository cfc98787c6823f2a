"""Image or label map with its place in the patient, and operations in physical space."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

GRID_TOLERANCE = 0.05
"""Two grids are the same if no corner of one lies further from its place in the other, in voxels."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """Grid of voxels in space, in the terms of SimpleITK.

    Attributes:
        size: voxels along x, y, z.
        spacing: mm along x, y, z.
        origin: mm, centre of the first voxel in (left, posterior, superior).
        direction: cosines by row, nine numbers.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    @classmethod
    def from_affine(cls, shape: tuple[int, ...], affine: NDArray[Any]) -> Grid:
        """Make a grid of an affine from (x, y, z) to (right, anterior, superior) in mm; ``shape`` is (z, y, x)."""
        matrix = LPS_TO_RAS @ affine
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        direction = matrix[:3, :3] / spacing
        return cls(
            _triple(reversed(shape)), _triple(spacing), _triple(matrix[:3, 3]), tuple(direction.ravel().tolist())
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        return self.size[::-1]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices (x, y, z) to (right, anterior, superior) in mm, 4 x 4."""
        return LPS_TO_RAS @ self._matrix()

    def _matrix(self) -> NDArray[np.float64]:
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    def indices_of(self, indices: NDArray[Any], other: Grid) -> NDArray[np.float64]:
        """Return the positions of another grid's voxels in this one: (n, 3) indices (x, y, z), fractions included."""
        homogeneous = np.concatenate([indices, np.ones((len(indices), 1))], axis=1)
        return (homogeneous @ (np.linalg.inv(self._matrix()) @ other._matrix()).T)[:, :3]

    def difference(self, other: Grid) -> str | None:
        """Difference from another grid in words; None if they are the same within `GRID_TOLERANCE`."""
        if self.size != other.size:
            return f"size {_times(self.size)} against {_times(other.size)}"
        corners = np.array(list(product(*((0, n - 1) for n in self.size))), dtype=float)
        moved = float(np.abs(self.indices_of(corners, other) - corners).max())
        if moved <= GRID_TOLERANCE:
            return None
        for name in ("spacing", "direction", "origin"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(mine, theirs, rtol=1e-3, atol=1e-3):
                return f"{name} {_numbers(mine)} against {_numbers(theirs)}, {moved:.2g} voxels apart"
        return f"corners {moved:.2g} voxels apart"

    def array_axis(self, anatomical: int) -> int:
        """Axis of the array (z, y, x) that lies along an axis of the patient.

        Args:
            anatomical: 0 inferior to superior, 1 posterior to anterior, 2 left to right: the index into (z, y, x)
                that it has once the image is turned to RAS.
        """
        closest = np.abs(np.reshape(self.direction, (3, 3)))[2 - anatomical].argmax()
        return 2 - int(closest)


@dataclass(frozen=True)
class Volume:
    """An array (z, y, x) on a grid."""

    array: NDArray[Any]
    grid: Grid

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Volume:
        """Make a volume of a 3D image of scalars."""
        grid = Grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        return cls(sitk.GetArrayFromImage(image), grid)

    def to_sitk(self) -> sitk.Image:
        """A SimpleITK image with its own copy of the array."""
        image = sitk.GetImageFromArray(self.array)
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return image


def resample(volume: Volume, grid: Grid, *, label: bool, outside: float = 0.0) -> Volume:
    """The volume on another grid, in physical space: nearest neighbour for labels, linear for images."""
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize(grid.size)
    filter_.SetOutputSpacing(grid.spacing)
    filter_.SetOutputOrigin(grid.origin)
    filter_.SetOutputDirection(grid.direction)
    filter_.SetInterpolator(sitk.sitkNearestNeighbor if label else sitk.sitkLinear)
    filter_.SetDefaultPixelValue(outside)
    return Volume(sitk.GetArrayFromImage(filter_.Execute(volume.to_sitk())), grid)


def outside_fraction(label: Volume, grid: Grid) -> float:
    """Share of a label map's foreground voxels whose centre lies outside another grid's box."""
    total = outside = 0
    limits = np.asarray(grid.size) - 0.5
    for z, section in enumerate(label.array):  # by slices: the indices of all voxels at once would need gigabytes
        y, x = np.nonzero(section)
        if len(x):
            places = grid.indices_of(np.stack([x, y, np.full_like(x, z)], axis=1), label.grid)
            total += len(x)
            outside += int(np.count_nonzero(((places < -0.5) | (places > limits)).any(axis=1)))
    return outside / total if total else 0.0


def _triple(values: Any) -> Any:
    return tuple(v.item() if isinstance(v, np.generic) else v for v in values)


def _times(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
