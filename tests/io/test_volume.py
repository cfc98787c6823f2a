"""Volumes and their grids: axes, comparison, resampling."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from nnunet_fm.io.volume import Grid, Volume, outside_fraction, resample
from nnunet_fm.preprocessing.orientation import axis_codes
from tests.helpers.convert_tester import rotation_z, scene


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
    assert "direction" in str(grid.difference(Grid(grid.size, grid.spacing, grid.origin, rotation_z(0.02))))
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
