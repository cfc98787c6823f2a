"""Readers of image files: formats, geometry, series of slices."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.problems import Invalid
from nnunet_fm.dataset_conversion.readers import read_dicom_series, read_png_stack, read_volume
from nnunet_fm.io.volume import Grid
from tests.helpers.convert_tester import rotation_z
from tests.helpers.errors import fails
from tests.helpers.images import write_volume


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.mgz"])
def test_formats_keep_voxels_and_geometry_and_notice_what_is_cut_off(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 3000, (20, 22, 24)).astype(np.int16)
    direction = rotation_z(0.3)
    path = tmp_path / name
    if name.endswith("mgz"):
        grid = Grid((24, 22, 20), (0.7, 1.2, 3.0), (10.0, -20.0, 30.5), direction)
        nibabel.save(nibabel.MGHImage(array.T.astype(np.int16), grid.affine), path)
    else:
        write_volume(path, array, (0.7, 1.2, 3.0), (10.0, -20.0, 30.5), direction)
    volume = read_volume(path, "this one")
    assert volume.array.dtype == np.int16 and np.array_equal(volume.array, array)
    assert volume.grid.difference(Grid((24, 22, 20), (0.7, 1.2, 3.0), (10.0, -20.0, 30.5), direction)) is None
    content = path.read_bytes()
    for share in (0.2, 0.5, 0.97):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(Invalid) as error:
            read_volume(path, "this one")
        assert error.value.code in ("image-damaged", "image-cut-off") and error.value.file == "this one"


def test_nifti_peculiarities(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    scaled = nibabel.Nifti1Image(array.T.astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(2, -10)
    path = tmp_path / "scaled.nii"
    nibabel.save(scaled, path)
    raw = bytearray(path.read_bytes())
    np.testing.assert_array_equal(np.frombuffer(raw[112:116], "<f4"), 2)  # the slope survived saving
    volume = read_volume(path, path.name)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, np.asanyarray(nibabel.load(path).dataobj).T)
    big = nibabel.Nifti1Image(array.T, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big, tmp_path / "big.nii.gz")
    volume = read_volume(tmp_path / "big.nii.gz", "big")
    assert volume.array.dtype.isnative and np.array_equal(volume.array, array)
    four = np.stack([array, array + 1]).T.astype(np.int16)  # x, y, z, channel
    nibabel.save(nibabel.Nifti1Image(four, np.eye(4)), tmp_path / "four.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "four.nii.gz", "four", 1).array, array + 1)
    with fails("image-dimensions", "4", "3"):
        read_volume(tmp_path / "four.nii.gz", "four")
    with fails("hdf5-shape", "2"):
        read_volume(tmp_path / "four.nii.gz", "four", 2)
    wrong = bytearray(gzip.compress(gzip.decompress((tmp_path / "big.nii.gz").read_bytes())))
    wrong[-6] ^= 1  # the checksum
    (tmp_path / "big.nii.gz").write_bytes(wrong)
    with fails("image-damaged"):
        read_volume(tmp_path / "big.nii.gz", "big")


def test_axes_at_other_than_right_angles(tmp_path: Path) -> None:
    for skew, fine in ((1e-3, True), (0.1, False)):
        affine = np.eye(4)
        affine[0, 1] = skew
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine), tmp_path / "a.nii")
        if fine:
            direction = np.reshape(read_volume(tmp_path / "a.nii", "a").grid.direction, (3, 3))
            assert np.abs(direction @ direction.T - np.eye(3)).max() < 1e-12
        else:
            with fails("image-skewed"):
                read_volume(tmp_path / "a.nii", "a")


def test_vectors_and_colours_are_no_volumes(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), tmp_path / "a.mha")
    with fails("image-vectors"):
        read_volume(tmp_path / "a.mha", "a")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), tmp_path / "b.mha")
    with fails("image-dimensions", "2"):
        read_volume(tmp_path / "b.mha", "b")


def test_dicom_slices_are_put_in_the_order_of_their_positions(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 100, (6, 8, 9)).astype(np.int16)
    # Names, instance numbers and positions each have an order of their own.
    write_dicom(tmp_path, array, names=[3, 1, 4, 0, 5, 2], instances=[2, 1, 0, 5, 4, 3])
    volume = read_dicom_series(sorted(tmp_path.iterdir()), "series")
    assert np.array_equal(volume.array, array)
    assert volume.grid.difference(Grid((9, 8, 6), (0.5, 0.5, 3.0), (-10.0, 20.0, 5.0))) is None
    (tmp_path / "1.dcm").rename(tmp_path / "0.dcm.hidden")
    with fails("dicom-distances", "3", "6"):
        read_dicom_series(sorted(tmp_path.glob("*.dcm")), "series")
    (tmp_path / "1.dcm").write_bytes(b"no DICOM")
    with fails("dicom-damaged", "series/1.dcm"):
        read_dicom_series(sorted(tmp_path.glob("*.dcm")), "series")


def test_png_slices(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    array = np.random.default_rng(0).integers(0, 255, (3, 4, 5)).astype(np.uint8)
    for path, section in zip(paths, array, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(section), path)
    names = [path.name for path in paths]
    volume = read_png_stack(paths, names, (0.7, 0.7, 4.0))
    assert np.array_equal(volume.array, array) and volume.grid == Grid((5, 4, 3), (0.7, 0.7, 4.0))
    sitk.WriteImage(sitk.GetImageFromArray(array[0, :2]), paths[1])
    with fails("image-size", "1.png", "2", "5"):
        read_png_stack(paths, names, (0.7, 0.7, 4.0))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True), paths[1])
    with fails("image-colour", "1.png"):
        read_png_stack(paths, names, (0.7, 0.7, 4.0))
    paths[2].write_bytes(paths[2].read_bytes()[:40])
    with fails("image-cut-off", "2.png"):
        read_png_stack(paths[2:], names[2:], (0.7, 0.7, 4.0))


def write_dicom(folder: Path, array: np.ndarray, names: list[int], instances: list[int]) -> None:
    """Write slices (z, y, x) of 0.5 x 0.5 x 3 mm; slice i of the volume is called ``names[i]``."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z, section in enumerate(array):
        image = sitk.GetImageFromArray(section[None])
        image.SetSpacing((0.5, 0.5, 3.0))
        for tag, value in {
            "0008|0060": "MR",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0032": f"-10\\20\\{5 + 3 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(instances[z]),
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{names[z]}.dcm"))
        writer.Execute(image)
