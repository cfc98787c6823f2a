"""Files of any format that a download may hold -> volumes; a file that is cut off or damaged is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_fm.dataset_conversion.problems import Invalid
from nnunet_fm.io.image_files import read_image, read_nifti
from nnunet_fm.io.untrusted import DEFLATE, ForeignFileError, check_promise
from nnunet_fm.io.volume import Grid, Volume

BY_NIBABEL = (".nii", ".nii.gz", ".mgz", ".mgh")
"""SimpleITK reads a NIfTI file that is cut off without a word and fills up with zeros; nibabel notices."""

MAX_SKEW = 1e-2
"""Direction cosines further from a rotation are no rounding error."""


def read_volume(path: Path, name: str, channel: int | None = None) -> Volume:
    """Read a 3D image of scalars from NIfTI, MGZ, NRRD, MetaImage or another format of SimpleITK.

    Args:
        path: the file on disk.
        name: what to call it in messages.
        channel: of a NIfTI file with four dimensions, the index along the last.

    Returns:
        In the number type of the file; numbers that the header scales as float32.

    Raises:
        Invalid: if the file is damaged or cut off, holds another number of dimensions or vectors, or skewed axes.
    """
    by_nibabel = path.name.lower().endswith(BY_NIBABEL)
    volume = _by_nibabel(path, name, channel) if by_nibabel else _by_sitk(path, name)
    if volume.array.size == 0:
        raise Invalid(name, "has no voxels", code="image-empty")
    grid = volume.grid
    if not (np.isfinite(grid.affine).all() and min(grid.spacing) > 0):
        raise Invalid(name, f"has no usable spacing or origin ({grid.spacing}, {grid.origin})", code="spacing-invalid")
    return Volume(volume.array, _without_skew(grid, name))


def read_dicom_series(paths: Sequence[Path], name: str) -> Volume:
    """One DICOM series; slices are put in the order of their position along the normal, not of their names.

    Args:
        paths: files of the series, in any order.
        name: what to call the series in messages, its folder.

    Raises:
        Invalid: if a file is no DICOM slice, two slices lie in one place, or one is missing between others.
    """
    positions = []
    for path in paths:
        header = sitk.ImageFileReader()
        header.SetImageIO("GDCMImageIO")
        header.SetFileName(str(path))
        try:
            header.ReadImageInformation()
            check_promise(path, math.prod(header.GetSize()) * header.GetNumberOfComponents(), 8 * DEFLATE)
        except (RuntimeError, ForeignFileError):
            raise Invalid(f"{name}/{path.name}", "is no DICOM file, or damaged", code="dicom-damaged") from None
        normal = np.reshape(header.GetDirection(), (3, 3))[:, 2] if header.GetDimension() == 3 else None
        if normal is None or header.GetSize()[2] != 1:
            raise Invalid(f"{name}/{path.name}", "is not one DICOM slice", code="dicom-slice")
        positions.append((float(np.dot(normal, header.GetOrigin())), str(path)))
    positions.sort()
    steps = np.diff([place for place, _ in positions])
    if len(steps) and (steps.min() <= 1e-3 or steps.max() - steps.min() > 0.1 * steps.mean()):
        raise Invalid(
            name,
            f"distances between slices are {steps.min():.3g} to {steps.max():.3g} mm: missing or double slices",
            code="dicom-distances",
        )
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([path for _, path in positions])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise Invalid(name, f"cannot be read as one DICOM series ({_last_line(error)})", code="dicom-series") from None
    if len(steps):
        image.SetSpacing((*image.GetSpacing()[:2], float(steps.mean())))
    return Volume.from_sitk(image)


def read_png_stack(paths: Sequence[Path], names: Sequence[str], spacing: tuple[float, float, float]) -> Volume:
    """Grey 8- or 16-bit PNG slices as a volume along z, without a place in the patient.

    Args:
        paths: the slices in order.
        names: what to call them in messages.
        spacing: mm along x, y, z.

    Raises:
        Invalid: if a slice is damaged, in colour, or of another size than the first.
    """
    slices: list[NDArray[Any]] = []
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path)
        except ForeignFileError as error:
            raise Invalid(name, str(error).removeprefix(f"{path.name} "), code=error.code) from None
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise Invalid(name, "is a colour picture, no grey values or class numbers", code="image-colour")
        section = np.squeeze(sitk.GetArrayFromImage(image))
        if slices and section.shape != slices[0].shape:
            raise Invalid(name, f"has size {section.shape}, the first slice has {slices[0].shape}", code="image-size")
        slices.append(section)
    array = np.stack(slices)
    return Volume(array, Grid(array.shape[::-1], spacing))


def read_hdf5(
    path: Path,
    name: str,
    key: str,
    start: int,
    stop: int,
    spacing: tuple[float, float, float],
    axis: int = 0,
    volume: int | None = None,
) -> Volume:
    """Slices ``start`` to ``stop`` of an HDF5 array, which become z; without a place in the patient.

    Args:
        path: the file on disk.
        name: what to call it in messages.
        key: of the array.
        start: first slice.
        stop: the slice after the last.
        spacing: mm along x, y, z.
        axis: of the array (of one volume of it) along which slices are stored.
        volume: index along the first axis of an array with four dimensions.

    Raises:
        Invalid: if the file is damaged, the array has no such slices, or lies in another file.
    """
    with opened_hdf5(path, name) as file:
        data = hdf5_array(file, key, name)
        dimensions = 3 if volume is None else 4
        slices = data.shape[dimensions - 3 + axis] if data.ndim == dimensions else 0
        if not 0 <= start < stop <= slices or not (volume is None or 0 <= volume < data.shape[0]):
            raise Invalid(
                name,
                f"'{key}' of shape {data.shape} has no slices {start} to {stop} (volume {volume})",
                code="hdf5-slices",
            )
        chosen = tuple(slice(start, stop) if i == axis else slice(None) for i in range(3))
        array = data[chosen if volume is None else (volume, *chosen)]
    array = np.ascontiguousarray(np.moveaxis(array, axis, 0))
    return Volume(array, Grid(array.shape[::-1], spacing))


@contextmanager
def opened_hdf5(path: Path, name: str) -> Iterator[Any]:
    """An HDF5 file open for reading; `Invalid` if it is damaged, also while it is read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except Invalid:
        raise
    except Exception as error:  # of damaged files HDF5 and h5py raise what they come across
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Invalid(
            name, f"cannot be read as HDF5: damaged or cut off ({_last_line(error)})", code="hdf5-damaged"
        ) from None


