"""Pictures of cases: three orthogonal slices with the contours of the reference and of the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

# Okabe and Ito's palette: told apart with every kind of colour vision, and all bright on grey values.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")

_WIDTH_INCH = 12.6

# Volumes are (Z, Y, X) in LPS: z to superior, y to posterior, x to the patient's left. Each view drops one axis; rows
# run down the page and columns to the right, as a radiologist looks at them: the patient's right is on the left.
_VIEWS = (
    ("axial", 0, False, ("A", "P", "R", "L")),
    ("coronal", 1, True, ("S", "I", "R", "L")),
    ("sagittal", 2, True, ("S", "I", "A", "P")),
)


def overlay_figure(
    image: Path, reference: Path, prediction: Path, classes: Mapping[str, Sequence[int]], title: str = ""
) -> Figure:
    """Axial, coronal and sagittal slice through the middle of the foreground, reference beside prediction.

    Args:
        image: grey values, 3D, any orientation.
        reference: label map on the image's grid.
        prediction: label map on the image's grid.
        classes: class name -> labels; each class gets one colour.
        title: printed above.

    Raises:
        ValueError: if the three files differ in size.
    """
    grey, spacing = _read(image)
    maps = {"reference": _read(reference)[0], "prediction": _read(prediction)[0]}
    for name, labels in maps.items():
        if labels.shape != grey.shape:
            raise ValueError(f"the {name} of {image.name} has size {labels.shape}, the image {grey.shape}")
    centre = _middle_of_foreground(maps["reference"], maps["prediction"])
    low, high = np.percentile(grey, (1, 99))
    extents = [edge * step for edge, step in zip(grey.shape, spacing, strict=True)]  # mm
    widths = [extents[1 if axis == 2 else 2] for _, axis, _, _ in _VIEWS for _ in maps]
    height_inch = (
        _WIDTH_INCH * max(extents[0], extents[1]) / sum(widths) + 0.6
    )  # panels share one scale; 0.6 for titles
    figure = Figure(figsize=(_WIDTH_INCH, height_inch), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    axes = figure.subplots(1, 2 * len(_VIEWS), width_ratios=widths)
    for column, (view, axis, flip, letters) in enumerate(_VIEWS):
        height, width = (s for i, s in enumerate(spacing) if i != axis)
        for offset, (name, labels) in enumerate(maps.items()):
            ax = axes[2 * column + offset]
            ax.imshow(_slice(grey, axis, centre, flip), cmap="gray", vmin=low, vmax=high, aspect=height / width)
            _draw_contours(ax, _slice(labels, axis, centre, flip), classes)
            ax.set_title(f"{view}, {name}", fontsize=8)
            _mark_directions(ax, letters)
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(classes)]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9, frameon=False)
    return figure


def _read(file: Path) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Array (Z, Y, X) in LPS and its spacing in mm (z, y, x)."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(file)), "LPS")
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z, y, x)


def _middle_of_foreground(reference: NDArray[Any], prediction: NDArray[Any]) -> tuple[int, ...]:
    """Median voxel of the reference's foreground, else of the prediction's, else the middle of the volume."""
    for labels in (reference, prediction):
        if np.any(labels > 0):
            return tuple(int(np.median(indices)) for indices in np.nonzero(labels > 0))
    return tuple(edge // 2 for edge in reference.shape)


def _slice(volume: NDArray[Any], axis: int, centre: tuple[int, ...], flip: bool) -> NDArray[Any]:
    """Plane through ``centre``; flipped where its rows run to superior, which belongs at the top."""
    plane = np.take(volume, centre[axis], axis=axis)
    return plane[::-1] if flip else plane


def _draw_contours(ax: Axes, labels: NDArray[Any], classes: Mapping[str, Sequence[int]]) -> None:
    rows, columns = (np.arange(-1, edge + 1) for edge in labels.shape)
    for number, values in enumerate(classes.values()):
        mask = np.pad(np.isin(labels, list(values)), 1)  # so that a contour closes at the border of the image
        if mask.any():
            colour = COLOURS[number % len(COLOURS)]
            ax.contour(columns, rows, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.4)
    ax.set_xlim(-0.5, labels.shape[1] - 0.5)
    ax.set_ylim(labels.shape[0] - 0.5, -0.5)


def _mark_directions(ax: Axes, letters: tuple[str, str, str, str]) -> None:
    """Letters of the patient's directions at top, bottom, left and right."""
    places = ((0.5, 0.97), (0.5, 0.03), (0.03, 0.5), (0.97, 0.5))
    aligned = (("center", "top"), ("center", "bottom"), ("left", "center"), ("right", "center"))
    for letter, (x, y), (horizontal, vertical) in zip(letters, places, aligned, strict=True):
        text = ax.text(x, y, letter, transform=ax.transAxes, ha=horizontal, va=vertical, fontsize=7, color="white")
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    ax.set_xticks([])
    ax.set_yticks([])
