"""Image files, read to their last byte: checksums and sizes are compared, and no voxel comes from elsewhere.

SimpleITK fills up what a damaged file lacks with zeros, or with whatever lies in memory, and ignores most checksums.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.io.atomic_write import scratch_folder
from nnunet_fm.io.untrusted import DEFLATE, ForeignFileError, check_promise

if TYPE_CHECKING:
    import SimpleITK as sitk

IMAGE_IO = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".img.gz": "NiftiImageIO",
    ".img": "NiftiImageIO",
    ".hdr": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".gipl": "GiplImageIO",
    ".gipl.gz": "GiplImageIO",
    ".png": "PNGImageIO",
    ".bmp": "BMPImageIO",
}
"""SimpleITK's reader for a file ending; by itself it chooses by the content, among others HDF5 with links to files."""
NIFTI = (".nii.gz", ".nii", ".hdr", ".img.gz", ".img")
PICTURES = (".png", ".bmp")
TIFF = (".tif", ".tiff")
DETACHED = (".mhd", ".nhdr", ".hdr")
"""Headers whose voxels lie in another file, which must be of the same folder."""

HEADER = 2**16
DATA_FILE = re.compile(rb"(?im)^[ \t]*(?:ElementDataFile[ \t]*[=:]|data ?file[ \t]*:)[ \t]*([^\r\n]*)(?:\r?\n)?")
"""Where the header of a MetaImage or NRRD file, which is shorter than `HEADER`, says where its voxels are."""
GIPL_HEADER = 256
NIFTI_BITS = {1: 1, 2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64,
              1536: 128, 1792: 128, 2048: 256, 2304: 32}  # fmt: skip
"""Number of a type in NIfTI headers -> bits of a voxel."""
TIFF_DEFLATE = (8, 32946)
"""Numbers of the compression with a checksum."""
GZIP = b"\x1f\x8b"
"""First bytes of a gzip file."""
CHUNK = 2**17
AGAIN = ": copy or download it again"


SKEWED = "orthonormal"
"""A word of ITK's message for a NIfTI file whose axes are not at right angles."""
SKEWED_WORDS = (
    "its axes are not at right angles, or their directions are no numbers (a skewed affine in its header): resample it "
    "onto a grid with right angles, or correct the header"
)


class DamagedImageError(ForeignFileError):
    """An image file that is cut off or changed; the message names it."""


def read_image(path: Path) -> sitk.Image:
    """Read an image with SimpleITK.

    Raises:
        DamagedImageError: if the file is cut off, has a wrong checksum, or does not hold what its header promises.
        ForeignFileError: if its voxels would come from a file elsewhere, or its header promises more than it can hold.
    """
    import SimpleITK as sitk

    if path.name.lower().endswith(PICTURES):
        _check_picture(path)
    header = image_header(path)
    voxels = _voxels(path, header)
    with _sitk_errors(path, voxels):
        image = header.Execute()
    if voxels is not None:
        voxels.check(sitk.GetArrayViewFromImage(image))
    return image


@contextmanager
def _sitk_errors(path: Path, voxels: _Voxels | None = None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if voxels is None and path.name.lower().endswith(NIFTI):
            voxels = _nifti_voxels(path)
        if voxels is not None:
            voxels.check()  # which says what is wrong
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1].strip()
        if SKEWED in reason:
            raise DamagedImageError(f"{path.name} cannot be read: {SKEWED_WORDS}", code="image-skewed") from None
        raise DamagedImageError(
            f"{path.name} cannot be read: damaged, cut off, or no image ({reason})", code="image-damaged"
        ) from None


def image_header(path: Path) -> sitk.ImageFileReader:
    """SimpleITK's reader of a file, which has read the header and no voxels; raises as `read_image`."""
    import SimpleITK as sitk

    _data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(next((io for ending, io in IMAGE_IO.items() if path.name.lower().endswith(ending)), ""))
    reader.SetFileName(str(path))
    with _sitk_errors(path):
        reader.ReadImageInformation()
    if not path.name.lower().endswith(DETACHED):
        check_promise(path, math.prod(reader.GetSize()) * reader.GetNumberOfComponents(), 8 * DEFLATE)  # bits in PNG
    return reader


