"""What converters share: trees and archives, readers, geometry, labels, splits, steps, and the run as a whole."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any, ClassVar

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock

from nnunet_fm import dataset_conversion
from nnunet_fm.cli.app import main
from nnunet_fm.dataset_conversion import CONVERTERS, get_converter, skull, steps
from nnunet_fm.dataset_conversion import run as run_module
from nnunet_fm.dataset_conversion.base import (
    AllowedValues,
    Case,
    ConversionOptions,
    Converter,
    ImageSource,
    Listing,
    Work,
    read_source,
)
from nnunet_fm.dataset_conversion.flat_hdf5 import FlatVolume, flat_volumes
from nnunet_fm.dataset_conversion.freesurfer import BRAIN
from nnunet_fm.dataset_conversion.labels import LabelTable, count_values, merge_masks, whole_numbers
from nnunet_fm.dataset_conversion.problems import ConversionError, Invalid, LeftOut, UsageError
from nnunet_fm.dataset_conversion.readers import read_dicom_series, read_png_stack, read_volume
from nnunet_fm.dataset_conversion.run import Report, convert
from nnunet_fm.dataset_conversion.splits import Split, by_position, make_folds, read_split
from nnunet_fm.dataset_conversion.steps import Thesis
from nnunet_fm.dataset_conversion.tree import Tree, open_tree
from nnunet_fm.dataset_conversion.writer import storable, write_image
from nnunet_fm.io.volume import Grid, Volume, outside_fraction, resample
from nnunet_fm.preprocessing.orientation import axis_codes
from tests.helpers.convert_tester import edit, scene, snapshot, verify, voxels, write_volume

# Trees


def opened(source: Path, tmp_path: Path) -> Tree:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return open_tree(source, scratch)


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_files_are_found_under_any_parent_and_leftovers_ignored(tmp_path: Path) -> None:
    source = fill(
        tmp_path / "s", "A/A/images/c1.mha", "images/._c2.mha", "__MACOSX/images/c3.mha", ".DS_Store", "x.txt"
    )
    tree = opened(source, tmp_path)
    assert list(tree.entries) == ["A/A/images/c1.mha", "x.txt"]
    ((name, groups),) = tree.match(r"images/(?P<case>c\d)\.mha")
    assert (name, groups["case"]) == ("A/A/images/c1.mha", "c1")
    assert tree.match(r"mages/c\d\.mha") == []


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tgz"])
def test_archives_are_looked_into_also_inside_folders_and_archives(ending: str, tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("deep/b.txt", "deep")
    source = tmp_path / "source"
    source.mkdir()
    archive = source / f"data.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("top/a.txt", "a")
            file.writestr("top/inner.zip", inner.getvalue())
    else:
        with tarfile.open(archive, "w:gz" if "g" in ending else "w") as tar:
            for name, content in (("./top/a.txt", b"a"), ("top/inner.zip", inner.getvalue())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    before = snapshot(source)
    tree = opened(source, tmp_path)
    names = [f"data.{ending}/top/a.txt", f"data.{ending}/top/inner.zip/deep/b.txt"]
    assert list(tree.entries) == names and tree.problems == ()
    assert [tree.local(name, tmp_path / name).read_text() for name in names] == ["a", "deep"]
    assert snapshot(source) == before
    (tmp_path / "again").mkdir()
    assert list(open_tree(archive, tmp_path / "again").entries) == ["top/a.txt", "top/inner.zip/deep/b.txt"]


def test_members_and_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", "good.txt")
    (tmp_path / "secret").write_text("secret")
    (source / "out").symlink_to(tmp_path / "secret")
    (source / "folder").symlink_to(tmp_path)
    (source / "inside").symlink_to(source / "good.txt")
    (source / "nothing").symlink_to(source / "not_there")
    (source / "circle").symlink_to(source / "circle")
    with zipfile.ZipFile(source / "a.zip", "w") as file:
        for name in ("/etc/one", "../two", "c:/three", "x\\..\\..\\four"):
            file.writestr(name, "evil")
        link = zipfile.ZipInfo("five")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("fine", "fine")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("fine", "twice")
    with tarfile.open(source / "b.tar", "w") as tar:
        for name, kind in (("six", tarfile.SYMTYPE), ("seven", tarfile.LNKTYPE), ("eight", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("../nine"), io.BytesIO())
    tree = opened(source, tmp_path)
    assert list(tree.entries) == ["a.zip/fine", "good.txt", "inside"]
    rules = {problem.file: problem.rule for problem in tree.problems}
    members = ("/etc/one", "../two", "c:/three", "five", "fine")
    assert set(rules) == {f"a.zip/{name}" for name in members} | {
        "out", "folder", "nothing", "circle", "b.tar/six", "b.tar/seven", "b.tar/eight", "b.tar/../nine",
        next(name for name in rules if name.endswith("four")),
    }  # fmt: skip
    assert (
        "leads out" in rules["a.zip/../two"] and "link" in rules["a.zip/five"] and "two members" in rules["a.zip/fine"]
    )
    assert "not there" in rules["nothing"]
    assert not any("secret" in path.read_text() for path in (tmp_path / "scratch").rglob("*") if path.is_file())


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_archives_that_are_cut_off_are_refused(ending: str, tmp_path: Path) -> None:
    source = tmp_path / f"data.{ending}"
    content = np.random.default_rng(0).bytes(50_000)
    if ending == "zip":
        with zipfile.ZipFile(source, "w") as file:
            file.writestr("a", content)
    else:
        with tarfile.open(source, "w:gz") as tar:
            info = tarfile.TarInfo("a")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = source.read_bytes()
    for share in (0.3, 0.6, 0.99):
        source.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ConversionError, match=rf"data.{ending}: the archive is damaged or cut off"):
            open_tree(source, _folder(tmp_path, f"scratch_{share}"))


@pytest.mark.parametrize(("start", "kind"), [(b"Rar!\x1a\x07\x01\x00", "RAR"), (b"7z\xbc\xaf\x27\x1c", "7z")])
def test_archives_that_cannot_be_opened_are_to_be_unpacked(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "data").write_bytes(start + bytes(100))
    with pytest.raises(ConversionError, match=rf"data is a {kind} archive: unpack it first, then give the folder"):
        open_tree(tmp_path / "data", _folder(tmp_path, "scratch"))


def test_a_damaged_member_is_refused_when_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("b.txt", "content of a member")
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"content of", b"cOntent of"))
    tree = opened(tmp_path / "a.zip", tmp_path)
    with pytest.raises(Invalid, match=r"b\.txt: cannot be unpacked"):
        tree.local("b.txt", tmp_path / "out")


def test_pairing_prefers_files_on_disk_and_names_what_is_wrong(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", "i/1.mha", "l/1.mha", "i/2.mha", "l/3.mha", "i/4.mha", "b/i/4.mha", "l/4.mha")
    with zipfile.ZipFile(source / "same.zip", "w") as file:
        file.writestr("i/1.mha", "zipped")
        file.writestr("l/1.mha", "zipped")
    tree = opened(source, tmp_path)
    patterns = {"image": r"i/(?P<case>\d)\.mha", "label": r"l/(?P<case>\d)\.mha"}
    cases, problems = tree.collect(patterns)
    assert cases == {"1": {"image": "i/1.mha", "label": "l/1.mha"}}
    assert [str(problem) for problem in problems] == [
        "i/2.mha: there is no label for this case",
        "l/3.mha: there is no image for this case",
        "b/i/4.mha: a second image of this case is i/4.mha",
    ]
    assert "2" in tree.collect(patterns, optional={"label"})[0]


def test_stacks_have_no_gaps(tmp_path: Path) -> None:
    names = [f"{role}/{case}_{i:04d}.png" for role in ("i", "l") for case in "ab" for i in (2, 10, 1, 9, *range(3, 9))]
    source = fill(tmp_path / "source", *names, "i/c_0001.png", "more/i/d_1.png", "i/d_0001.png", "l/d_1.png")
    (source / "l/b_0005.png").unlink()
    patterns = {"image": r"i/(?P<case>.)_(?P<slice>\d+)\.png", "label": r"l/(?P<case>.)_(?P<slice>\d+)\.png"}
    cases, problems = opened(source, tmp_path).collect_stacks(patterns)
    assert {case: set(map(len, files.values())) for case, files in cases.items()} == {"a": {10}}
    assert cases["a"]["image"][:2] == ("i/a_0001.png", "i/a_0002.png") and cases["a"]["label"][-1] == "l/a_0010.png"
    assert {problem.case: problem.rule for problem in problems} == {
        "b": "there is no label of slice 5 of this case",
        "c": "there is no label for this case",
        "d": "a second image of this slice is i/d_0001.png",
    }


# Readers


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.mgz"])
def test_formats_keep_voxels_and_geometry_and_notice_what_is_cut_off(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 3000, (20, 22, 24)).astype(np.int16)
    direction = _rotation(0.3)
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
        with pytest.raises(Invalid, match=r"this one: .*(damaged|cut off)"):
            read_volume(path, "this one")


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
    with pytest.raises(Invalid, match="has 4 dimensions instead of 3"):
        read_volume(tmp_path / "four.nii.gz", "four")
    with pytest.raises(Invalid, match="no four dimensions with a channel 2"):
        read_volume(tmp_path / "four.nii.gz", "four", 2)
    wrong = bytearray(gzip.compress(gzip.decompress((tmp_path / "big.nii.gz").read_bytes())))
    wrong[-6] ^= 1  # the checksum
    (tmp_path / "big.nii.gz").write_bytes(wrong)
    with pytest.raises(Invalid, match="damaged|cut off"):
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
            with pytest.raises(Invalid, match="not at right angles"):
                read_volume(tmp_path / "a.nii", "a")


def test_vectors_and_colours_are_no_volumes(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), tmp_path / "a.mha")
    with pytest.raises(Invalid, match="instead of one number per voxel"):
        read_volume(tmp_path / "a.mha", "a")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), tmp_path / "b.mha")
    with pytest.raises(Invalid, match="has 2 dimensions"):
        read_volume(tmp_path / "b.mha", "b")


def test_dicom_slices_are_put_in_the_order_of_their_positions(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 100, (6, 8, 9)).astype(np.int16)
    # Names, instance numbers and positions each have an order of their own.
    write_dicom(tmp_path, array, names=[3, 1, 4, 0, 5, 2], instances=[2, 1, 0, 5, 4, 3])
    volume = read_dicom_series(sorted(tmp_path.iterdir()), "series")
    assert np.array_equal(volume.array, array)
    assert volume.grid.difference(Grid((9, 8, 6), (0.5, 0.5, 3.0), (-10.0, 20.0, 5.0))) is None
    (tmp_path / "1.dcm").rename(tmp_path / "0.dcm.hidden")
    with pytest.raises(Invalid, match=r"series: distances between slices are 3 to 6 mm"):
        read_dicom_series(sorted(tmp_path.glob("*.dcm")), "series")
    (tmp_path / "1.dcm").write_bytes(b"no DICOM")
    with pytest.raises(Invalid, match=r"series/1\.dcm: is no DICOM file"):
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
    with pytest.raises(Invalid, match=r"1\.png: has size \(2, 5\)"):
        read_png_stack(paths, names, (0.7, 0.7, 4.0))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True), paths[1])
    with pytest.raises(Invalid, match=r"1\.png: is a colour picture"):
        read_png_stack(paths, names, (0.7, 0.7, 4.0))
    paths[2].write_bytes(paths[2].read_bytes()[:40])
    with pytest.raises(Invalid, match=r"2\.png: is cut off"):
        read_png_stack(paths[2:], names[2:], (0.7, 0.7, 4.0))


# HDF5 with all slices in one array


@pytest.fixture
def flat(tmp_path: Path) -> Callable[..., list[FlatVolume]]:
    """Write a file of three volumes with 2, 3 and 4 slices, changed, and list its volumes."""

    def write(suffix: str = "", **changes: Any) -> list[FlatVolume]:
        array = np.arange(9 * 5 * 6, dtype=np.float32).reshape(9, 5, 6)
        content: dict[str, Any] = {
            "images": array,
            "labels": (array % 3).astype(np.uint8),
            "nz": np.array([2, 3, 4], np.uint16),
            "nx": np.array([300, 300, 300], np.uint16),
            "pz": np.array([3.0, 3.5, 4.0], np.float32),
            "patnames": np.array([b"0001", b"0002", b"0003"]),
        } | changes
        (tmp_path / "source").mkdir(exist_ok=True)
        with h5py.File(tmp_path / "source" / "a.hdf5", "w") as file:
            for key, value in content.items():
                if value is not None:
                    file[key + suffix] = value
        tree = open_tree(tmp_path / "source", _folder(tmp_path, f"scratch_{len(list(tmp_path.iterdir()))}"))
        return flat_volumes(tree, "a.hdf5", 0.7, suffix)

    return write


def read_flat(volume: FlatVolume, tmp_path: Path) -> Volume:
    tree = open_tree(tmp_path / "source", _folder(tmp_path, f"s_{len(list(tmp_path.iterdir()))}"))
    return read_source(volume.image, Work(ConversionOptions(), tree, tmp_path / "work"))


def test_volumes_are_cut_by_cumulative_counts(flat: Callable[..., list[FlatVolume]], tmp_path: Path) -> None:
    array = np.arange(9 * 5 * 6, dtype=np.float32).reshape(9, 5, 6)
    expected = [array[:2], array[2:5], array[5:]]
    last = {"images": np.moveaxis(array, 0, 2), "labels": np.moveaxis(array, 0, 2), "nz": None, "depths": [2, 3, 4]}
    rows = {key: array.reshape(3, 3, 5, 6) for key in ("images", "labels")} | {"nz": [3, 3, 3]}
    for changes, parts in (
        ({}, expected),
        ({"suffix": "_train"}, expected),
        ({"labels": None, "masks": array}, expected),
        (last, expected),
        (rows, [array[:3], array[3:6], array[6:]]),
        (rows | {"nz": None}, [array[:3], array[3:6], array[6:]]),
    ):
        volumes = flat(**changes)
        assert [volume.patient for volume in volumes] == ["0001", "0002", "0003"]
        for volume, part, pz in zip(volumes, parts, (3.0, 3.5, 4.0), strict=True):
            read = read_flat(volume, tmp_path)
            assert np.array_equal(read.array, part) and read.grid.spacing == (0.7, 0.7, pz)
            assert volume.label.details["key"].startswith("masks" if "masks" in changes else "labels")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nz": [2, 3, 3]}, "add up to 8 slices"),
        ({"nz": [5, 0, 4]}, "add up to 9 slices"),
        ({"nz": None}, "has no 'nz'"),
        ({"images": None}, "has no 'images', but labels"),
        ({"labels": np.zeros((9, 5, 5), np.uint8)}, "has shape"),
        ({"pz": [3.0, 3.0]}, "2 numbers for 3 volumes"),
        ({"pz": [3.0, 0.0, 3.0]}, "0.0 mm between slices of volume 1"),
        ({"images": h5py.ExternalLink("/etc/other.hdf5", "x")}, "no array of this file|cannot be read|has no 'images'"),
        ({"images": h5py.SoftLink("/labels")}, "'images' is no array of this file"),
    ],
)
def test_hdf5_files_that_do_not_add_up_are_refused(
    flat: Callable[..., list[FlatVolume]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid, match=f"a.hdf5: .*({message})"):
        flat(**changes)


def test_hdf5_files_that_are_cut_off_are_refused(flat: Callable[..., list[FlatVolume]], tmp_path: Path) -> None:
    volumes = flat()
    path = tmp_path / "source" / "a.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Invalid, match="cannot be read as HDF5"):
        read_flat(volumes[0], tmp_path)


# Geometry


def test_the_axis_of_the_array_along_the_patient() -> None:
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        direction = np.zeros((3, 3))
        for axis, (row, sign) in enumerate(zip(order, signs, strict=True)):
            direction[row, axis] = sign
        codes = axis_codes(direction.ravel().tolist())  # of x, y, z
        grid = Grid((3, 4, 5), (1.0, 1.0, 1.0), direction=tuple(direction.ravel().tolist()))
        for anatomical, letters in enumerate(("SI", "AP", "LR")):
            assert codes[2 - grid.array_axis(anatomical)] in letters


def test_grids_are_compared_by_where_their_corners_lie() -> None:
    grid = Grid((100, 100, 50), (0.5, 0.5, 2.0), (1.0, 2.0, 3.0))
    assert grid.difference(Grid(grid.size, (0.50001, 0.5, 2.0), grid.origin)) is None
    assert "spacing" in str(grid.difference(Grid(grid.size, (0.51, 0.5, 2.0), grid.origin)))
    assert "origin" in str(grid.difference(Grid(grid.size, grid.spacing, (1.1, 2.0, 3.0))))
    assert "size 100 x 100 x 50 against 100 x 100 x 49" in str(grid.difference(Grid((100, 100, 49), grid.spacing)))
    assert "direction" in str(grid.difference(Grid(grid.size, grid.spacing, grid.origin, _rotation(0.02))))
    assert Grid.from_affine(grid.shape, grid.affine) == grid


def test_labels_are_put_in_their_place_in_space() -> None:
    _, label = scene(0, (1, 2, 3))
    grid = Grid(label.shape[::-1], (1.0, 1.5, 2.0), (5.0, 6.0, 7.0))
    flipped = Grid(grid.size, grid.spacing, (5.0 + 13, 6.0 + 11 * 1.5, 7.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    stored = Volume(np.ascontiguousarray(label[:, ::-1, ::-1]), flipped)
    assert outside_fraction(stored, grid) == 0
    assert np.array_equal(resample(stored, grid, label=True).array, label)
    assert outside_fraction(Volume(label, Grid(grid.size, grid.spacing, (1000.0, 0.0, 0.0))), grid) == 1
    shifted = Grid(grid.size, grid.spacing, (5.0 + 1, 6.0, 7.0))
    beyond = int(np.count_nonzero(label[:, :, -1:]))
    assert outside_fraction(Volume(label, shifted), grid) == beyond / np.count_nonzero(label)


def test_written_images_are_read_alike_by_all(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)
    grid = Grid((7, 6, 5), (0.7, 1.2, 3.0), (10.0, -20.0, 30.5), _rotation(0.3))
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


# Labels


def test_wide_labels_are_not_cut_to_eight_bit() -> None:
    array = np.array([[[0, 1035, 2035, 8, 47]], [[3001, 11101, 26, 85, 255]]], np.int32)
    mapped, counts, others = BRAIN.apply(array, "aseg")
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[[0, 3, 3, 1, 1]], [[0, 0, 3, 4, 4]]]
    assert counts[1035] == 1 and others == {3001: 1, 11101: 1}
    assert list(BRAIN.names) == [
        "background", "cerebellum_gm", "cerebellum_wm", "cerebral_gm", "cerebral_wm", "thalamus", "hippocampus",
        "amygdala", "ventricles", "caudate", "putamen", "pallidum", "ventral_dc", "csf", "brain_stem",
    ]  # fmt: skip
    groups = {value: number for value, number in BRAIN.values.items() if value < 1000}
    assert {v for v, n in groups.items() if n == 4} == {2, 41, 251, 252, 253, 254, 255, 5, 44, 30, 62, 77, 80, 85}
    assert {v for v, n in groups.items() if n == 8} == {4, 43, 14, 15, 72, 31, 63} and len(BRAIN.values) == 2046


def test_other_numbers_are_refused() -> None:
    table = LabelTable.of("one", "two")
    with pytest.raises(Invalid, match=r"file: label values .* -1 \(1 voxels\), 7 \(2 voxels\); known: 0, 1, 2"):
        table.apply(np.array([[[0, 1, 7, 7, -1]]], np.int16), "file")
    with pytest.raises(Invalid, match="no numbers of structures"):
        LabelTable({"background": 0}, {0: 0}, unlisted=0).apply(np.array([[[0, 2**31 - 1]]], np.int64), "file")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_labels_if_they_are_whole(dtype: Any) -> None:
    array = np.array([[[0, 24, 3]], [[1, 2, 0]]], dtype)
    cast = whole_numbers(array, "file")
    assert cast.dtype == np.int32 and np.array_equal(cast, array)
    for value, message in ((0.5, "such as 0.5"), (np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e12, "fractions")):
        spoiled = array.copy()
        spoiled[1, 0, 0] = value
        with pytest.raises(Invalid, match=f"file: .*{message}"):
            whole_numbers(spoiled, "file")


def test_masks_are_painted_in_order_and_overlaps_counted() -> None:
    masks = np.zeros((3, 2, 4, 5), np.uint8)
    masks[0, 0], masks[1, :, :2], masks[2, 1, 1:3] = 1, 255, 1
    merged, overlaps = merge_masks((2, 4, 5), ((value, mask) for value, mask in zip((4, 5, 9), masks, strict=True)))
    assert overlaps == {(4, 5): 10, (5, 9): 5}  # never 4 + 5 = 9
    assert count_values(merged) == {0: 5, 4: 10, 5: 15, 9: 10}
    again, _ = merge_masks((2, 4, 5), ((value, masks[i]) for value, i in ((9, 2), (5, 1), (4, 0))))
    assert count_values(again) == {0: 5, 4: 20, 5: 10, 9: 5}


# Splits

CASES = {f"case_{i:02d}": f"subject_{i // 2}" for i in range(20)}


def test_folds_are_nnunets_own_where_every_case_is_a_subject() -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    own = {case: case for case in CASES}
    assert make_folds(Split(tuple(CASES)), own) == generate_crossval_split(list(CASES))


def test_a_subject_is_in_one_fold_and_fold_0_is_the_published_one() -> None:
    split = by_position(list(CASES), slice(0, 12), slice(12, 16), slice(16, 20))
    folds = make_folds(split, CASES)
    assert folds[0] == {"train": list(split.train), "val": list(split.val)} and len(folds) == 5
    for fold in folds[1:]:
        assert sorted((*fold["train"], *fold["val"])) == list(CASES)[:16]
        assert not {CASES[case] for case in fold["train"]} & {CASES[case] for case in fold["val"]}
    assert len(make_folds(Split(("a", "b", "c")), {"a": "1", "b": "2", "c": "2"})) == 2
    assert make_folds(Split(("a",)), {"a": "a"}) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.json", '{"train": ["case_00", "subject_1"], "val": ["case_04"], "test": ["case_05"]}'),
        ("s.csv", "case,part\ncase_00,train\nsubject_1,train\ncase_04, val\n\ncase_05,test\n"),
        ("s.txt", "# mine\ncase_00 train\nsubject_1 train\ncase_04 val\ncase_05 test"),
        ("s.tsv", "case_00\ttrain\nsubject_1\ttrain\ncase_04\tval\ncase_05\ttest"),
    ],
)
def test_splits_of_users(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    split = read_split(tmp_path / name, CASES)
    assert split == Split(("case_00", "case_02", "case_03"), ("case_04",), ("case_05",))


def test_folds_of_users(tmp_path: Path) -> None:
    folds = [{"train": ["case_00"], "val": ["case_01"]}, {"train": ["case_01"], "val": ["case_00"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    split = read_split(tmp_path / "splits_final.json", CASES)
    assert make_folds(split, CASES) == folds and set(split.parts) == {"case_00", "case_01"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", '{"train": ["case_0"]}', "no case 'case_0': did you mean case_.0"),
        ("s.json", '{"train": ["case_00", "subject_0"]}', "names case_00 twice"),
        ("s.json", '{"train": ["case_00"], "test": ["case_00"]}', "names case_00 twice"),
        ("s.json", '{"training": []}', "neither lists"),
        ("s.json", '{"train": [', "cannot be read as a split"),
        ("s.csv", "case,part\ncase_00,training", "line 2 is not a case and one of train, val, test"),
        ("s.json", '{"test": ["case_00"]}', "no training case"),
    ],
)
def test_splits_that_say_nothing_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConversionError, match=f"{name}: .*{message}"):
        read_split(tmp_path / name, CASES)


# Steps


def test_n4_removes_a_bias_field() -> None:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    inside = (z**2 + y**2 + x**2) < 0.8
    field = np.exp(0.5 * x + 0.3 * y)
    array = (inside * 100 * field + np.random.default_rng(0).normal(0, 1, inside.shape)).astype(np.float32)
    corrected = steps.n4(Volume(array, Grid((24, 24, 24), (4.0, 4.0, 4.0)))).array

    def variation(image: np.ndarray) -> float:
        return float(image[inside].std() / image[inside].mean())

    assert variation(array) > 0.2 and variation(corrected) < 0.4 * variation(array)


def test_intensities() -> None:
    array = np.random.default_rng(0).normal(500, 100, (10, 20, 30)).astype(np.float64)
    grid = Grid((30, 20, 10), (1.0, 1.0, 1.0))
    percentile = steps.normalise(Volume(array, grid), "percentile").array
    low, high = np.percentile(array, (1, 99))
    assert np.allclose(percentile, np.clip((array - low) / (high - low), 0, 1), atol=1e-5)
    assert percentile.dtype == np.float32
    score = steps.normalise(Volume(array, grid), "zscore").array
    assert np.allclose(score, (array - array.min()) / (array.max() - array.min()), atol=1e-5)
    for how in ("percentile", "zscore"):
        assert not steps.normalise(Volume(np.full((2, 2, 2), 7), Grid((2, 2, 2), (1.0, 1.0, 1.0))), how).array.any()  # type: ignore[arg-type]


def test_slices_get_the_pixel_size_and_edge_about_the_same_centre() -> None:
    grid = Grid((40, 30, 20), (1.0, 1.0, 4.0), (5.0, 6.0, 7.0), _rotation(0.3))
    label = np.zeros(grid.shape, np.uint8)
    label[8:12, 10:20, 15:25] = 1  # a box about the centre, 10 x 10 mm in the plane
    for axis, expected in ((0, Grid((64, 64, 20), (0.5, 0.5, 4.0))), (1, Grid((64, 30, 64), (0.5, 1.0, 0.5)))):
        volume = steps.thesis_plane(Volume(label, grid), axis, Thesis("percentile", 64, 0.5), label=True)
        assert (volume.grid.size, volume.grid.spacing) == (expected.size, expected.spacing)
        middle = (np.array([volume.grid.size]) - 1) / 2
        assert np.allclose(grid.indices_of(middle, volume.grid), (np.array(grid.size) - 1) / 2)
        millimetres = np.count_nonzero(volume.array) * np.prod(volume.grid.spacing)
        assert millimetres == pytest.approx(4 * 10 * 10 * 4, rel=0.1)
    stretched = steps.plane_grid(grid, 0, 10, None)
    assert stretched.spacing == (4.0, 3.0, 4.0) and stretched.size == (10, 10, 20)


def test_brain_masks_of_users(tmp_path: Path) -> None:
    inside = np.zeros((4, 5, 6), np.uint8)
    inside[1:3] = 1
    grid = Grid((6, 5, 4), (1.0, 1.0, 1.0))
    write_volume(tmp_path / "case_a.nii.gz", inside)
    (tmp_path / "table.csv").write_text("case_a,case_a.nii.gz\n")
    (tmp_path / "table.json").write_text('{"case_a": "case_a.nii.gz", "case_c": "no.nii.gz"}')
    for where in (tmp_path, tmp_path / "table.csv", tmp_path / "table.json"):
        assert np.array_equal(skull.read_mask(skull.mask_file(where, "case_a"), grid), inside != 0)
        with pytest.raises(Invalid, match="case_b"):
            skull.mask_file(where, "case_b")
    with pytest.raises(Invalid, match=r"no\.nii\.gz: there is no such mask"):
        skull.read_mask(skull.mask_file(tmp_path / "table.json", "case_c"), grid)
    with pytest.raises(Invalid, match="empty on the image's grid"):
        skull.read_mask(tmp_path / "case_a.nii.gz", Grid((6, 5, 4), (1.0, 1.0, 1.0), (500.0, 0.0, 0.0)))


# Runs


class Toy(Converter):
    """A made-up dataset that knows every option: two channels, masks of structures, several scans of a subject."""

    name = "toy"
    dataset = "Toy"
    title, size, licence, licence_source, reference = "Toy", "few", "CC0", "here", "https://example.org"
    label_sets: ClassVar = {
        "all": LabelTable.of("a", "b"),
        "b": LabelTable({"background": 0, "b": 1}, {0: 0, 1: 0, 2: 1}),
    }
    layouts: ClassVar = {"toy": "c1_0.nii.gz, c1_1.nii.gz and c1_seg.nii.gz"}
    channels = ("T1", "CT")
    slice_axis = 1
    domain = AllowedValues(("x", "y"))
    splits: ClassVar = {"official": "train and test by name"}
    n4 = False
    skull_strip = "no"
    thesis = Thesis("percentile", 16, 0.7, n4=True, skull_strip=True)

    def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
        found, problems = tree.collect(
            {
                "one": r"(?P<case>[ct]\d)_0\.nii\.gz",
                "two": r"(?P<case>[ct]\d)_1\.nii\.gz",
                "label": r"(?P<case>[ct]\d)_seg\.nii\.gz",
            },
            optional={"label"},
        )
        cases = [
            Case(
                name,
                (ImageSource(files["one"]), ImageSource(files["two"])),
                tuple(ImageSource(files[role]) for role in ("label",) if role in files),
                "test" if name.startswith("t") else "val" if name == "c2" else "train",
            )
            for name, files in found.items()
        ]
        return Listing("toy", cases, problems)

    def read_case(self, case: Case, work: Work) -> tuple[list[Volume], Volume | None]:
        if case.name == "c9":
            raise LeftOut("nine is left out")
        return super().read_case(case, work)


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Five training cases, one of them for validation, and a test case without labels; coronal slices along x."""
    for case in ("c1", "c2", "c3", "c4", "c5", "t1"):
        image, label = scene(int(case[1]), (1, 2))
        for channel in range(2):
            write_toy(tmp_path / "toys" / f"{case}_{channel}.nii.gz", image + 50 * channel)
        if case != "t1":
            write_toy(tmp_path / "toys" / f"{case}_seg.nii.gz", label)
    return tmp_path / "toys"


