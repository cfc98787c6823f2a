"""Check by the headers that label maps and further channels lie on the grid of their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from nnunet_fm.io.messages import listed
from nnunet_fm.io.volume import Grid
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.orientation import REORIENTING_READERS, UNORIENTED_READERS, read_header, tells_place

MOVED, STRETCHED = 0.1, 1e-3
"""Voxels that a corner may be off, and share of the grid's edge besides: headers round what they hold."""
SPACING = 0.1
"""Share by which a spacing that is wrong beyond doubt differs."""
TURNED = np.cos(np.pi / 4)
"""Cosine of the angle from which two axes are not the same axis."""


@dataclass(frozen=True)
class Misfit:
    """Difference of a file's grid from that of its image.

    Attributes:
        reason: in words.
        certain: whether one of the two headers must be wrong; a small shift may be a convention.
    """

    reason: str
    certain: bool


def check_grids(cases: Mapping[str, Mapping[str, Any]], reader: str) -> list[str]:
    """Compare the headers of label maps and further channels with those of the cases' first images.

    Args:
        cases: name -> ``{"images": [a file for each channel], "label": file}``.
        reader: name of nnU-Net's reader; those of formats without a place in space are not asked.

    Returns:
        A warning that names the cases which are a little off; none where all fit.

    Raises:
        PlanError: naming the cases of which an axis is flipped or turned, the spacing differs, or which lie elsewhere.
    """
    if reader in UNORIENTED_READERS:
        return []
    certain: list[str] = []
    slight: list[str] = []
    for case, files in cases.items():
        first, *channels = files["images"]
        image = _grid(first, reader)
        others = {"label map": files["label"]}
        others |= {f"channel {number:04d}": file for number, file in enumerate(channels, 1)}
        for what, file in others.items():
            other = _grid(file, reader)
            if image is None or other is None:
                continue
            found = misfit(other, image)
            if found is not None and found.certain and reader not in REORIENTING_READERS:
                found = _without_place(other, image, (file, first)) or found
            if found is not None:
                (certain if found.certain else slight).append(f"{what} of {case}: {found.reason}")
    if certain:
        raise PlanError(
            f"{listed(certain, '; ')}. If the voxels fit by their index, copy the image's header onto the file "
            "(SimpleITK: CopyInformation); else resample or redraw it on the image's grid",
            code="grid-differs",
        )
    if slight:
        return [f"{listed(slight, '; ')}. Voxels are paired by their index, as in nnU-Net"]
    return []


def misfit(other: Grid, image: Grid) -> Misfit | None:
    """Difference of a grid from that of an image of the same size; None for the same place, and for another size.

    Reading finds out about sizes, and says more than headers do.
    """
    if other.size != image.size:
        return None
    cosines = np.einsum("ij,ij->j", np.reshape(other.direction, (3, 3)), np.reshape(image.direction, (3, 3)))
    if flipped := [axis for axis, cosine in zip("xyz", cosines, strict=True) if cosine < -TURNED]:
        axes = f"axis {flipped[0]} points" if len(flipped) == 1 else f"axes {' and '.join(flipped)} point"
        return Misfit(f"its {axes} the other way than the image's", True)
    if cosines.min() < TURNED:
        return Misfit(f"its axes are turned by {np.degrees(np.arccos(cosines.min())):.0f}° against the image's", True)
    corners = np.array(list(product(*((0, n - 1) for n in image.size))), dtype=float)
    places = image.indices_of(corners, other)
    apart = np.abs(places - corners).max(axis=0)
    if (apart <= MOVED + STRETCHED * np.array(image.size)).all():
        return None
    ratios = np.array(other.spacing) / np.array(image.spacing)
    if not np.allclose(ratios, 1, rtol=0, atol=STRETCHED):
        spacings = f"its spacing is {_numbers(other.spacing)} mm, the image's {_numbers(image.spacing)} mm"
        return Misfit(spacings, bool((np.abs(ratios - 1) > SPACING).any()))
    outside = (places.max(axis=0) < 0) | (places.min(axis=0) > np.array(image.size) - 1)
    where = "beside the image" if outside.any() else "off the image's place"
    origins = f"origin {_numbers(other.origin)} mm against {_numbers(image.origin)} mm"
    lost = not any(other.origin)  # as by programs that write voxels without their place
    return Misfit(f"it lies {apart.max():.2g} voxels {where}: {origins}", bool(outside.any()) and not lost)


def _without_place(other: Grid, image: Grid, files: Sequence[str]) -> Misfit | None:
    """Difference of two grids where one header has neither origin nor direction; None where both have them.

    Readers that turn images turn such a file by what they make up, and then the difference is real.
    """
    headers = [header for file in files if (header := read_header(file)) is not None]
    if all(map(tells_place, headers)):
        return None
    placed = replace(other, origin=image.origin, direction=image.direction)
    return misfit(placed, image) or Misfit("only one of both headers tells where the voxels lie in the patient", False)


def _grid(file: str, reader: str) -> Grid | None:
    """Grid of a volume by its header; None where SimpleITK cannot read it."""
    header = read_header(file)
    if header is None:
        return None
    dimensions = header.GetDimension()
    if dimensions < 3:
        return None
    direction = np.reshape(header.GetDirection(), (dimensions, dimensions))[:3, :3]
    size, spacing, origin = (values[:3] for values in (header.GetSize(), header.GetSpacing(), header.GetOrigin()))
    grid = Grid(size, spacing, origin, tuple(direction.ravel().tolist()))
    return _turned_to_ras(grid) if reader in REORIENTING_READERS else grid


def _turned_to_ras(grid: Grid) -> Grid:
    orientation = io_orientation(grid.affine)
    affine = grid.affine @ inv_ornt_aff(orientation, grid.size)
    size = [0, 0, 0]
    for old, new in enumerate(orientation[:, 0].astype(int)):
        size[new] = grid.size[old]
    return Grid.from_affine(tuple(reversed(size)), affine)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
