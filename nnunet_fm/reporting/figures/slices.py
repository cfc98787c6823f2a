"""PNG pictures of a slice of a case, plain or with its classes, cropped to what is labelled."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.reporting.overlay import (
    VIEWS,
    View,
    draw_contours,
    mark_directions,
    read_volume,
)

Classes = Mapping[str, Sequence[int]]
EDGE_PIXELS = 300
"""Pixels of the longer side of a picture."""
MARGIN = 0.35
"""Margin of a crop around the labels, as a share of their extent."""


@dataclass
class CasePictures:
    """A case that is read once, for several pictures of the same crop.

    Args:
        image: grey values.
        reference: label map on the image's grid.
        classes: class name -> labels.

    Raises:
        ValueError: if the files differ in size.
    """

    image: Path
    reference: Path
    classes: Classes

    def __post_init__(self) -> None:
        self.grey, self.spacing = read_volume(self.image)
        self.labels = self.read(self.reference)
        self.centre = fullest_slices(self.labels)
        low, high = np.percentile(self.grey, (1, 99.5))
        self.window = (low, high if high > low else low + 1)
        self.flat = self.grey.shape[0] == 1

    def read(self, file: Path) -> NDArray[Any]:
        """Read a label map (Z, Y, X) on the image's grid."""
        labels, _ = read_volume(file)
        if labels.shape != self.grey.shape:
            raise InvalidValueError(
                f"{file.name} has size {labels.shape}, the image {self.image.name} {self.grey.shape}",
                code="grid-differs",
            )
        return labels

    @property
    def views(self) -> Sequence[View]:
        """Planes worth showing: three, or the only one of a 2D image."""
        return VIEWS[:1] if self.flat else VIEWS

    @property
    def sharpest(self) -> View:
        """The plane of the finest voxels."""
        return min(self.views, key=lambda view: np.prod(view.edges(self.spacing)))

    def picture(self, view: View, labels: NDArray[Any] | None = None) -> bytes:
        """Draw the slice that shows most of the reference as a PNG, with classes if ``labels`` are given."""
        rows, columns = self._crop(view)
        grey = view.plane(self.grey, self.centre)[rows, columns]
        tall, wide = view.edges(self.spacing)
        height, width = grey.shape[0] * tall, grey.shape[1] * wide
        scale = EDGE_PIXELS / max(height, width)
        figure = Figure(figsize=(max(scale * width, 40) / 100, max(scale * height, 40) / 100), dpi=100)
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1))
        low, high = self.window
        ax.imshow(grey, cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="bicubic")
        if labels is not None:
            draw_contours(ax, view.plane(labels, self.centre)[rows, columns], self.classes, width=1.5, fill=0.28)
        if self.flat:
            ax.axis("off")
        else:
            mark_directions(ax, view.letters, size=10)
            ax.spines[:].set_visible(False)
        return png(figure)

    def _crop(self, view: View) -> tuple[slice, slice]:
        """Rows and columns of the plane around the reference: at least 40 % of the image, in equal scale."""
        foreground = view.plane(self.labels > 0, self.centre)
        if not foreground.any():
            return slice(None), slice(None)
        steps = view.edges(self.spacing)
        ends = [np.flatnonzero(foreground.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
        extents = [(end - start + 1) * step for (start, end), step in zip(ends, steps, strict=True)]  # mm
        largest = max(extents) * (1 + 2 * MARGIN)
        slices = []
        for axis, ((start, end), step) in enumerate(zip(ends, steps, strict=True)):
            edge = foreground.shape[axis]
            wanted = min(edge, max(round(largest / step), round(0.4 * edge)))
            first = min(max(0, (start + end + 1 - wanted) // 2), edge - wanted)
            slices.append(slice(int(first), int(first + wanted)))
        return slices[0], slices[1]


def fullest_slices(labels: NDArray[Any]) -> tuple[int, ...]:
    """Slice of each axis that shows most of all labels, each label relative to its own largest slice.

    The middle of all labels would not do: it may lie between two structures.
    """
    values = [value for value in np.unique(labels) if value != 0]
    if not values:
        return tuple(edge // 2 for edge in labels.shape)
    slices = []
    for axis in range(labels.ndim):
        others = tuple(other for other in range(labels.ndim) if other != axis)
        areas = np.array([np.count_nonzero(labels == value, axis=others) for value in values])
        slices.append(int(np.argmax((areas / areas.max(axis=1, keepdims=True)).sum(axis=0))))
    return tuple(slices)


def png(figure: Figure) -> bytes:
    """Convert a figure to a PNG with a palette."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return small_png(Image.open(buffer).convert("RGB"))


def array_png(array: NDArray[Any]) -> bytes:
    """Convert grey values (Y, X) or colours (Y, X, 3) in [0, 1] to a PNG whose longer side has `EDGE_PIXELS`."""
    picture = Image.fromarray((255 * array.clip(0, 1)).astype(np.uint8)).convert("RGB")
    scale = EDGE_PIXELS / max(picture.size)
    return small_png(picture.resize([max(1, round(scale * edge)) for edge in picture.size], Image.Resampling.NEAREST))


def small_png(picture: Image.Image) -> bytes:
    """Convert a picture to a PNG of at most 256 colours."""
    buffer = io.BytesIO()
    if picture.mode == "RGBA":
        small = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    else:  # the better method has no transparency; dithered, because bands in grey values look like anatomy
        palette = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE)
        small = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(buffer, format="png")
    return buffer.getvalue()