def check_not_truncated(path: Path) -> bool:
    """Read a file to its end and compare checksums and sizes; raises as `read_image`.

    Returns:
        Whether the format is known; a file of any other is not read.
    """
    name = path.name.lower()
    if name.endswith(PICTURES):
        _check_picture(path)
    elif name.endswith(TIFF):
        _check_tiff(path)
    elif not name.endswith(tuple(IMAGE_IO)):
        return False
    else:
        voxels = _nifti_voxels(path) if name.endswith(NIFTI) else _voxels(path, image_header(path))
        if voxels is None:
            read_image(path)
        else:
            voxels.check()
    return True


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A ``.nii`` file in memory with the content of a ``.nii.gz`` file; the file itself in other formats and systems.

    Raises:
        DamagedImageError, ForeignFileError: as `read_image`.
    """
    if not path.name.lower().endswith(".nii.gz") or not hasattr(os, "memfd_create"):
        yield path
        return
    voxels = _nifti_voxels(path)
    if not voxels.packing:
        yield path
        return
    memory = os.memfd_create("image")
    try:
        with scratch_folder() as folder:
            with os.fdopen(os.dup(memory), "wb") as file:
                voxels.check(copy=file)
            link = Path(folder, path.name[:-3])
            link.symlink_to(f"/proc/self/fd/{memory}")
            yield link
    finally:
        os.close(memory)


def fault_of_result(label_map: Path, image: Path) -> str | None:
    """Reason why a label map is no result for an image: damaged, or of another size; None for a result."""
    try:
        if not check_not_truncated(label_map):
            return None
        sizes = _size(label_map), _size(image)
    except ForeignFileError as error:
        return str(error).removesuffix(AGAIN)
    result, expected = (size[: len(sizes[0])] for size in sizes)
    if result != expected:
        return f"{label_map.name} has {_times(result)} voxels, its image {_times(expected)}"
    return None


def _size(path: Path) -> tuple[int, ...]:
    """Edges of an image along x, y, z, ... in voxels, without those of one voxel at the end."""
    name = path.name.lower()
    if name.endswith(NIFTI):
        size = _nifti_header(path).shape
    elif name.endswith(TIFF):
        from tifffile import TiffFile

        with TiffFile(path) as file:
            series = file.series[0]
            size = tuple(edge for edge, axis in zip(series.shape, series.axes, strict=True) if axis != "S")[::-1]
    else:
        size = tuple(image_header(path).GetSize())
    while size[-1:] == (1,):
        size = size[:-1]
    return size


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def read_nifti(path: Path) -> tuple[Any, NDArray[Any]]:
    """A NIfTI or MGH file as nibabel reads it.

    Returns:
        nibabel's image, and its numbers ``(X, Y, Z, ...)`` in the type of the file, before the header scales them.

    Raises:
        DamagedImageError, ForeignFileError: as `read_image`.
        Exception: whatever nibabel raises for headers that make no sense.
    """
    import nibabel

    image: Any = nibabel.load(path)
    proxy = image.dataobj
    size = math.prod(proxy.shape) * proxy.dtype.itemsize
    check_promise(path, size)
    file = Path(proxy.file_like.filename if hasattr(proxy.file_like, "filename") else proxy.file_like)
    voxels = _Voxels(path, file, size, before=proxy.offset, packing=_packing(file), longer=True)
    if not voxels.packing:
        voxels.check()
        return image, np.asarray(proxy.get_unscaled())
    array = np.empty(math.prod(proxy.shape), proxy.dtype)
    voxels.check(into=array.view(np.uint8))
    return image, array.reshape(proxy.shape, order="F")


@dataclass(frozen=True)
class _Voxels:
    """Place of the voxels of an image.

    Args:
        image: the file that was named.
        file: the file that holds the voxels, mostly the same one.
        size: bytes of voxels that the header promises.
        start: bytes of the file before anything is packed.
        before: bytes before the voxels in what is packed.
        packing: ``gzip``, ``zlib`` or nothing.
        longer: whether something may follow the voxels.
        exact: whether SimpleITK gives the voxels as they are stored, or with swapped bytes, and never scales them.
    """

    image: Path
    file: Path
    size: int
    start: int = 0
    before: int = 0
    packing: str = ""
    longer: bool = False
    exact: bool = False

    def check(
        self,
        array: NDArray[Any] | None = None,
        into: NDArray[np.uint8] | None = None,
        copy: IO[bytes] | None = None,
    ) -> None:
        """Compare sizes and checksums; nothing is decompressed where the voxels that were read fit the checksum.

        Args:
            array: the voxels as SimpleITK read them.
            into: where to put the voxels as they are stored.
            copy: where to write all that is packed.

        Raises:
            DamagedImageError: if voxels are missing or changed, or more than the header promises.
        """
        if not self.packing:
            found = self.file.stat().st_size - self.start - self.before
        elif array is not None and self._fits(array):
            return
        else:
            found, checksum = self._unpack(into, copy)
            if array is not None and self.exact and checksum not in map(_checksum, (array, array.byteswap())):
                raise DamagedImageError(
                    f"{self._name} cannot be unpacked by SimpleITK: write the image anew", code="image-packing"
                )
        if found < self.size:
            raise self._cut_off(found)
        if found > self.size and not self.longer:
            raise DamagedImageError(
                f"{self._name} holds {found} bytes of voxels, but its header promises {self.size}: one of both is "
                "wrong",
                code="image-promise",
            )

    def _fits(self, array: NDArray[Any]) -> bool:
        """Whether the checksum at the end of the file is that of these voxels: then all were read, and rightly.

        This takes a tenth of the time of decompressing. Voxels may be right in spite of another checksum: SimpleITK
        scales some, or swaps their bytes, and there may be several streams or something behind the voxels.
        """
        with self.file.open("rb") as file:
            file.seek(self.start)
            stream, header = zlib.decompressobj(47), b""
            try:
                while len(header) < self.before and (piece := file.read(1024)):
                    header += stream.decompress(piece, self.before - len(header))
            except zlib.error:
                return False
            if file.seek(0, os.SEEK_END) < self.start + 8:
                return False
            file.seek(-8, os.SEEK_END)
            end = file.read(8)
        if self.packing == "zlib":
            return zlib.adler32(_bytes(array), zlib.adler32(header)) == int.from_bytes(end[4:], "big")
        if (len(header) + array.nbytes) % 2**32 != int.from_bytes(end[4:], "little"):
            return False
        return zlib.crc32(_bytes(array), zlib.crc32(header)) == int.from_bytes(end[:4], "little")

    def _unpack(self, into: NDArray[np.uint8] | None, copy: IO[bytes] | None) -> tuple[int, int]:
        """Decompress to the end; returns the bytes of voxels that are there, and the checksum of those promised."""
        found, checksum = -self.before, 0
        try:
            for piece in self._pieces():
                part = memoryview(piece)[max(0, -found) : max(0, self.size - found)]
                place = max(0, found)
                found += len(piece)
                checksum = zlib.crc32(part, checksum)
                if copy is not None:
                    copy.write(piece)
                if into is not None:
                    into[place : place + len(part)] = part
        except EOFError:
            raise self._cut_off(found) from None
        except zlib.error as error:
            reason = str(error).split(": ")[-1]
            raise DamagedImageError(f"{self._name} is damaged ({reason}){AGAIN}", code="image-damaged") from None
        return found, checksum

    def _pieces(self) -> Iterator[bytes]:
        """Yield decompressed data in pieces; several streams may follow one another, and zeros the last of them."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            packed = file.read(CHUNK)
            while packed:
                stream = zlib.decompressobj(47)
                while not stream.eof:
                    packed = packed or file.read(CHUNK)
                    if not packed:
                        raise EOFError
                    yield stream.decompress(packed)
                    packed = stream.unused_data
                while not (packed := packed.lstrip(b"\0")) and (packed := file.read(CHUNK)):
                    pass

    @property
    def _name(self) -> str:
        return self.file.name if self.file == self.image else f"{self.file.name} with the voxels of {self.image.name}"

    def _cut_off(self, found: int) -> DamagedImageError:
        return DamagedImageError(
            f"{self._name} is cut off: its header promises {self.size} bytes of voxels, {max(0, found)} are there",
            code="image-cut-off",
        )


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(array: NDArray[Any]) -> int:
    return zlib.crc32(_bytes(array))


