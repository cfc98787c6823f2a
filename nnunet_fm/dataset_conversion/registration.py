"""Rigid registration of two images of one patient; in one thread, as cases are converted, always with one result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from nnunet_fm.io.volume import Grid, Volume

BINS = 50
SAMPLES = 50_000
SEED = 12345
ITERATIONS = 100
SHRINK, SMOOTHING = (4, 2, 1), (4.0, 2.0, 0.0)
"""Per level, coarse to fine: factor, and standard deviation in mm."""

FINEST = 1.5
"""mm. Voxels are averaged to about this size first, which a rigid motion can be found on as well."""

MIN_OVERLAP = 0.5
"""Share of the moved image's box that has to lie in the other's, or the motion is not believed."""


@dataclass(frozen=True)
class Registration:
    """A rigid motion.

    Attributes:
        grid: where the moved image lies in the space of the other.
        start: ``coordinates``: the files' own; ``centres``: the boxes' centres on one another.
        shift: mm between the centre of the image before and after.
        angle: degrees.
        information: mutual information that was reached.
    """

    grid: Grid
    start: str
    shift: float
    angle: float
    information: float


def register_rigidly(image: Volume, other: Volume, window: tuple[float, float] | None = None) -> Registration:
    """Move an image onto another one of the same patient by Mattes's mutual information (Mattes et al. 2003).

    Gradient descent over three levels from two starts, of which the better result is taken. Samples are drawn by a
    fixed seed; sums over several threads would still differ in the last bits.

    Args:
        image: what is moved, best the one with the smaller view.
        other: what it is moved onto.
        window: lowest and highest intensity of ``other`` that matter, such as HU of soft tissue and bone.

    Raises:
        ValueError: if no motion is found that puts most of the image's view into the other's.
    """
    fixed, moving = _reduced(image, None), _reduced(other, window)
    centre, target = (np.asarray(_centre(volume.grid)) for volume in (image, other))
    found, reason = [], "the views do not overlap"
    for start, shift in (("coordinates", np.zeros(3)), ("centres", target - centre)):
        transform = sitk.Euler3DTransform()
        transform.SetCenter(centre.tolist())
        transform.SetTranslation(shift.tolist())
        if _overlap(image.grid, moved(image.grid, transform), other.grid) < MIN_OVERLAP:
            continue
        try:
            value = _optimise(fixed, moving, transform)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            continue
        grid = moved(image.grid, transform)
        if _overlap(image.grid, grid, other.grid) >= MIN_OVERLAP:
            cosine = (np.trace(np.reshape(transform.GetMatrix(), (3, 3))) - 1) / 2
            distance = float(np.linalg.norm(transform.GetTranslation()))
            found.append(Registration(grid, start, distance, math.degrees(math.acos(min(1.0, cosine))), value))
    if not found:
        raise ValueError(f"no rigid motion was found ({reason})")
    return max(found, key=lambda registration: registration.information)


def moved(grid: Grid, transform: sitk.Euler3DTransform) -> Grid:
    """The grid after a rigid motion of its points."""
    rotation = np.reshape(transform.GetMatrix(), (3, 3))
    direction = rotation @ np.reshape(grid.direction, (3, 3))
    return Grid(grid.size, grid.spacing, transform.TransformPoint(grid.origin), tuple(direction.ravel().tolist()))


def _optimise(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> float:
    """Change the transform in place; returns the mutual information."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    voxels = [fixed.GetNumberOfPixels() / factor**3 for factor in SHRINK]
    method.SetMetricSamplingPercentagePerLevel([min(1.0, SAMPLES / n) for n in voxels], SEED)
    # Images of gradients need 24 bytes a voxel; at the samples alone they are cheaper.
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=ITERATIONS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTHING)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return -float(method.GetMetricValue())


def _reduced(volume: Volume, window: tuple[float, float] | None) -> sitk.Image:
    image = volume.to_sitk()
    factors = [max(1, round(FINEST / spacing)) for spacing in volume.grid.spacing]
    image = sitk.Cast(sitk.BinShrink(image, factors), sitk.sitkFloat32)
    return image if window is None else sitk.Clamp(image, sitk.sitkFloat32, *window)


def _centre(grid: Grid) -> tuple[float, ...]:
    middle = np.asarray(grid.spacing) * (np.asarray(grid.size) - 1) / 2
    return tuple((np.asarray(grid.origin) + np.reshape(grid.direction, (3, 3)) @ middle).tolist())


def _overlap(grid: Grid, there: Grid, other: Grid) -> float:
    """Share of points of the moved grid's box that lie in another grid's."""
    axes = [np.linspace(0, n - 1, 9) for n in grid.size]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    places = other.indices_of(points, there)
    return float(((places >= -0.5) & (places <= np.asarray(other.size) - 0.5)).all(axis=1).mean())
