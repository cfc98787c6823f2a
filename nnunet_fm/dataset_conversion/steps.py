"""Steps that change intensities and size, by a user's option or a dataset's rule; images become float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_fm.io.volume import Grid, Volume, resample

N4_SHRINK = 4
N4_ITERATIONS = (50, 50, 50, 50)
"""ITK's defaults, and the shrink factor of its example; no publication of these datasets states others."""


@dataclass(frozen=True)
class Thesis:
    """Preprocessing of the thesis on 2D backbones (section 4.2.1), in the plane of its slices.

    Attributes:
        normalise: ``percentile``: 1st to 99th percentile of the volume to 0..1, clipped; ``zscore``: zero mean and unit
            standard deviation, then minimum to maximum to 0..1.
        size: edge in pixels of the square slices.
        spacing: mm in the plane before the slice is cropped or padded about its centre; None: the slice is stretched
            to the square.
        n4: correct the bias field first.
        skull_strip: set what has no label to 0.
    """

    normalise: Literal["percentile", "zscore"]
    size: int = 256
    spacing: float | None = None
    n4: bool = False
    skull_strip: bool = False


def n4(volume: Volume) -> Volume:
    """Correct a smooth bias field (N4, Tustison et al. 2010), fitted on every fourth voxel inside Otsu's mask."""
    image = sitk.Cast(volume.to_sitk(), sitk.sitkFloat32)
    factors = [min(N4_SHRINK, max(1, n // 4)) for n in volume.grid.size]
    small = sitk.Shrink(image, factors)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(N4_ITERATIONS)
    try:
        corrector.Execute(small, sitk.OtsuThreshold(small, 0, 1, 200))
    except RuntimeError as error:
        raise ValueError(f"N4 failed: {str(error).strip().splitlines()[-1]}") from None
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return Volume(volume.array.astype(np.float32) / np.exp(field, out=field), volume.grid)


def strip(volume: Volume, brain: NDArray[Any]) -> Volume:
    """Set everything outside of a mask (z, y, x) to 0."""
    return Volume(np.where(brain != 0, volume.array, volume.array.dtype.type(0)), volume.grid)


def normalise(volume: Volume, how: Literal["percentile", "zscore"]) -> Volume:
    """Intensities to 0..1, see `Thesis`; a constant image becomes 0."""
    array = volume.array.astype(np.float32)
    if how == "percentile":
        low, high = (float(p) for p in np.percentile(array, (1, 99)))
        np.clip(array, low, high, out=array)
    else:
        deviation = float(array.std(dtype=np.float64))
        array -= array.mean(dtype=np.float64)
        array /= deviation or 1.0
        low, high = float(array.min()), float(array.max())
    array -= low
    array /= (high - low) or 1.0
    return Volume(array, volume.grid)


def plane_grid(grid: Grid, axis: int, size: int, spacing: float | None) -> Grid:
    """A grid of square slices with the same centre, directions, number of slices and distance between them.

    Args:
        grid: of the volume.
        axis: of the array (z, y, x) along which slices are taken.
        size: edge of the slices in pixels.
        spacing: mm in the plane; None: the slices keep their extent.
    """
    along = 2 - axis
    sizes = tuple(n if i == along else size for i, n in enumerate(grid.size))
    spacings = tuple(
        s if i == along else (spacing or s * n / size)
        for i, (s, n) in enumerate(zip(grid.spacing, grid.size, strict=True))
    )
    direction = np.reshape(grid.direction, (3, 3))
    centre = np.asarray(grid.origin) + direction @ (np.asarray(grid.spacing) * (np.asarray(grid.size) - 1) / 2)
    origin = centre - direction @ (np.asarray(spacings) * (np.asarray(sizes) - 1) / 2)
    return Grid(sizes, spacings, tuple(origin.tolist()), grid.direction)  # type: ignore[arg-type]  # three each


def thesis_plane(volume: Volume, axis: int, settings: Thesis, *, label: bool) -> Volume:
    """Bring slices to the thesis's pixel size and edge; outside of the volume is 0."""
    return resample(volume, plane_grid(volume.grid, axis, settings.size, settings.spacing), label=label)
