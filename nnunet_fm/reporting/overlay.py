"""Pictures of cases: three orthogonal slices with the contours of the reference and of the prediction."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.image_files import read_image

# Okabe and Ito's palette, distinguishable with every kind of colour vision and bright on grey values.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")

_WIDTH_INCH = 12.6


@dataclass(frozen=True)
class View:
    """Plane of a volume (Z, Y, X) in LPS, where z runs to superior, y to posterior and x to the patient's left.

    The patient's right is on the left of the picture, as in radiology.

    Args:
        name: name of the plane.
        axis: axis across the plane.
        flip: whether rows run to superior and are flipped, so that superior is at the top.
        letters: patient's directions at top, bottom, left and right.
    """

    name: str
    axis: int
    flip: bool
    letters: tuple[str, str, str, str]

    def plane(self, volume: NDArray[Any], centre: Sequence[int]) -> NDArray[Any]:
        """Return the slice (rows, columns) through ``centre``."""
        plane = np.take(volume, centre[self.axis], axis=self.axis)
        return plane[::-1] if self.flip else plane

    def edges(self, sizes: Sequence[float]) -> tuple[float, float]:
        """Select the sizes of rows and columns from three sizes (z, y, x)."""
        height, width = (size for axis, size in enumerate(sizes) if axis != self.axis)
        return height, width


VIEWS = (
    View("axial", 0, False, ("A", "P", "R", "L")),
    View("coronal", 1, True, ("S", "I", "R", "L")),
    View("sagittal", 2, True, ("S", "I", "A", "P")),
)


def class_colour(number: int) -> str:
    """Colour of the n-th class: `COLOURS`, then lighter ones, then darker ones, then all over again."""
    turn, index = divmod(number, len(COLOURS))
    if turn % 3 == 0:
        return COLOURS[index]
    rgb = (int(COLOURS[index][at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, light, saturation = colorsys.rgb_to_hls(*rgb)
    light = light + 0.5 * (1 - light) if turn % 3 == 1 else 0.62 * light
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, saturation))


def overlay_figure(
    image: Path, reference: Path, prediction: Path, classes: Mapping[str, Sequence[int]], title: str = ""
) -> Figure:
    """Draw axial, coronal and sagittal slices through the middle of the foreground, reference beside prediction.

    Args:
        image: grey values, 3D, any orientation.
        reference: label map on the image's grid.
        prediction: label map on the image's grid.
        classes: class name -> labels; each class gets one colour.
        title: title above the slices.

    Raises:
        ValueError: if the three files differ in size.
    """
    grey, spacing = read_volume(image)
    maps = {"reference": read_volume(reference)[0], "prediction": read_volume(prediction)[0]}
    for name, labels in maps.items():
        if labels.shape != grey.shape:
            raise InvalidValueError(
                f"the {name} of {image.name} has size {labels.shape}, the image {grey.shape}", code="grid-differs"
            )
    centre = middle_of_foreground(maps["reference"], maps["prediction"])
    low, high = np.percentile(grey, (1, 99))
    extents = [edge * step for edge, step in zip(grey.shape, spacing, strict=True)]  # mm
    widths = [view.edges(extents)[1] for view in VIEWS for _ in maps]
    height_inch = (
        _WIDTH_INCH * max(extents[0], extents[1]) / sum(widths) + 0.6
    )  # panels share one scale; 0.6 for titles
    figure = Figure(figsize=(_WIDTH_INCH, height_inch), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes = figure.subplots(1, 2 * len(VIEWS), width_ratios=widths)
    for column, view in enumerate(VIEWS):
        height, width = view.edges(spacing)
        for offset, (name, labels) in enumerate(maps.items()):
            ax = axes[2 * column + offset]
            ax.imshow(view.plane(grey, centre), cmap="gray", vmin=low, vmax=high, aspect=height / width)
            draw_contours(ax, view.plane(labels, centre), classes)
            ax.set_title(f"{view.name}, {name}", fontsize=8)
            mark_directions(ax, view.letters)
    handles = [Line2D([], [], color=class_colour(number), label=name) for number, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9, frameon=False)
    return figure


def read_volume(file: Path) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Read an array (Z, Y, X) in LPS and its spacing in mm (z, y, x); 2D images get one slice, colours become grey."""
    image = read_image(file)
    if image.GetNumberOfComponentsPerPixel() > 1:
        channels = [sitk.VectorIndexSelectionCast(image, i, sitk.sitkFloat32) for i in range(3)]
        image = sum(channels[1:], channels[0]) / 3
    if image.GetDimension() == 2:
        x, y = image.GetSpacing()
        return sitk.GetArrayFromImage(image)[None], (1.0, y, x)
    image = sitk.DICOMOrient(image, "LPS")
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z, y, x)


def middle_of_foreground(reference: NDArray[Any], prediction: NDArray[Any]) -> tuple[int, ...]:
    """Median voxel of the foreground of the reference, else of the prediction, else the middle of the volume."""
    for labels in (reference, prediction):
        if np.any(labels > 0):
            return tuple(int(np.median(indices)) for indices in np.nonzero(labels > 0))
    return tuple(edge // 2 for edge in reference.shape)


def draw_contours(
    ax: Axes, labels: NDArray[Any], classes: Mapping[str, Sequence[int]], *, width: float = 1.4, fill: float = 0.0
) -> None:
    """Draw each class of a slice (rows, columns) as a line of ``width`` points, filled with the opacity ``fill``."""
    rows, columns = (np.arange(-1, edge + 1) for edge in labels.shape)
    for number, values in enumerate(classes.values()):
        mask = np.pad(np.isin(labels, list(values)), 1)  # closes contours at the border of the image
        if mask.any():
            colour = class_colour(number)
            if fill:
                ax.contourf(columns, rows, mask.astype(float), levels=[0.5, 1.5], colors=[colour], alpha=fill)
            ax.contour(columns, rows, mask.astype(float), levels=[0.5], colors=[colour], linewidths=width)
    ax.set_xlim(-0.5, labels.shape[1] - 0.5)
    ax.set_ylim(labels.shape[0] - 0.5, -0.5)


def mark_directions(ax: Axes, letters: tuple[str, str, str, str], size: float = 7) -> None:
    """Write the patient's directions at top, bottom, left and right."""
    places = ((0.5, 0.97), (0.5, 0.03), (0.03, 0.5), (0.97, 0.5))
    aligned = (("center", "top"), ("center", "bottom"), ("left", "center"), ("right", "center"))
    for letter, (x, y), (horizontal, vertical) in zip(letters, places, aligned, strict=True):
        text = ax.text(x, y, letter, transform=ax.transAxes, ha=horizontal, va=vertical, fontsize=size, color="white")
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    ax.set_xticks([])
    ax.set_yticks([])
