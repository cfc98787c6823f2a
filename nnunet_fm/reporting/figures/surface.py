"""PNG pictures of label maps as shaded surfaces, seen from the front of the patient."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom
from skimage.measure import marching_cubes

from nnunet_fm.reporting.figures.slices import small_png
from nnunet_fm.reporting.overlay import class_colour

Box = tuple[slice, ...]
GRID = 72
"""Number of voxels along the longest side of the grid of surfaces: fine enough for 300 pixels, and fast."""
# Directions (x, y, z): to the light, and halfway between it and the viewer in front.
_LIGHT = np.array((-0.4242, -0.7071, 0.5657))
_HALFWAY = np.array((-0.2296, -0.9238, 0.3062))


def foreground_box(labels: NDArray[Any], margin: int = 2) -> Box:
    """Slices (z, y, x) around all labels; the whole volume without labels."""
    foreground = labels > 0
    if not foreground.any():
        return tuple(slice(None) for _ in labels.shape)
    slices = []
    for axis in range(labels.ndim):
        others = tuple(other for other in range(labels.ndim) if other != axis)
        ends = np.flatnonzero(foreground.any(axis=others))[[0, -1]]
        slices.append(slice(max(0, int(ends[0]) - margin), int(ends[1]) + margin + 1))
    return tuple(slices)


def surface_picture(
    labels: NDArray[Any],
    spacing: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    box: Box,
    *,
    pixels: int = 380,
    turn: float = 25,
) -> bytes:
    """Draw every class as a shaded surface in its overlay colour; returns a PNG with transparent background.

    Args:
        labels: (Z, Y, X) in LPS.
        spacing: spacing in mm (z, y, x).
        classes: class name -> labels.
        box: shown part of the volume, equal for pictures side by side.
        pixels: size of the picture.
        turn: degrees that the patient is turned to the left, so that the picture has depth.
    """
    inside = labels[box]
    extent = np.array(inside.shape) * np.array(spacing)  # mm
    step = max(extent.max() / GRID, min(spacing))
    factors = np.array(spacing) / step
    triangles, colours = [np.zeros((0, 3, 3))], [np.zeros((0, 3))]
    for number, values in enumerate(classes.values()):
        mask = np.pad(np.isin(inside, list(values)), 1)
        if mask.any():
            corners, normals = _surface(mask, factors)
            triangles.append(corners * step)
            colours.append(_shaded(normals, class_colour(number)))
    figure = Figure(figsize=(5, 5), dpi=200, facecolor="none")
    FigureCanvasAgg(figure)
    ax: Any = figure.add_axes((0, 0, 1, 1), projection="3d")
    ax.set_facecolor("none")
    ax.set_proj_type("ortho")
    shades = np.concatenate(colours)
    # One collection, because faces are sorted by depth only within a collection.
    faces = Poly3DCollection(np.concatenate(triangles), facecolors=shades, edgecolors=shades, linewidths=0.15)
    ax.add_collection3d(faces)
    z, y, x = extent
    longest = extent.max()
    ax.set(xlim=_around(x, longest), ylim=_around(y, longest), zlim=_around(z, longest))
    ax.set_box_aspect((1, 1, 1), zoom=1.1)
    ax.view_init(elev=12, azim=-90 + turn)
    ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    rendered = Image.open(buffer)
    picture = rendered.crop(_frame(ax, extent, rendered.height))
    scale = pixels / max(picture.size)
    return small_png(picture.resize([max(1, round(scale * edge)) for edge in picture.size], Image.Resampling.LANCZOS))


def _frame(ax: Any, extent: NDArray[Any], height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the box in the picture, independent of its content."""
    corners = np.array(list(product(*((0, edge) for edge in extent[::-1]))))
    x, y, _ = proj3d.proj_transform(*corners.T, ax.get_proj())
    across, up = ax.transData.transform(np.stack([x, y], axis=1)).T
    return int(across.min()), int(height - up.max()), int(across.max()) + 1, int(height - up.min()) + 1


def _around(edge: float, longest: float) -> tuple[float, float]:
    """Limits of an axis with the length of the longest side, around the middle of a side."""
    return (edge - longest) / 2, (edge + longest) / 2


def _surface(mask: NDArray[np.bool_], factors: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Triangles (N, 3 corners, xyz) of a mask in voxels of the coarser grid, and their normals (N, xyz)."""
    smooth = gaussian_filter(mask.astype(np.float32), sigma=np.clip(0.5 / factors, 0.6, 4))  # smooths steps
    coarse = np.pad(zoom(smooth, factors, order=1, grid_mode=True, mode="grid-constant"), 1)
    level = min(0.5, 0.5 * float(coarse.max()))  # keeps structures that are thinner than the grid
    vertices, faces, normals, _ = marching_cubes(coarse, level=level)
    return vertices[faces][:, :, ::-1], normals[faces].mean(axis=1)[:, ::-1]


def _shaded(normals: NDArray[Any], colour: str) -> NDArray[Any]:
    """RGB of each triangle: ambient and diffuse light, and a small highlight."""
    diffuse = np.clip(normals @ _LIGHT, 0, 1)
    highlight = np.clip(normals @ _HALFWAY, 0, 1) ** 24
    shade = 0.45 + 0.58 * diffuse
    return np.clip(np.array(to_rgb(colour)) * shade[:, None] + 0.22 * highlight[:, None], 0, 1)