def write_toy(path: Path, array: np.ndarray) -> None:
    write_volume(path, array, (1.5, 1.0, 1.0), direction=(0, 1, 0, 1, 0, 0, 0, 0, -1))  # x runs to posterior


def toy(source: Path, raw: Path | None, options: dict[str, Any] | None = None, **changes: Any) -> Report:
    converter = Toy()
    return convert(converter, source, 7, converter.options(**options or {}), raw, **changes)


def content(report: Report, name: str) -> Any:
    assert report.folder is not None
    return json.loads((report.folder / name).read_text(encoding="utf-8"))


def test_channels_tests_and_folds(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = toy(toys, tmp_path / "raw", {"split": "official"})
    assert (report.dataset, report.training, report.test) == ("Dataset007_Toy", 5, 1)
    assert report.folder is not None
    verify(report.folder, monkeypatch)
    assert [p.name for p in sorted((report.folder / "imagesTs").iterdir())] == ["t1_0000.nii.gz", "t1_0001.nii.gz"]
    assert not list((report.folder / "labelsTs").iterdir())
    folds = content(report, "splits_final.json")
    assert len(folds) == 5 and folds[0] == {"train": ["c1", "c3", "c4", "c5"], "val": ["c2"]}
    record = content(report, "conversion.json")
    assert (
        record["slice_axis"] == 1
        and record["split"]["test"] == ["t1"]
        and set(record["sources"]) == set(snapshot(toys))
    )
    image = sitk.ReadImage(report.folder / "imagesTr" / "c1_0001.nii.gz")
    assert image.GetDirection() == (0, 1, 0, 1, 0, 0, 0, 0, -1) and image.GetPixelID() == sitk.sitkInt16


def test_a_users_split_leaves_cases_out(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"train": ["c1", "c3"], "val": ["c4"], "test": ["c2"]}')
    report = toy(toys, tmp_path / "raw", {"split": str(tmp_path / "mine.json")})
    assert (report.training, report.test, report.unused) == (3, 1, ("c5", "t1"))
    assert report.folder is not None and (report.folder / "labelsTs" / "c2.nii.gz").is_file()
    assert content(report, "conversion.json")["options"]["split"] == "mine.json"
    (tmp_path / "mine.json").write_text('{"train": ["c1", "t1"]}')
    with pytest.raises(ConversionError, match=r"t1_0\.nii\.gz: a training case without labels"):
        toy(toys, tmp_path / "raw2", {"split": str(tmp_path / "mine.json")})


def test_domains_and_label_sets(toys: Path, tmp_path: Path) -> None:
    report = toy(toys, tmp_path / "raw", {"labels": "b", "domain": "y"})
    assert report.dataset == "Dataset007_Toy_Y" and content(report, "dataset.json")["labels"] == {
        "background": 0,
        "b": 1,
    }
    assert report.folder is not None
    _, label = scene(3, (1, 2))
    written = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "c3.nii.gz"))
    assert np.array_equal(written, label == 2)


