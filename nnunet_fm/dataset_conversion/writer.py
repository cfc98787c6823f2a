"""Files of an nnU-Net raw folder: NIfTI images byte for byte the same every time, and its three JSON files."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.io import untrusted as foreign
from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.io.volume import Grid

FILE_ENDING = ".nii.gz"

COMPRESSION = 1
"""Of gzip. Level 6 makes CT 2 % smaller and takes six times as long."""


def write_image(path: Path, array: NDArray[Any], grid: Grid) -> str:
    """Write an array (z, y, x) as ``.nii.gz``; returns the file's SHA-256.

    SimpleITK's writer says nothing when the disk is full; here every byte goes through a file object that does.
    """
    import nibabel

    image = nibabel.Nifti1Image(array.T, grid.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        hashing = _Hashing(file)
        with gzip.GzipFile("", "wb", COMPRESSION, hashing, mtime=0) as stream:
            image.to_stream(stream)
    return hashing.digest.hexdigest()


def storable(array: NDArray[Any]) -> NDArray[Any]:
    """An image in a number type that NIfTI and nnU-Net's readers share; no value changes but by rounding to float32."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype == bool:
        return array.view(np.uint8)
    if array.dtype.itemsize == 8 or array.dtype == np.uint32:
        limits = np.iinfo(np.int32)
        fits = array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max)
        return array.astype(np.int32 if fits else np.float32)
    return array.astype(np.int16) if array.dtype == np.int8 else array


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step, for people to read."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None if there is none or it is cut off."""
    try:
        return foreign.read_json(path, foreign.RECORD_ENTRIES)
    except (FileNotFoundError, ValueError):
        return None


def fingerprint(content: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def versions() -> Mapping[str, str]:
    """Versions of the packages that the bytes of the output depend on."""
    from importlib.metadata import version

    from nnunet_fm import __version__

    names = ("numpy", "SimpleITK", "nibabel", "h5py")
    return {"nnunet-fm": __version__, **{name: version(name) for name in names}}


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
