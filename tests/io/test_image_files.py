"""Image files are read to their last byte: whatever is cut off or changed is noticed, whole files pass."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

from nnunet_fm.dataset_conversion.readers import read_volume
from nnunet_fm.errors import FMError
from nnunet_fm.io.image_files import DamagedImageError, check_not_truncated, fault_of_result, read_image
from nnunet_fm.metrics.label_map import read_label_map
from nnunet_fm.preprocessing.whole_images import whole_images
from tests.helpers.errors import fails

PACKED = ["a.nii.gz", "a.mha", "a.nrrd", "a.mhd", "a.nhdr", "a.img.gz", "a.gipl.gz"]
"""Formats with a checksum; where the voxels are in another file, its header is named."""
PLAIN = ["a.nii", "a.mha", "a.nrrd", "a.mhd", "a.nhdr", "a.hdr", "a.gipl"]
BESIDE = {"a.mhd": ("a.zraw", "a.raw"), "a.nhdr": ("a.raw.gz", "a.raw"), "a.hdr": ("a.img.gz", "a.img")}


def numbers() -> np.ndarray:
    grid = np.mgrid[:7, :9, :11].sum(0) * 3
    return (grid + np.random.default_rng(0).integers(0, 9, grid.shape)).astype(np.int16)


def write(folder: Path, name: str, *, packed: bool) -> tuple[Path, Path]:
    """An image in a format; returns the file to name and the file with the voxels."""
    image = sitk.GetImageFromArray(numbers())
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    path = folder / name
    sitk.WriteImage(image, str(path), packed)
    header = folder / "a.hdr" if name == "a.img.gz" else path
    beside = BESIDE.get(header.name)
    return header, path if beside is None else folder / beside[0 if packed else 1]


def flip(content: bytes, place: int | None = None) -> bytes:
    """One bit of a voxel."""
    place = place or len(content) * 3 // 4
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def hole(content: bytes) -> bytes:
    """Zeros, as a download leaves them that was broken; the last bytes are there."""
    half = len(content) // 2
    return content[:half] + bytes(len(content) - half - 8) + content[-8:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": flip,
    "hole": hole,
    "half": lambda content: content[: len(content) // 2],
    "end": lambda content: content[:-3],
    "garbage": lambda content: content + b"garbage",
}


@pytest.mark.parametrize("name", PACKED)
def test_damaged_voxels_are_noticed_by_their_checksum(name: str, tmp_path: Path) -> None:
    path, voxels = write(tmp_path, name, packed=True)
    sound = voxels.read_bytes()
    assert np.array_equal(sitk.GetArrayFromImage(read_image(path)), numbers())
    assert check_not_truncated(path)
    for damage in DAMAGES.values():
        voxels.write_bytes(damage(sound))
        for read in (read_image, check_not_truncated):
            with pytest.raises(DamagedImageError, match=r"\ba\.\w+"):
                read(path)


@pytest.mark.parametrize("name", PLAIN)
def test_missing_voxels_are_noticed_by_their_size(name: str, tmp_path: Path) -> None:
    path, voxels = write(tmp_path, name, packed=False)
    sound = voxels.read_bytes()
    assert np.array_equal(sitk.GetArrayFromImage(read_image(path)), numbers())
    for damage in ("half", "end", "garbage"):
        if damage == "garbage" and name in ("a.nii", "a.hdr"):
            continue  # NIfTI allows bytes behind the voxels
        voxels.write_bytes(DAMAGES[damage](sound))
        for read in (read_image, check_not_truncated):
            with pytest.raises(DamagedImageError, match=r"\ba\.\w+"):
                read(path)


def test_whole_files_pass(tmp_path: Path) -> None:
    """Also of several streams, filled up with zeros, with bytes behind the image, or never compressed."""
    path, _ = write(tmp_path, "a.nii.gz", packed=True)
    content = gzip.decompress(path.read_bytes())
    for parts in ((content,), (content[:99], content[99:999], content[999:]), (content, b"more")):
        for padding in (b"", bytes(300_000)):
            path.write_bytes(b"".join(gzip.compress(part) for part in parts) + padding)
            assert check_not_truncated(path) and np.array_equal(sitk.GetArrayFromImage(read_image(path)), numbers())
    path.write_bytes(content)
    assert check_not_truncated(path) and np.array_equal(sitk.GetArrayFromImage(read_image(path)), numbers())
    path.write_bytes(gzip.compress(content[:-9]))
    with fails("image-cut-off", 7 * 9 * 11 * 2, 7 * 9 * 11 * 2 - 9):
        check_not_truncated(path)
    assert not check_not_truncated(tmp_path / "a.npy")


def test_scaled_and_swapped_voxels_are_right(tmp_path: Path) -> None:
    """Their checksum is not that of what SimpleITK makes of them."""
    for order in "<>":
        image = nibabel.Nifti1Image(numbers().T.astype(f"{order}i2"), np.diag([0.5, 0.75, 2, 1]), dtype=np.int16)
        image = nibabel.Nifti1Image(numbers().T, image.affine, image.header.as_byteswapped(order))
        image.header.set_slope_inter(2, -1024)
        nibabel.save(image, tmp_path / "a.nii.gz")
        expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata().T
        assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.nii.gz")), expected)
    header = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {}\nCompressedData = True\n{}"
    header += "DimSize = 11 9 7\nElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    for order, name in ((">", "True"), ("<", "False")):
        packed = zlib.compress(numbers().astype(f"{order}i2").tobytes())
        size = f"CompressedDataSize = {len(packed)}\n"
        (tmp_path / "a.mha").write_bytes(header.format(name, size).encode() + packed)
        assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "a.mha")), numbers())
        # without its size SimpleITK gives whatever lies in memory
        (tmp_path / "a.mha").write_bytes(header.format(name, "").encode() + packed)
        with fails("image-packing", "a.mha"):
            read_image(tmp_path / "a.mha")


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_readers_give_what_nnunets_give(reader: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    affine = np.diag([-0.5, 0.75, 2, 1])
    affine[:3, 3] = 1, 2, 3
    files = []
    for index in range(2):
        image = nibabel.Nifti1Image(
            numbers().T + index, affine + index * np.eye(4)[:, [1, 2, 0, 3]] @ np.diag([0, 0, 0, 1])
        )
        nibabel.save(image, tmp_path / f"a_{index:04d}.nii.gz")
        files.append(str(tmp_path / f"a_{index:04d}.nii.gz"))
    ours = whole_images(reader)
    assert issubclass(ours, reader) and whole_images(ours) is ours
    for given in (files[:1], files):
        (images, properties), (expected, theirs) = ours().read_images(given), reader().read_images(given)
        assert images.dtype == expected.dtype and np.array_equal(images, expected)
        assert repr(properties) == repr(theirs)
    sound = (tmp_path / "a_0001.nii.gz").read_bytes()
    (tmp_path / "a_0001.nii.gz").write_bytes(flip(sound))
    with fails("image-damaged", "a_0001.nii.gz"):
        ours().read_images(files)
    with fails("image-damaged", "a_0001.nii.gz"):
        ours().read_seg(files[1])


@pytest.mark.parametrize("shape", [(9, 11), (7, 9, 11), (2, 7, 9, 11)])
def test_images_of_any_dimensions_are_read_as_nnunet_reads_them(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(0, 9, shape)
    for kind in (np.uint8, np.float64):
        image = sitk.GetImageFromArray(array.astype(kind), isVector=False)
        image.SetSpacing((0.5, 0.75, 2.0, 3.0)[: len(shape)])
        files = [str(tmp_path / f"a_000{index}.mha") for index in range(2)]
        for origin, file in enumerate(files):
            image.SetOrigin((float(origin),) * len(shape))
            sitk.WriteImage(image, file, True)
        (images, properties), (expected, theirs) = (
            whole_images(SimpleITKIO)().read_images(files),
            SimpleITKIO().read_images(files),
        )
        assert images.dtype == expected.dtype and np.array_equal(images, expected)
        assert repr(properties) == repr(theirs)
    image.SetSpacing((9.0,) * len(shape))
    sitk.WriteImage(image, files[1])
    with pytest.raises(RuntimeError):  # which nnU-Net's reader raises, after it has printed what is wrong
        whole_images(SimpleITKIO)().read_images(files)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".deflated.tif", ".lzw.tif"])
def test_damaged_pictures_are_noticed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    volume = numbers().astype(np.uint8)
    if ending.endswith(".tif"):
        packing = {".tif": None, ".deflated.tif": "zlib", ".lzw.tif": "lzw"}[ending]
        tifffile.imwrite(path, volume, compression=packing, photometric="minisblack")
    else:
        io.imsave(path, volume[0], check_contrast=False)
    sound = path.read_bytes()
    assert check_not_truncated(path) and read_label_map(path).array.shape[-1] == 11
    damaged = [DAMAGES["half"](sound)]
    if ending == ".png":
        damaged += [flip(sound), hole(sound)]
    if ending == ".deflated.tif":
        with tifffile.TiffFile(path) as file:
            damaged += [flip(sound, file.pages[3].dataoffsets[0] + 20), hole(sound)]
    for content in damaged:
        path.write_bytes(content)
        for read in (check_not_truncated, read_label_map):
            with pytest.raises(FMError, match=path.name) as error:
                read(path)
            assert error.value.code in ("image-cut-off", "image-damaged")


@pytest.mark.parametrize(
    ("ending", "packed"), [(".nii.gz", True), (".nii", False), (".mha", True), (".nrrd", True), (".tif", False)]
)
def test_a_result_is_whole_and_of_its_images_size(ending: str, packed: bool, tmp_path: Path) -> None:
    image, label_map = tmp_path / f"a_0000{ending}", tmp_path / f"a{ending}"

    def put(path: Path, array: np.ndarray) -> None:
        if ending == ".tif":
            tifffile.imwrite(path, array, compression="zlib", photometric="minisblack")
        else:
            sitk.WriteImage(sitk.GetImageFromArray(array), str(path), packed)

    put(image, numbers())
    put(label_map, numbers().astype(np.uint8))
    assert fault_of_result(label_map, image) is None
    for content in (b"", label_map.read_bytes()[:-30]):
        label_map.write_bytes(content)
        assert f"a{ending} " in (fault_of_result(label_map, image) or "")
    put(label_map, numbers().astype(np.uint8)[:, :8])
    assert fault_of_result(label_map, image) == f"a{ending} has 11×8×7 voxels, its image 11×9×7"


META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 3 2\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"


@pytest.mark.parametrize(
    "where", ["/etc/other", "../b.raw", "LIST\nb.raw\nb.raw", "list", "b%d.raw 1 2 1", "c\\b.raw", ".b", "C:b.raw"]
)
def test_voxels_come_from_no_file_elsewhere(where: str, tmp_path: Path) -> None:
    """They could be those of any file on the machine, and end in what is predicted or converted."""
    (tmp_path / "b.raw").write_bytes(bytes(range(24)))
    for name, header in (
        ("a.mhd", f"{META}ElementDataFile = {where}\n"),
        ("a.mha", f"{META}ElementDataFile = {where}\n"),
        ("a.nhdr", f"{NRRD}data file: {where}\n"),
        ("a.nrrd", f"{NRRD}data file: {where}\n\n"),
    ):
        path = tmp_path / name
        path.write_text(header)
        for read in (read_image, check_not_truncated, whole_images(SimpleITKIO)().read_seg, read_label_map):
            with pytest.raises(FMError, match=name) as error:
                read(str(path) if "WholeSimpleITKIO" in repr(read) else path)  # type: ignore[operator]
            assert error.value.code in ("image-damaged", "image-elsewhere")
        with fails("image-elsewhere"):
            read_volume(path, name)


def test_voxels_may_lie_in_one_file_beside_their_header(tmp_path: Path) -> None:
    (tmp_path / "b c-1.raw").write_bytes(bytes(range(24)))
    (tmp_path / "a.mhd").write_text(f"{META}ElementDataFile = b c-1.raw\n")
    (tmp_path / "a.nhdr").write_text(f"{NRRD}data file: b c-1.raw\n")
    for name in ("a.mhd", "a.nhdr"):
        assert sitk.GetArrayFromImage(read_image(tmp_path / name)).ravel().tolist() == list(range(24))
    (tmp_path / "b c-1.raw").unlink()
    for name in ("a.mhd", "a.nhdr"):
        with fails("image-incomplete", "c-1.raw"):
            read_image(tmp_path / name)


def test_without_files_in_memory_nibabels_readers_read_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.memfd_create", raising=False)
    path, _ = write(tmp_path, "a.nii.gz", packed=True)
    assert np.array_equal(whole_images(NibabelIO)().read_images([str(path)])[0][0], numbers())
    path.write_bytes(flip(path.read_bytes()))
    with fails("image-damaged", "a.nii.gz"):
        whole_images(NibabelIO)().read_images([str(path)])


def test_readers_of_users_read_formats_of_their_own(tmp_path: Path) -> None:
    class Reader(SimpleITKIO):
        def read_images(self, image_fnames: list[str]) -> tuple[np.ndarray, dict]:
            return np.load(image_fnames[0]), {}

    np.save(tmp_path / "a.npy", numbers())
    reader = whole_images(Reader)
    assert reader is whole_images(Reader) is whole_images(reader)
    assert np.array_equal(reader().read_images([str(tmp_path / "a.npy")])[0], numbers())