def hdf5_array(file: Any, key: str, name: str) -> Any:
    """An array of an open HDF5 file, which must lie in this file: HDF5 can link to any other on the machine.

    Raises:
        Invalid: if there is no such array, it is a link, or larger than what is stored of it can become.
    """
    import h5py

    if key not in file:
        raise Invalid(name, f"has no '{key}', but {', '.join(sorted(file)[:20])}", code="hdf5-entry")
    data = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise Invalid(name, f"'{key}' is no array of this file", code="hdf5-array")
    if data.shape is None or data.nbytes > DEFLATE * data.id.get_storage_size():  # the rest would be made up
        raise Invalid(
            name, f"'{key}' of shape {data.shape} promises more numbers than the file holds", code="hdf5-promise"
        )
    return data


def _by_nibabel(path: Path, name: str, channel: int | None) -> Volume:
    try:
        image, data = read_nifti(path)
        shape, proxy = image.shape, image.dataobj
        if channel is not None and (len(shape) != 4 or channel >= shape[3]):
            raise Invalid(name, f"has shape {shape}, no four dimensions with a channel {channel}", code="hdf5-shape")
        while len(shape) > 3 and (shape[-1] == 1 or channel is not None):
            shape = shape[:-1]
        if len(shape) != 3:
            raise Invalid(name, f"has {len(shape)} dimensions instead of 3", code="image-dimensions")
        if image.get_data_dtype().fields is not None:
            raise Invalid(name, "has vectors or colours instead of one number per voxel", code="image-vectors")
        if channel is not None:
            data = data[..., channel]
        if (proxy.slope, proxy.inter) != (1.0, 0.0):
            data = data.astype(np.float32)
            data *= proxy.slope
            data += proxy.inter
    except Invalid:
        raise
    except ForeignFileError as error:
        raise Invalid(name, str(error).removeprefix(f"{path.name} "), code=error.code) from None
    except Exception as error:  # headers of any content: nibabel lets through what numpy and struct say of it
        if isinstance(error, FileNotFoundError):
            raise
        raise Invalid(name, f"cannot be read: damaged or cut off ({_last_line(error)})", code="image-damaged") from None
    array = data.reshape(shape, order="F").T
    return Volume(array.astype(array.dtype.newbyteorder("="), copy=False), Grid.from_affine(array.shape, image.affine))


def _by_sitk(path: Path, name: str) -> Volume:
    try:
        image = read_image(path)
    except ForeignFileError as error:
        raise Invalid(name, str(error).removeprefix(f"{path.name} "), code=error.code) from None
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[..., 0]
    if image.GetDimension() != 3:
        raise Invalid(name, f"has {image.GetDimension()} dimensions instead of 3", code="image-dimensions")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise Invalid(name, "has vectors or colours instead of one number per voxel", code="image-vectors")
    return Volume.from_sitk(image)


def _without_skew(grid: Grid, name: str) -> Grid:
    """The nearest rotation, which differs by rounding in most files; SimpleITK and nnU-Net know no skewed axes."""
    direction = np.reshape(grid.direction, (3, 3))
    left, _, right = np.linalg.svd(direction)
    rotation = left @ right
    skew = float(np.abs(rotation - direction).max())
    if skew > MAX_SKEW:
        raise Invalid(
            name, f"its axes are not at right angles (direction cosines off by {skew:.2g})", code="image-skewed"
        )
    if skew < 1e-12:
        return grid
    return Grid(grid.size, grid.spacing, grid.origin, tuple(rotation.ravel().tolist()))


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