def test_the_theses_steps(toys: Path, tmp_path: Path) -> None:
    (toys / "t1_0.nii.gz").unlink()  # a case without labels cannot be stripped by them
    (toys / "t1_1.nii.gz").unlink()
    report = toy(toys, tmp_path / "raw", {"thesis": True})
    assert report.folder is not None
    assert content(report, "dataset.json")["channel_names"] == {"0": "T1_0_to_1", "1": "CT_0_to_1"}
    image = sitk.ReadImage(report.folder / "imagesTr" / "c1_0000.nii.gz")
    assert image.GetSize() == (14, 16, 16)  # the patient's second axis is the file's x: its 14 slices stay
    assert image.GetSpacing() == pytest.approx((1.5, 0.7, 0.7))
    notes = content(report, "conversion.json")["cases"]["c1"]["notes"]
    assert [note.split(":")[0] for note in notes] == ["N4", "skull strip", "thesis"]
    plain = toy(toys, tmp_path / "raw2", {"thesis": True, "n4": False, "skull_strip": "no"})
    assert len(content(plain, "conversion.json")["cases"]["c1"]["notes"]) == 1 and plain.folder is not None
    array = sitk.GetArrayFromImage(sitk.ReadImage(plain.folder / "imagesTr" / "c1_0000.nii.gz"))
    assert array.min() == 0 and 0.5 < array.max() <= 1


