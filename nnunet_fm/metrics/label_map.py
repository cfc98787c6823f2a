"""Read label maps in all formats of nnU-Net: array, spacing and affine; refuse damaged files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.errors import InvalidValueError, MissingFileError
from nnunet_fm.io.image_faults import exact
from nnunet_fm.io.image_files import DamagedImageError, check_not_truncated, read_image, read_nifti
from nnunet_fm.io.untrusted import DEFLATE, check_promise, read_object

NIFTI = (".nii.gz", ".nii")
PICTURES = (".png", ".bmp")
TIFF = (".tif", ".tiff")
TIFF_RATIO = 2**16
"""Largest compression ratio of a TIFF file."""
FILE_ENDINGS = (*NIFTI, ".nrrd", ".mha", ".gipl", *PICTURES, *TIFF)
"""File endings of nnU-Net's readers; the longer of two that fit comes first."""


@dataclass(frozen=True)
class LabelMap:
    """A label map.

    Args:
        array: integers, (Z, Y, X) or (Y, X).
        spacing: spacing of the axes in mm; 1 if the file has none.
        affine: index to world, if the file has it.
    """

    array: NDArray[Any]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64] | None


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is no 2D or 3D image of one channel, has numbers that are no labels, or no
            usable spacing.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist", code="file-missing")
    name = path.name.lower()
    read = _nifti if name.endswith(NIFTI) else _picture if name.endswith(PICTURES) else _itk
    try:
        array, spacing, affine = (_tiff if name.endswith(TIFF) else read)(path)
    except DamagedImageError as error:
        raise InvalidValueError(f"{path.parent}/{error}", code=error.code) from None
    except Exception as error:  # damaged files raise errors of numpy, struct or zlib
        reason = " ".join(str(error).split())[:200]
        raise InvalidValueError(
            f"{path} cannot be read: damaged, cut off, or no image ({reason})", code="image-damaged"
        ) from None
    while array.ndim > 3 and 1 in array.shape:  # drop further dimensions of size 1
        axis = array.shape.index(1)
        array, spacing = array.squeeze(axis), (*spacing[:axis], *spacing[axis + 1 :])
    if array.ndim not in (2, 3) or array.size == 0:
        raise InvalidValueError(
            f"{path} has shape {array.shape}: a label map is 2D or 3D, with one channel", code="label-map-shape"
        )
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise InvalidValueError(f"{path} has the spacing {spacing}: it must be positive", code="spacing-invalid")
    return LabelMap(_as_integers(array, path), spacing, affine)


def label_map_files(folder: Path, file_ending: str) -> dict[str, Path]:
    """Files of a folder's label maps by case, sorted, without hidden files."""
    files = sorted(file for file in folder.glob(f"*{file_ending}") if not file.name.startswith("."))
    return {file.name.removesuffix(file_ending): file for file in files}


def find_file_ending(folder: Path) -> str:
    """The file ending of a folder's label maps.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if there are several.
    """
    names = [file.name for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    found = {next((ending for ending in FILE_ENDINGS if name.endswith(ending)), None) for name in names} - {None}
    if not found:
        raise MissingFileError(
            f"no label maps in {folder}: none of its files ends in {', '.join(FILE_ENDINGS)}", code="label-maps-missing"
        )
    if len(found) > 1:
        raise InvalidValueError(
            f"{folder} has files of several kinds ({', '.join(sorted(map(str, found)))}): one is expected",
            code="endings-several",
        )
    return str(found.pop())


_Parts = tuple[NDArray[Any], tuple[float, ...], NDArray[np.float64] | None]


def _nifti(path: Path) -> _Parts:
    image, array = read_nifti(path)
    slope, offset = image.dataobj.slope, image.dataobj.inter
    if (slope, offset) != (1, 0):
        array = array * slope + offset
    spacing = tuple(float(step) for step in image.header.get_zooms())
    return array.T, spacing[::-1], image.affine


def _itk(path: Path) -> _Parts:
    import SimpleITK as sitk

    image = read_image(path)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"it has {image.GetNumberOfComponentsPerPixel()} channels")
    edges = image.GetDimension()
    spacing = image.GetSpacing()
    affine = np.eye(edges + 1)
    affine[:-1, :-1] = np.reshape(image.GetDirection(), (edges, edges)) * spacing
    affine[:-1, -1] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), spacing[::-1], affine


def _picture(path: Path) -> _Parts:
    from PIL import Image
    from skimage.io import imread

    check_not_truncated(path)
    with Image.open(path) as image:
        check_promise(path, image.width * image.height, 8 * DEFLATE)  # pixels of one bit
    array = imread(path)
    if array.ndim != 2:
        raise ValueError(f"it has {array.shape[-1]} channels")
    return array, (1.0, 1.0), None


def _tiff(path: Path) -> _Parts:
    """Read a TIFF file and the JSON file of the same name, in which nnU-Net stores the spacing of volumes."""
    from tifffile import TiffFile

    check_not_truncated(path)
    with TiffFile(path) as file:
        check_promise(path, file.series[0].nbytes, TIFF_RATIO)
        array = file.asarray()
    beside = path.with_suffix(".json")
    if array.ndim == 3 and beside.is_file():
        spacing = tuple(map(float, read_object(beside)["spacing"]))
        if len(spacing) != 3:
            raise ValueError(f"{beside.name} has {len(spacing)} numbers as spacing, not 3")
        return array, spacing, None
    return array, (1.0,) * array.ndim, None


def _as_integers(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Convert booleans and whole floating point numbers to integers; integers stay as they are."""
    if array.dtype == bool:
        return array.view(np.uint8)
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind != "f":
        raise InvalidValueError(
            f"{path} holds numbers of the type {array.dtype}: labels are whole numbers", code="labels-type"
        )
    whole = np.empty(array.shape, np.int32)
    for floats, integers in zip(array, whole, strict=True):  # slice by slice to save memory
        with np.errstate(invalid="ignore"):
            integers[...] = floats
        wrong = floats != integers
        if wrong.any():
            raise InvalidValueError(
                f"{path} holds {exact(floats[wrong].flat[0])}: labels are whole numbers", code="labels-fraction"
            )
    return whole


def grid_fault(prediction: LabelMap, reference: LabelMap) -> str | None:
    """Difference in size or spacing between a prediction and its reference; None if they agree."""
    if prediction.array.shape != reference.array.shape:
        return f"has size {prediction.array.shape}, its reference {reference.array.shape}"
    if not np.allclose(prediction.spacing, reference.spacing, rtol=1e-3, atol=0):
        return f"has the spacing {_rounded(prediction.spacing)} mm, its reference {_rounded(reference.spacing)} mm"
    return None


def same_place(prediction: LabelMap, reference: LabelMap) -> bool:
    """Whether two maps of one grid agree in origin and directions, within a tenth of a voxel at every corner."""
    if prediction.affine is None or reference.affine is None or prediction.affine.shape != reference.affine.shape:
        return True
    edges = np.array(reference.array.shape[::-1][: len(reference.affine) - 1])
    edges = np.pad(edges, (0, len(reference.affine) - 1 - len(edges)), constant_values=1)
    corners = np.stack(np.meshgrid(*[(0, edge - 1) for edge in edges], indexing="ij"), -1).reshape(-1, len(edges))
    difference = prediction.affine - reference.affine
    apart = corners @ difference[:-1, :-1].T + difference[:-1, -1]
    return bool(np.linalg.norm(apart, axis=1).max() <= 0.1 * min(reference.spacing))


def _rounded(spacing: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(step, 4) for step in spacing)
