"""nnU-Net's readers of images, which refuse damaged files and give the same arrays and properties for all others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_fm.io.image_files import check_not_truncated, read_image, unpacked

Images = tuple[NDArray[np.float32], dict[str, Any]]


class WholeImagesPlans(PlansManager):
    """Plans whose reader refuses damaged files, for nnU-Net's own code."""

    def __init__(self, plans: PlansManager) -> None:
        super().__init__(plans.plans)
        self._read_by = plans

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        return whole_images(self._read_by.image_reader_writer_class)


def whole_images(reader: type[BaseReaderWriter]) -> type[BaseReaderWriter]:
    """A reader of nnU-Net's whose `read_images` and `read_seg` raise a ``ValueError`` for damaged files."""
    if issubclass(reader, (_Checked, WholeSimpleITKIO)):
        return reader
    ours: dict[type, type[BaseReaderWriter]] = {
        SimpleITKIO: WholeSimpleITKIO,
        NibabelIO: WholeNibabelIO,
        NibabelIOWithReorient: WholeNibabelIOWithReorient,
        Tiff3DIO: WholeTiff3DIO,
        NaturalImage2DIO: WholeNaturalImage2DIO,
    }
    return ours.get(reader) or _checked(reader)  # type: ignore[arg-type]


@cache
def _checked(reader: type[BaseReaderWriter]) -> type[BaseReaderWriter]:
    return type(reader.__name__, (_Checked, reader), {})


class _Checked(BaseReaderWriter):
    """Comes before a reader of nnU-Net's and checks files that it is to read."""

    def read_images(self, image_fnames: Sequence[str]) -> Images:
        for file in image_fnames:
            check_not_truncated(Path(file))
        return super().read_images(image_fnames)

    def read_seg(self, seg_fname: str) -> Images:
        check_not_truncated(Path(seg_fname))
        return super().read_seg(seg_fname)


class _Unpacked(_Checked):
    """The same for nibabel's readers of NIfTI files, whose own way to decompress takes three times as long."""

    def read_images(self, image_fnames: Sequence[str]) -> Images:
        with ExitStack() as stack:
            return super().read_images([str(stack.enter_context(unpacked(Path(file)))) for file in image_fnames])

    def read_seg(self, seg_fname: str) -> Images:
        return self.read_images((seg_fname,))


class WholeNibabelIO(_Unpacked, NibabelIO):
    """nnU-Net's `NibabelIO`."""


class WholeNibabelIOWithReorient(_Unpacked, NibabelIOWithReorient):
    """nnU-Net's `NibabelIOWithReorient`."""


class WholeTiff3DIO(_Checked, Tiff3DIO):
    """nnU-Net's `Tiff3DIO`."""


class WholeNaturalImage2DIO(_Checked, NaturalImage2DIO):
    """nnU-Net's `NaturalImage2DIO`."""


class WholeSimpleITKIO(SimpleITKIO):
    """nnU-Net's `SimpleITKIO`; the check costs less than the copies of images that are left out."""

    def read_images(self, image_fnames: Sequence[str]) -> Images:
        images = [read_image(Path(file)) for file in image_fnames]
        views = [sitk.GetArrayViewFromImage(image) for image in images]
        first, dimensions = images[0], views[0].ndim
        spacings, origins, directions = (
            [get(image) for image in images]
            for get in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection)
        )
        if len({view.shape for view in views}) > 1 or dimensions > 4 or not self._check_all_same(spacings):
            return super().read_images(image_fnames)  # prints what is wrong, and raises
        for what, values in (("origin", origins), ("direction", directions)):
            if not self._check_all_same(values):
                print(f"WARNING: {', '.join(map(str, image_fnames))} do not have the same {what}", file=sys.stderr)
        properties = properties_of(first, dimensions)
        return np.vstack(
            [view.reshape((1,) * (4 - dimensions) + view.shape) for view in views], dtype=np.float32, casting="unsafe"
        ), properties


def properties_of(image: sitk.Image, dimensions: int) -> dict[str, Any]:
    """Properties that nnU-Net's `SimpleITKIO` keeps of an image: its geometry, and its spacing along z, y, x in mm.

    Args:
        image: as it was read.
        dimensions: number of axes of its voxels as an array.
    """
    spacing = image.GetSpacing()[::-1]
    spacing = {2: (max(spacing) * 999, *spacing), 4: spacing[1:]}.get(dimensions, spacing)
    return {
        "sitk_stuff": {
            "spacing": image.GetSpacing(),
            "origin": image.GetOrigin(),
            "direction": image.GetDirection(),
        },
        "spacing": list(np.abs(spacing)),
    }