def test_masks_of_users_strip_skulls(toys: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    inside = np.zeros((10, 12, 14), np.uint8)
    inside[4:6] = 1
    for case in ("c1", "c2", "c3", "c4", "c5", "t1"):
        write_toy(masks / f"{case}.nii.gz", inside)
    report = toy(toys, tmp_path / "raw", {"skull_strip": str(masks)})
    assert report.folder is not None
    array = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "imagesTs" / "t1_0000.nii.gz"))
    assert not array[inside == 0].any() and array[inside == 1].any()
    assert toy(toys, tmp_path / "raw", {"skull_strip": str(masks)}).status == "unchanged"
    write_toy(masks / "c1.nii.gz", 1 - inside)
    with pytest.raises(ConversionError, match="--force"):
        toy(toys, tmp_path / "raw", {"skull_strip": str(masks)})


def test_channels_on_other_grids_are_refused(toys: Path, tmp_path: Path) -> None:
    edit(toys / "c2_1.nii.gz", lambda array: array)
    write_volume(toys / "c2_1.nii.gz", scene(2, (1, 2))[0])
    with pytest.raises(ConversionError, match=r"c2_1\.nii\.gz: another grid than c2_0\.nii\.gz: spacing"):
        toy(toys, tmp_path / "raw")


def test_what_a_dataset_leaves_out_is_no_problem(toys: Path, tmp_path: Path) -> None:
    for role in ("0", "1", "seg"):
        (toys / f"c5_{role}.nii.gz").rename(toys / f"c9_{role}.nii.gz")
    report = toy(toys, tmp_path / "raw")
    assert report.left_out == {"c9": "nine is left out"} and report.training == 4 and report.problems == ()
    assert toy(toys, tmp_path / "raw").left_out == report.left_out


