"""Images that converters write: bytes, geometry, number types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.writer import storable, write_image
from nnunet_fm.io.volume import Grid, Volume
from tests.helpers.convert_tester import rotation_z, snapshot


def test_written_images_are_read_alike_by_all(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)
    grid = Grid((7, 6, 5), (0.7, 1.2, 3.0), (10.0, -20.0, 30.5), rotation_z(0.3))
    digest = write_image(tmp_path / "a.nii.gz", array, grid)
    assert digest == snapshot(tmp_path)["a.nii.gz"]
    by_sitk = Volume.from_sitk(sitk.ReadImage(tmp_path / "a.nii.gz"))
    assert by_sitk.grid.difference(grid) is None and np.array_equal(by_sitk.array, array)
    by_nibabel = nibabel.load(tmp_path / "a.nii.gz")
    assert np.allclose(by_nibabel.affine, grid.affine, atol=1e-4)
    assert by_nibabel.get_data_dtype() == np.int16
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == b"\0\0\0\0"  # no time in gzip's header


@pytest.mark.parametrize(
    ("values", "dtype", "stored"),
    [
        ([1.5, -2.0], np.float64, np.float32),
        ([1, -2], np.int64, np.int32),
        ([1, 2**40], np.int64, np.float32),
        ([1, 2**31], np.uint32, np.float32),
        ([0, 1], bool, np.uint8),
        ([1, -2], np.int8, np.int16),
        ([1, 60000], np.uint16, np.uint16),
    ],
)
def test_number_types_of_images(values: list[float], dtype: Any, stored: Any) -> None:
    array = storable(np.array(values, dtype).reshape(2, 1, 1))
    assert array.dtype == stored and array.ravel().tolist() == [float(v) for v in values]
