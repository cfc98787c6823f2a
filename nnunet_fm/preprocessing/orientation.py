"""Orientation of a dataset's images in the patient, compared with that of the pre-training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

MAX_CASES = 200
"""Headers read at most; beyond that a share is known well enough."""

HEADERS_KEPT = 4096
"""Headers that stay in memory, a few kilobytes each."""

REORIENTING_READER = "NibabelIOWithReorient"
"""nnU-Net's reader that turns every NIfTI image to RAS before anything else happens."""

NEAR = 0.5
"""Cosine of the angle between an image axis and one of the patient from which the two may be confused."""

REORIENTING_READERS = (REORIENTING_READER, "SimpleITKIOWithReorient")
"""All readers of nnU-Net's that turn images before anything else happens."""

UNORIENTED_READERS = ("NaturalImage2DIO", "Tiff3DIO")
"""nnU-Net's readers of formats that know no patient."""


def axis_codes(direction: Sequence[float]) -> str:
    """Directions of the image axes x, y, z in the letters of nibabel: ``RAS`` is right, anterior, superior.

    Args:
        direction: SimpleITK's direction cosines, nine numbers by row, in its own frame (left, posterior, superior).
    """
    matrix = np.asarray(direction, dtype=float).reshape(3, 3)
    codes = ""
    for column in matrix.T:
        axis = int(np.argmax(np.abs(column)))
        codes += ("LPS" if column[axis] > 0 else "RAI")[axis]
    return codes


def dataset_orientations(cases: Mapping[str, Mapping[str, Any]], reader: str) -> Counter[str]:
    """Number of training images of each orientation, by nnU-Net's reader; empty for formats without one.

    Args:
        cases: as nnU-Net lists them, case -> ``{"images": [a file for each channel], ...}``.
        reader: name of the reader-writer class of the plan.
    """
    if reader in UNORIENTED_READERS:
        return Counter()
    files = [case["images"][0] for case in list(cases.values())[:MAX_CASES]]
    if reader in REORIENTING_READERS:
        return Counter({"RAS": len(files)})
    headers = [header for file in files if (header := read_header(file)) is not None]
    return Counter(axis_codes(header.GetDirection()) for header in headers if header.GetDimension() == 3)


def read_header(file: str) -> sitk.ImageFileReader | None:
    """SimpleITK's reader with the header of a file, whose voxels are not read; None where it cannot read that.

    Planning asks for the same headers several times: they are read again only after the file has changed.
    """
    try:
        found = os.stat(file)
    except OSError:
        return None
    return _read_header(str(file), (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=HEADERS_KEPT)
def _read_header(file: str, state: tuple[int, ...]) -> sitk.ImageFileReader | None:
    header = sitk.ImageFileReader()
    header.SetFileName(file)
    try:
        header.ReadImageInformation()
    except RuntimeError:  # damaged, or of a format of another reader: reading the voxels says so
        return None
    return header


def tells_place(header: sitk.ImageFileReader) -> bool:
    """Whether a header says where the image lies in the patient; SimpleITK makes up a place where it does not."""
    codes = [header.GetMetaData(key) for key in ("qform_code", "sform_code") if header.HasMetaDataKey(key)]  # NIfTI
    if codes and all(code.strip() == "0" for code in codes):
        return False
    nrrd = header.GetFileName().lower().endswith((".nrrd", ".nhdr"))
    return not nrrd or header.HasMetaDataKey("NRRD_space")


def patient_axes(
    cases: Mapping[str, Mapping[str, Any]], reader: str, patient_axis: int = 0
) -> tuple[frozenset[int] | None, str | None]:
    """Image axes along which mirroring may exchange two sides of the patient, as indices into (z, y, x).

    An axis is one of them if it lies within `NEAR` of the patient's axis in any training image. Then no product of
    mirrorings along the others moves a structure to the other side.

    Args:
        cases, reader: as in `dataset_orientations`; here all cases are read.
        patient_axis: 0 from left to right, 1 from front to back, 2 from top to bottom.

    Returns:
        The axes, None where an image does not tell; and what is unsure about them, None if all images have one axis.
    """
    if reader in UNORIENTED_READERS:
        return None, "the images' format does not tell how they lie in the patient"
    found: Counter[frozenset[int] | None] = Counter()
    for case in cases.values():
        direction = _direction(str(case["images"][0]))
        found[None if direction is None else _near(direction, reader, patient_axis)] += 1
    if None in found:
        which = "the training images" if len(found) == 1 else f"{found[None]} of {len(cases)} training images"
        return None, f"the headers of {which} do not tell how they lie in the patient"
    axes = frozenset(axis for some in found for axis in some or ())
    if len(axes) > 1:
        return axes, f"the training images {'differ in their axes' if len(found) > 1 else 'lie askew'}"
    return axes, None


def _direction(file: str) -> NDArray[np.float64] | None:
    """Direction cosines of the image axes x, y, z as columns of a 3 x 3 matrix; None where the header has none."""
    header = read_header(file)
    if header is None or header.GetDimension() < 3 or not tells_place(header):
        return None
    size = header.GetDimension()
    return np.asarray(header.GetDirection(), dtype=float).reshape(size, size)[:3, :3]


def _near(direction: NDArray[np.float64], reader: str, patient_axis: int) -> frozenset[int]:
    """The axes (z, y, x) of an image that `patient_axes` counts, as the reader gives them."""
    across = np.abs(direction[patient_axis])  # of the file's x, y, z
    if reader in REORIENTING_READERS:
        codes = axis_codes(direction.ravel().tolist())
        order = [next((i for i, code in enumerate(codes) if code in pair), None) for pair in ("LR", "PA", "SI")]
        if None in order:  # an image so askew that two axes point the same way
            return frozenset(range(3))
        across = across[order]
    return frozenset(2 - int(axis) for axis in np.flatnonzero(across >= NEAR))


def orientation_warning(expected: str | None, found: Mapping[str, int], model: str) -> str | None:
    """A sentence if images lie otherwise than those that the weights have seen; None if all is well or unknown.

    Args:
        expected: the card's axis codes of x, y, z.
        found: the dataset's, with counts.
        model: name of the model.
    """
    if expected is None or not found or set(found) == {expected}:
        return None
    seen = ", ".join(f"{count} {codes}" for codes, count in sorted(found.items(), key=lambda item: -item[1]))
    mixed = " They also differ among themselves." if len(found) > 1 else ""
    cure = (
        f"nothing is flipped; to have nnU-Net read NIfTI files as RAS, put "
        f'"overwrite_image_reader_writer": "{REORIENTING_READER}" into dataset.json before the fingerprint is extracted'
        if expected == "RAS"
        else "nothing is flipped"
    )
    return (
        f"the weights of '{model}' have seen images whose axes x, y, z point to {expected}, the training images "
        f"point to {seen}.{mixed} The network sees them mirrored or turned ({cure})"
    )