def test_all_problems_are_told_at_once(toys: Path, tmp_path: Path) -> None:
    edit(toys / "c2_seg.nii.gz", lambda array: array * 50)
    edit(toys / "c4_seg.nii.gz", lambda array: array * 0)
    (toys / "c5_1.nii.gz").unlink()
    with pytest.raises(ConversionError, match=r"3 problems, the first: c5_.*there is no two") as raised:
        toy(toys, tmp_path / "raw")
    assert [problem.case for problem in raised.value.problems] == ["c5", "c2", "c4"]
    assert list((tmp_path / "raw").iterdir()) == []
    report = toy(toys, tmp_path / "raw", skip_invalid=True)
    assert report.training == 2 and [problem.case for problem in report.problems] == ["c5", "c2", "c4"]
    assert toy(toys, tmp_path / "raw", skip_invalid=True).status == "unchanged"
    with pytest.raises(ConversionError, match="3 problems"):
        toy(toys, tmp_path / "raw")


def test_other_files_or_options_need_force(toys: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    first = snapshot(toy(toys, raw).folder)
    for options, change in (({"labels": "b"}, None), ({}, toys / "c1_0.nii.gz")):
        if change is not None:
            edit(change, lambda array: array + 1)
        with pytest.raises(ConversionError, match="Dataset007_Toy was made from other files or with other options"):
            toy(toys, raw, options)
        report = toy(toys, raw, options, force=True)
        assert report.status == "converted" and snapshot(report.folder) != first
        assert toy(toys, raw, options).status == "unchanged"
        assert [path.name for path in raw.iterdir()] == ["Dataset007_Toy"]
    assert report.folder is not None
    (report.folder / "labelsTr" / "c1.nii.gz").unlink()  # no longer what the record says
    with pytest.raises(ConversionError, match="--force"):
        toy(toys, raw)


def test_a_number_that_is_taken_or_none_is_refused(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset007_Mine").mkdir(parents=True)
    with pytest.raises(ConversionError, match="Dataset007_Mine"):
        toy(toys, tmp_path / "raw", force=True)
    with pytest.raises(ConversionError, match="1000 is not a dataset number"):
        convert(Toy(), toys, 1000, Toy().options(), tmp_path / "raw")


def test_a_second_run_at_the_same_time_is_refused(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with (
        FileLock(tmp_path / "raw" / ".Dataset007.lock"),
        pytest.raises(ConversionError, match="dataset 7 is being converted by another process"),
    ):
        toy(toys, tmp_path / "raw")


def test_what_an_interrupted_run_left_is_checked(toys: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    raw = tmp_path / "raw"
    whole = snapshot(toy(toys, tmp_path / "whole").folder)
    for damage, kept in ((None, 3), ("image", 2), ("source", 2), ("options", 0)):
        with pytest.raises(KeyboardInterrupt):
            toy(toys, raw, {"labels": "b"} if damage == "options" else None, progress=interrupt)
        (partial,) = raw.iterdir()
        if damage == "image":
            (partial / "imagesTr" / "c2_0000.nii.gz").write_bytes(b"half")
        if damage == "source":
            edit(toys / "c3_1.nii.gz", lambda array: array + 1)
            whole = snapshot(toy(toys, tmp_path / "changed").folder)
        (partial / "imagesTr" / "gone_0000.nii.gz").write_bytes(b"of a case that is no longer there")
        report = toy(toys, raw)
        assert report.kept == kept and snapshot(report.folder) == whole
        assert report.folder is not None
        os.rename(report.folder, tmp_path / f"done_{damage}")
        assert list(raw.iterdir()) == []


def test_names_that_clash_or_are_none_are_refused(tmp_path: Path) -> None:
    class Clashing(Toy):
        names: ClassVar[tuple[str, ...]] = ("a", "A")

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            return Listing("toy", [Case(name, (ImageSource("x"),), (ImageSource("y"),)) for name in self.names])

    fill(tmp_path / "source", "x", "y")
    with pytest.raises(ConversionError, match="another case is called"):
        convert(Clashing(), tmp_path / "source", 1, Toy().options(), tmp_path / "raw")
    Clashing.names = ("../a",)
    with pytest.raises(ConversionError, match="'../a' is no name for files"):
        convert(Clashing(), tmp_path / "source", 1, Toy().options(), tmp_path / "raw")


def test_masks_of_structures_are_merged_by_default(tmp_path: Path) -> None:
    class Organs(Toy):
        channels = ("CT",)

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            masks = (ImageSource("a.nii.gz", structure="a"), ImageSource("b.nii.gz", structure="b"))
            return Listing("toy", [Case("one", (ImageSource("image.nii.gz"),), masks)])

    a, b = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    a[1:3], b[2:4] = 1, 1
    for name, array in (("image", a * 100), ("a", a), ("b", b)):
        write_volume(tmp_path / "source" / f"{name}.nii.gz", array.astype(np.int16))

    def run(raw: str) -> Report:
        return convert(Organs(), tmp_path / "source", 1, Organs().options(), tmp_path / raw)

    report = run("raw")
    record = content(report, "conversion.json")["cases"]["one"]
    assert record["source_voxels"] == {"1": 60, "2": 60} and record["voxels"] == {"1": 30, "2": 60}
    assert record["notes"] == ["30 voxels of a are b as well, which wins"]
    write_volume(tmp_path / "source" / "a.nii.gz", (a + b).astype(np.int16))
    with pytest.raises(ConversionError, match=r"a\.nii\.gz: is no mask of one structure: it has the values \[1, 2\]"):
        run("raw2")
    write_volume(tmp_path / "source" / "a.nii.gz", 0 * a)
    with pytest.raises(ConversionError, match=r"a\.nii\.gz: the mask is empty"):
        run("raw3")


def test_files_of_several_cases_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(Toy):
        channels = ("T1",)

        def cases(self, tree: Tree, options: ConversionOptions) -> Listing:
            volumes = flat_volumes(tree, "data.zip/a.hdf5", 0.7)
            return Listing("toy", [Case(f"c{v.index}", (v.image,), (v.label,)) for v in volumes])

    array = np.arange(9 * 5 * 6, dtype=np.float32).reshape(9, 5, 6)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["images"], file["labels"], file["nz"], file["pz"] = array, array % 3, [2, 3, 4], [3.0, 3.0, 3.0]
    (tmp_path / "source").mkdir()
    with zipfile.ZipFile(tmp_path / "source" / "data.zip", "w") as archive:
        archive.write(tmp_path / "a.hdf5", "a.hdf5")
    unpacked = []
    local = Tree.local
    monkeypatch.setattr(Tree, "local", lambda *a: (unpacked.append(a[1]), local(*a))[1])
    report = convert(Flat(), tmp_path / "source", 1, Toy().options(), tmp_path / "raw")
    assert report.training == 3 and len(unpacked) == 2  # to list its volumes, and to read them
    assert report.folder is not None
    label = sitk.GetArrayFromImage(sitk.ReadImage(report.folder / "labelsTr" / "c1.nii.gz"))
    assert voxels(label) == voxels(array[2:5] % 3)


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Run `nnunet-fm convert` in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnunet-fm", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def aorta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small cases in the layout of AortaSeg24."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for number in range(1, 7):
        image, label = scene(number, tuple(range(1, 24)))
        write_volume(tmp_path / f"aorta/images/subject{number:03d}_CTA.mha", image)
        write_volume(tmp_path / f"aorta/masks/subject{number:03d}_label.mha", label.astype(np.uint8))
    return tmp_path / "aorta"


def test_worker_processes_write_the_same(aorta: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    code, out, _ = command("aortaseg24", aorta, "-d", "501", "-np", "2")
    assert code == 0 and "6 training cases, 0 test cases" in out
    code, out, _ = command("AortaSeg24", aorta, "-d", "502", "-np", "1", "--json")
    assert code == 0 and json.loads(out)["status"] == "converted"
    raw = tmp_path / "raw"
    assert snapshot(raw / "Dataset501_AortaSeg24") == snapshot(raw / "Dataset502_AortaSeg24")
    code, out, _ = command("aortaseg24", aorta, "-d", "501")
    assert code == 0 and "the same conversion of the same files, nothing to do" in out


def test_a_worker_that_dies_is_explained(aorta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_in_worker", _die)
    converter = get_converter("aortaseg24")
    with pytest.raises(ConversionError, match="lack of memory.*-np"):
        convert(converter, aorta, 1, converter.options(), tmp_path / "raw", processes=2)
    assert list((tmp_path / "raw").iterdir()) == [] and not multiprocessing.active_children()


def _die(case: Case, part: str, write: bool) -> None:
    os._exit(9)


def test_workers_end_with_an_interruption(aorta: Path, tmp_path: Path) -> None:
    converter = get_converter("aortaseg24")

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(converter, aorta, 1, converter.options(), tmp_path / "raw", processes=2, progress=interrupt)
    assert not multiprocessing.active_children()
    report = convert(converter, aorta, 1, converter.options(), tmp_path / "raw", processes=2)
    assert report.kept >= 2 and report.training == 6


def test_exit_codes_and_tables(aorta: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    edit(aorta / "masks/subject002_label.mha", lambda array: array * 0)
    edit(aorta / "masks/subject003_label.mha", lambda array: array + 24)
    for flags in (("--dry-run",), ()):
        code, out, err = command("aortaseg24", aorta, "-d", "501", "-np", "1", *flags)
        lines = out.splitlines()
        assert code == 1 and lines[0].split() == ["case", "file", "rule"]
        assert "subject002" in lines[2] and "empty" in lines[2] and "subject003" in lines[3]
        assert err.startswith("nnunet-fm: 2 problems") and err.count("\n") == 1
        assert not (tmp_path / "raw" / "Dataset501_AortaSeg24").exists()
    code, out, err = command("aortaseg24", aorta, "-d", "501", "-np", "1", "--json")
    assert code == 1 and [p["case"] for p in json.loads(out)["problems"]] == ["subject002", "subject003"]
    code, out, err = command("aortaseg24", aorta, "-d", "501", "-np", "1", "--skip-invalid")
    assert code == 0 and "4 training cases" in out and "subject002" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("aorta", "SOURCE", "-d", "1"), 2, "did you mean aortaseg24"),
        (("aortaseg24", "SOURCE"), 2, "-d"),
        (("aortaseg24", "SOURCE", "-d", "1000"), 2, "999"),
        (("aortaseg24", "SOURCE", "-d", "1", "--domain", "t1"), 2, "has no option --domain; it takes --split FILE"),
        (("aortaseg24", "SOURCE", "-d", "1", "--thesis"), 2, "has no option --thesis"),
        (("aortaseg24", "SOURCE", "-d", "1", "--no-n4"), 2, "has no option --n4"),
        (("aortaseg24", "nowhere", "-d", "1"), 1, "nowhere: there is no such file or folder"),
    ],
)
def test_bad_usage(
    arguments: tuple[str, ...], code: int, message: str, aorta: Path, command: Callable[..., Any]
) -> None:
    found, _, err = command(*(str(aorta) if word == "SOURCE" else word for word in arguments))
    words = " ".join(err.replace("│", " ").split())
    assert found == code and message in words


def test_nnunets_variable_is_needed_to_write_only(
    aorta: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert command("aortaseg24", aorta, "-d", "1", "--dry-run", "-np", "1")[0] == 0
    code, _, err = command("aortaseg24", aorta, "-d", "1")
    assert code == 1 and "nnUNet_raw is not set" in err


def test_legal_values_of_a_dataset_that_knows_everything(tmp_path: Path) -> None:
    toys = Toy()
    assert toys.options() == ConversionOptions(labels="all")
    assert toys.options(thesis=True) == ConversionOptions(labels="all", thesis=True, n4=True, skull_strip="labels")
    for options, message in (
        ({"domain": "z"}, "'z' is not a value of --domain: x, y"),
        ({"labels": "c"}, "'c' is not a value of --labels: all, b"),
        ({"split": "thesis"}, "'thesis' is not a value of --split: official, a file that exists"),
        ({"skull_strip": "maybe"}, "'maybe' is not a value of --skull-strip: labels, no"),
        ({"outside": "ignore"}, r"toy has no option --outside; it takes --split official\|FILE; --domain x\|y; .*--n4"),
    ):
        with pytest.raises(UsageError, match=message):
            toys.options(**options)  # type: ignore[arg-type]


def test_every_name_has_its_converter() -> None:
    for name in (*CONVERTERS, *dataset_conversion.ALIASES):
        converter = get_converter(name.upper())
        assert converter.name == dataset_conversion.ALIASES.get(name, name)
        assert set(converter.splits) <= {"official", "thesis"} and converter.default_split in (None, *converter.splits)
    with pytest.raises(LookupError, match="known are aortaseg24"):
        get_converter("nothing")


# Helpers


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def _rotation(angle: float) -> tuple[float, ...]:
    c, s = np.cos(angle), np.sin(angle)
    return tuple(float(v) for v in (c, -s, 0, s, c, 0, 0, 0, 1))


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
