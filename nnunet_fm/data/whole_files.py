"""Compressed NIfTI files that are cut off, whose rest SimpleITK would read as zeros without a word."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import nibabel as nib

from nnunet_fm.foreign import check_promise


def check_whole(file: str, *, strict: bool = False) -> None:
    """Raise a ValueError for a compressed NIfTI file that is cut off, whose rest SimpleITK would read as zeros.

    One that promises more than any file of its size can hold is noticed before there is memory for it.
    The file is decompressed only where the size at its end is not the one that its header promises. With ``strict``, a
    header that cannot be read is an error, too.
    """
    if not file.endswith(".nii.gz"):
        return
    try:
        image = nib.load(file)
    except Exception:  # whatever it is: what SimpleITK cannot read either, it says itself
        if strict:
            raise
        return
    if not isinstance(image, nib.Nifti1Image):
        return
    voxels = cast(Any, image).dataobj
    promised = int(voxels.offset) + math.prod(voxels.shape) * int(voxels.dtype.itemsize)
    check_promise(Path(file), promised)
    with open(file, "rb") as raw:
        raw.seek(-4, os.SEEK_END)
        (size,) = struct.unpack("<I", raw.read())
    if size == promised % 2**32:
        return
    found = 0  # several streams in one file, something behind the image, or indeed too little
    with gzip.open(file) as content, suppress(EOFError, OSError, zlib.error):
        while chunk := content.read(2**20):
            found += len(chunk)
    if found < promised:
        raise ValueError(f"{os.path.basename(file)} is cut off: its header promises {promised} bytes")
