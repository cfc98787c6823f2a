"""Brain masks of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_fm.dataset_conversion import skull
from nnunet_fm.io.volume import Grid
from tests.helpers.errors import fails
from tests.helpers.images import write_volume


def test_brain_masks_of_users(tmp_path: Path) -> None:
    inside = np.zeros((4, 5, 6), np.uint8)
    inside[1:3] = 1
    grid = Grid((6, 5, 4), (1.0, 1.0, 1.0))
    write_volume(tmp_path / "case_a.nii.gz", inside)
    (tmp_path / "table.csv").write_text("case_a,case_a.nii.gz\n")
    (tmp_path / "table.json").write_text('{"case_a": "case_a.nii.gz", "case_c": "no.nii.gz"}')
    for where, code in (
        (tmp_path, "mask-several"),
        (tmp_path / "table.csv", "mask-missing"),
        (tmp_path / "table.json", "mask-missing"),
    ):
        assert np.array_equal(skull.read_mask(skull.mask_file(where, "case_a"), grid), inside != 0)
        with fails(code, "case_b"):
            skull.mask_file(where, "case_b")
    with fails("mask-missing", "no.nii.gz"):
        skull.read_mask(skull.mask_file(tmp_path / "table.json", "case_c"), grid)
    with fails("mask-empty"):
        skull.read_mask(tmp_path / "case_a.nii.gz", Grid((6, 5, 4), (1.0, 1.0, 1.0), (500.0, 0.0, 0.0)))
