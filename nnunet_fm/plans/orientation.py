"""How a dataset's images lie in the patient, compared with what a model's weights have seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk

MAX_CASES = 200
"""Headers read at most; beyond that a share is known well enough."""

REORIENTING_READER = "NibabelIOWithReorient"
"""nnU-Net's reader that turns every NIfTI image to RAS before anything else happens."""

UNORIENTED_READERS = ("NaturalImage2DIO", "Tiff3DIO")
"""nnU-Net's readers of formats that know no patient."""


def axis_codes(direction: Sequence[float]) -> str:
    """Where the image axes x, y, z point to, as nibabel's letters: ``RAS`` is right, anterior, superior.

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
    """How many training images lie in which direction as nnU-Net reads them; empty where the format knows none.

    Args:
        cases: as nnU-Net lists them, case -> ``{"images": [a file for each channel], ...}``.
        reader: name of the reader-writer class of the plan.
    """
    if reader in UNORIENTED_READERS:
        return Counter()
    files = [case["images"][0] for case in list(cases.values())[:MAX_CASES]]
    if reader == REORIENTING_READER:
        return Counter({"RAS": len(files)})
    found: Counter[str] = Counter()
    for file in files:
        header = sitk.ImageFileReader()
        header.SetFileName(str(file))
        try:
            header.ReadImageInformation()
        except RuntimeError:  # a format of another reader; nnU-Net itself will say if nobody can read it
            continue
        if header.GetDimension() == 3:
            found[axis_codes(header.GetDirection())] += 1
    return found


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