def _packing(file: Path) -> str:
    with file.open("rb") as stream:
        return "gzip" if stream.read(2) == GZIP else ""


def _voxels(path: Path, header: sitk.ImageFileReader) -> _Voxels | None:
    """Place of the voxels in a file; None for formats that have no size to compare."""
    name = path.name.lower()
    if name.endswith(NIFTI):
        return _nifti_voxels(path)
    if not name.endswith((".gipl", ".gipl.gz", ".mha", ".mhd", ".nrrd", ".nhdr")):
        return None
    import SimpleITK as sitk

    pixel = sitk.GetArrayViewFromImage(sitk.Image((1, 1), header.GetPixelID()))
    size = math.prod(header.GetSize()) * header.GetNumberOfComponents() * pixel.itemsize
    if name.endswith((".gipl", ".gipl.gz")):
        return _Voxels(path, path, size, before=GIPL_HEADER, packing=_packing(path))
    return _described_voxels(path, size)


@dataclass(frozen=True)
class _Nifti:
    """Header of a NIfTI or Analyze file: size in voxels, bits of a voxel, bytes before the voxels."""

    file: Path
    shape: tuple[int, ...]
    bits: int
    offset: int


def _nifti_header(path: Path) -> _Nifti:
    """The header of 348 bytes, or 540 in version 2, of an image in one file or two."""
    ending = next(ending for ending in NIFTI if path.name.lower().endswith(ending))
    pair = ending not in (".nii", ".nii.gz")
    header_file, file = _pair(path, ending) if pair else (path, path)
    with header_file.open("rb") as stream:
        start = stream.read(HEADER)
    if start[:2] == GZIP:
        packed, start = start, b""
        try:
            while packed and len(start) < 540:  # there may be several streams
                unpacking = zlib.decompressobj(47)
                start += unpacking.decompress(packed, 540 - len(start))
                packed = unpacking.unused_data.lstrip(b"\0")
        except zlib.error as error:
            raise DamagedImageError(f"{path.name} is damaged ({error}){AGAIN}", code="image-damaged") from None
    sizes = {order: struct.unpack(order + "i", start[:4].ljust(4))[0] for order in "<>"}
    order = next((order for order, size in sizes.items() if size in (348, 540) and len(start) >= size), None)
    if order is None:
        raise DamagedImageError(f"{path.name} is no NIfTI file, or damaged{AGAIN}", code="image-damaged")
    second = sizes[order] == 540
    kind = struct.unpack_from(order + "h", start, 12 if second else 70)[0]
    dimensions, *edges = struct.unpack_from(order + ("8q" if second else "8h"), start, 16 if second else 40)
    offset = struct.unpack_from(order + ("q" if second else "f"), start, 168 if second else 108)[0]
    if kind not in NIFTI_BITS or not 1 <= dimensions <= 7 or not 0 <= offset < 2**32:
        raise DamagedImageError(f"{path.name} has a header that makes no sense{AGAIN}", code="image-header")
    shape = tuple(max(1, edge) for edge in edges[:dimensions])  # as SimpleITK has it
    return _Nifti(file, shape, NIFTI_BITS[kind], int(offset) if pair else max(int(offset), sizes[order]))


