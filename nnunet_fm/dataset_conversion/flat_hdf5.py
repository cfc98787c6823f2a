"""HDF5 files of the ETH Computer Vision Laboratory: the slices of all volumes in one array, cut by cumulative counts.

``images`` and ``labels`` (or ``masks``) have the shape (sum of slices, rows, columns); ``nz`` has the slices of each
volume. ``nx``, ``ny``, ``px`` and ``py`` describe the images before they were brought to a common pixel size and edge,
and are of no use here. Some files hold three splits (``images_train`` …), some store one volume per row, some the
slices last. None has an orientation or a way back to the scanner's coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.dataset_conversion.base import ImageSource
from nnunet_fm.dataset_conversion.problems import Invalid
from nnunet_fm.dataset_conversion.readers import hdf5_array, opened_hdf5
from nnunet_fm.dataset_conversion.tree import Tree

NOTE = (
    "HDF5 files have no orientation: axes are stored as they are, and nothing leads back to the scanner's coordinates"
)

IMAGES, LABELS = ("images",), ("labels", "masks")
COUNTS, NAMES = ("nz", "depths"), ("patnames", "subject_names")


@dataclass(frozen=True)
class FlatVolume:
    """One volume of a file.

    Attributes:
        index: among the volumes of the file (and split).
        patient: name in the file, which may be cut off or a number alone; empty if there is none.
        image: its slices.
        label: its label slices.
    """

    index: int
    patient: str
    image: ImageSource
    label: ImageSource


def flat_volumes(tree: Tree, file: str, pixel: float, suffix: str = "") -> list[FlatVolume]:
    """List the volumes of a file; only its small vectors are read.

    Args:
        tree: the source.
        file: path in the tree.
        pixel: mm in the plane of the stored slices, 0.7 or 0.625.
        suffix: of the keys, such as ``_train``.

    Raises:
        Invalid: if the file is damaged, lacks an array, or the slices do not add up.
    """
    with opened_hdf5(tree.local(file), file) as opened:

        def key(names: tuple[str, ...]) -> str | None:
            return next((name + suffix for name in names if name + suffix in opened), None)

        images, labels = key(IMAGES) or IMAGES[0] + suffix, key(LABELS) or LABELS[0] + suffix
        shape, label_shape = (hdf5_array(opened, k, file).shape for k in (images, labels))
        if shape != label_shape:
            raise Invalid(file, f"'{images}' has shape {shape}, '{labels}' {label_shape}", code="hdf5-shape")
        counts = key(COUNTS)
        if counts is None and len(shape) != 4:
            raise Invalid(file, f"has no '{COUNTS[0]}{suffix}', which says where volumes begin", code="hdf5-entry")
        slices = [int(n) for n in _numbers(opened, counts, file)] if counts else []
        distance = f"pz{suffix}"
        distances = [float(pz) for pz in _numbers(opened, distance, file)]
        names = key(NAMES)
        patients = [_text(name) for name in np.ravel(hdf5_array(opened, names, file)[()])] if names else []
    parts = _parts(shape, slices, file)
    if len(distances) != len(parts):
        raise Invalid(file, f"'{distance}' has {len(distances)} numbers for {len(parts)} volumes", code="hdf5-counts")
    volumes = []
    for index, (part, pz) in enumerate(zip(parts, distances, strict=True)):
        if not 0 < pz < math.inf:
            raise Invalid(file, f"'{distance}' says {pz} mm between slices of volume {index}", code="hdf5-spacing")
        details = {**part, "spacing": (pixel, pixel, pz)}
        patient = patients[index] if index < len(patients) else ""
        volumes.append(
            FlatVolume(
                index,
                patient,
                ImageSource(file, details={"key": images, **details}),
                ImageSource(file, details={"key": labels, **details}),
            )
        )
    return volumes


def _numbers(opened: Any, key: str, file: str) -> NDArray[Any]:
    """A vector of finite numbers."""
    values = np.ravel(hdf5_array(opened, key, file)[()])
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise Invalid(file, f"'{key}' holds something else than numbers", code="hdf5-numbers")
    return values


def _parts(shape: tuple[int, ...], slices: list[int], file: str) -> list[dict[str, int]]:
    """Range of slices of each volume."""
    if len(shape) == 4:
        if slices and set(slices) != {shape[1]}:
            raise Invalid(
                file,
                f"volumes of shape {shape} have {shape[1]} slices, the file's counts say {set(slices)}",
                code="hdf5-counts",
            )
        return [{"volume": i, "start": 0, "stop": shape[1]} for i in range(shape[0])]
    ends = [*accumulate(slices, initial=0)]
    # The slices' axis is the one whose length they add up to; the first where that leaves a choice.
    axis = next((axis for axis in (0, 2) if len(shape) == 3 and shape[axis] == ends[-1]), None)
    if axis is None or min(slices, default=0) < 1:
        raise Invalid(
            file,
            f"the counts of {len(slices)} volumes add up to {ends[-1]} slices, the array is {shape}",
            code="hdf5-counts",
        )
    return [{"start": start, "stop": stop, "axis": axis} for start, stop in pairwise(ends)]


def _text(name: object) -> str:
    return name.decode("utf-8", "replace").strip("\0 ") if isinstance(name, bytes) else str(name).strip()
