"""Volumes stored one after another in an HDF5 file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from nnunet_fm.dataset_conversion.base import (
    ConversionOptions,
    Work,
    read_source,
)
from nnunet_fm.dataset_conversion.flat_hdf5 import FlatVolume, flat_volumes
from nnunet_fm.dataset_conversion.tree import open_tree
from nnunet_fm.io.volume import Volume
from tests.helpers.convert_tester import new_folder
from tests.helpers.errors import fails


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
        tree = open_tree(tmp_path / "source", new_folder(tmp_path, f"scratch_{len(list(tmp_path.iterdir()))}"))
        return flat_volumes(tree, "a.hdf5", 0.7, suffix)

    return write


def read_flat(volume: FlatVolume, tmp_path: Path) -> Volume:
    tree = open_tree(tmp_path / "source", new_folder(tmp_path, f"s_{len(list(tmp_path.iterdir()))}"))
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
    ("changes", "expected"),
    [
        ({"nz": [2, 3, 3]}, ("hdf5-counts", "8")),
        ({"nz": [5, 0, 4]}, ("hdf5-counts", "9")),
        ({"nz": None}, ("hdf5-entry", "nz")),
        ({"images": None}, ("hdf5-entry", "images")),
        ({"labels": np.zeros((9, 5, 5), np.uint8)}, ("hdf5-shape",)),
        ({"pz": [3.0, 3.0]}, ("hdf5-counts", "2", "3")),
        ({"pz": [3.0, 0.0, 3.0]}, ("hdf5-spacing", "0.0", "1")),
        ({"images": h5py.ExternalLink("/etc/other.hdf5", "x")}, ("hdf5-array", "images")),
        ({"images": h5py.SoftLink("/labels")}, ("hdf5-array", "images")),
    ],
)
def test_hdf5_files_that_do_not_add_up_are_refused(
    flat: Callable[..., list[FlatVolume]], changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    with fails(*expected, "a.hdf5"):
        flat(**changes)


def test_hdf5_files_that_are_cut_off_are_refused(flat: Callable[..., list[FlatVolume]], tmp_path: Path) -> None:
    volumes = flat()
    path = tmp_path / "source" / "a.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    with fails("hdf5-damaged"):
        read_flat(volumes[0], tmp_path)