def _nifti_voxels(path: Path) -> _Voxels:
    header = _nifti_header(path)
    size = (math.prod(header.shape) * header.bits + 7) // 8
    check_promise(header.file, size)
    return _Voxels(path, header.file, size, before=header.offset, packing=_packing(header.file), longer=True)


def _pair(path: Path, ending: str) -> tuple[Path, Path]:
    """Header and voxels of an image in two files, either of which may be named, and which differ in their ending."""
    stem = path.name[: -len(ending)]
    files = []
    for kinds in ((".hdr", ".hdr.gz"), (".img", ".img.gz")):
        there = [path.with_name(stem + kind) for kind in kinds if path.with_name(stem + kind).is_file()]
        if not there:
            raise DamagedImageError(
                f"{path.name} lacks the other of its two files, {stem}{kinds[0]}", code="image-incomplete"
            )
        files.append(there[0])
    return files[0], files[1]


def _data_file(path: Path) -> tuple[Path, int, bytes] | None:
    """The file with the voxels of a MetaImage or NRRD file, where they start in it, and the header.

    None for other formats.

    Raises:
        ForeignFileError: if they are in a file elsewhere, or in several: it could be any on this machine.
    """
    name = path.name.lower()
    if not name.endswith((".mha", ".mhd", ".nrrd", ".nhdr")):
        return None
    with path.open("rb") as stream:
        header = stream.read(HEADER)
    whole, length = len(header) < HEADER, len(header)
    if name.endswith((".nrrd", ".nhdr")):
        if blank := re.search(rb"\r?\n\r?\n", header):
            whole, length = True, blank.end()
        header = header[:length]
    named = DATA_FILE.search(header)
    if named is None and not whole:
        raise ForeignFileError(f"{path.name} has a header without an end", code="image-header")
    if name.endswith((".mha", ".mhd")) and named is not None:
        header, length = header[: named.start()], named.end()
    other = "LOCAL" if named is None else named[1].decode("utf-8", "replace").strip()
    if other.upper() == "LOCAL":
        return path, length, header
    here = name.endswith(DETACHED) and other[:4].upper() != "LIST" and not re.search(r"[/\\:%]|^\.", other)
    if not here:
        raise ForeignFileError(
            f"the voxels of {path.name} would be read from another file, '{other}'", code="image-elsewhere"
        )
    file = path.with_name(other)
    if not file.is_file():
        raise DamagedImageError(f"{path.name} lacks its voxels, {file.name}", code="image-incomplete")
    return file, 0, header


def _described_voxels(path: Path, size: int) -> _Voxels | None:
    """Place of the voxels of a MetaImage or NRRD file by its header; None if they are written as text."""
    found = _data_file(path)
    assert found is not None
    file, start, header = found
    meta = path.name.lower().endswith((".mha", ".mhd"))
    line = rb"(?m)^\s*([^:=\n]+?)\s*[:=]\s*([^\r\n]*)" if meta else rb"(?m)^([^:\n]+):\s*([^\r\n]*)"
    fields = {key.lower(): value.strip().lower() for key, value in re.findall(line, header)}
    if meta:
        if not fields.get(b"binarydata", b"").startswith((b"t", b"1")):
            return None
        packing = "zlib" if fields.get(b"compresseddata", b"").startswith((b"t", b"1")) else ""
        skipped = fields.get(b"headersize")
    else:
        encoding = fields.get(b"encoding", b"raw")
        if encoding not in (b"raw", b"gz", b"gzip"):
            return None
        packing = "" if encoding == b"raw" else "gzip"
        skipped = fields.get(b"byte skip", fields.get(b"line skip"))
    return _Voxels(path, file, size, start, packing=packing, longer=skipped not in (None, b"0"), exact=meta)


def _check_picture(path: Path) -> None:
    """Raise a DamagedImageError for a PNG file with a wrong checksum or without an end, or a BMP file cut off."""
    content = path.read_bytes()
    if content[:2] == b"BM" and len(content) >= 54:
        (start,), (width, height, _, bits, packing) = (
            struct.unpack_from("<I", content, 10),
            struct.unpack_from("<iihhI", content, 18),
        )
        if packing == 0 and len(content) < start + (width * bits + 31) // 32 * 4 * abs(height):
            raise DamagedImageError(f"{path.name} is cut off{AGAIN}", code="image-cut-off")
        return
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DamagedImageError(f"{path.name} is no PNG or BMP file, or damaged{AGAIN}", code="image-damaged")
    place, kind = 8, b""
    while kind != b"IEND":
        (length,), kind = (
            struct.unpack(">I", content[place : place + 4].ljust(4, b"\0")),
            content[place + 4 : place + 8],
        )
        end = place + 8 + length
        if len(content) < end + 4:
            raise DamagedImageError(f"{path.name} is cut off{AGAIN}", code="image-cut-off")
        if zlib.crc32(memoryview(content)[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise DamagedImageError(f"{path.name} is damaged (incorrect data check){AGAIN}", code="image-damaged")
        place = end + 4


def _check_tiff(path: Path) -> None:
    """Raise a DamagedImageError for a TIFF file that lacks voxels, or packs them with a wrong checksum."""
    from tifffile import TiffFile, TiffFileError

    size = path.stat().st_size
    try:
        with TiffFile(path) as file, path.open("rb") as stored:
            for page in file.pages:
                parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
                if not parts or any(count < 1 or start + count > size for start, count in parts):
                    raise DamagedImageError(f"{path.name} is cut off or damaged{AGAIN}", code="image-damaged")
                if page.compression in TIFF_DEFLATE:
                    for start, count in parts:
                        stored.seek(start)
                        stream = zlib.decompressobj()
                        stream.decompress(stored.read(count))
                        if not stream.eof:
                            raise DamagedImageError(f"{path.name} is cut off or damaged{AGAIN}", code="image-damaged")
    except (TiffFileError, zlib.error, ValueError, struct.error) as error:
        if isinstance(error, DamagedImageError):
            raise
        raise DamagedImageError(f"{path.name} is damaged ({error}){AGAIN}", code="image-damaged") from None
