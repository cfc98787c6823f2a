"""Groups of structures by size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_fm.metrics.folder import evaluate_folder
from nnunet_fm.metrics.size_groups import size_group, size_shares
from nnunet_fm.metrics.summary import (
    class_groups,
)
from tests.helpers.errors import fails
from tests.helpers.images import write_volume


@pytest.mark.parametrize(
    ("share", "group"),
    [
        (0, "<1 %"),
        (0.0099, "<1 %"),
        (0.01, "1–5 %"),
        (0.05, "5–15 %"),
        (0.1499, "5–15 %"),
        (0.15, "≥15 %"),
        (1, "≥15 %"),
    ],
)
def test_size_groups_begin_at_their_edge(share: float, group: str) -> None:
    assert size_group(share) == group


def test_sizes_come_from_the_training_cases_or_the_case(tmp_path: Path) -> None:
    """Shares of 3000 labelled voxels; the second case has one class alone, the third nothing."""
    arrays = [np.zeros(4000, np.uint8) for _ in range(3)]
    arrays[0][:3000] = np.repeat([1, 2, 3, 4], [2700, 250, 40, 10])
    arrays[0][-7:] = 9
    arrays[1][:100] = 1
    for name, array in zip("abc", arrays, strict=True):
        write_volume(tmp_path / "labels" / f"{name}.nii.gz", array.reshape(10, 20, 20))
    labels = {"background": 0, "organ": 1, "vessels": [2, 3], "tumour": 3, "cyst": 4, "ignore": 9}
    shares = size_shares(tmp_path / "labels", labels)
    assert shares == pytest.approx(
        {"organ": (0.9 + 1) / 2, "vessels": 0.29 / 6, "tumour": 0.04 / 6, "cyst": 0.01 / 6}, abs=1e-12
    )
    folder = tmp_path / "labels"
    by_training = evaluate_folder(folder, folder, labels, metrics=["Dice"])
    expected = {"organ": "≥15 %", "vessels": "1–5 %", "tumour": "<1 %", "cyst": "<1 %"}
    assert class_groups(by_training) == expected
    given = evaluate_folder(folder, folder, labels, metrics=["Dice"], shares={"organ": 0.02, "vessels": 0.5})
    assert class_groups(given) == {"organ": "1–5 %", "vessels": "≥15 %", "tumour": "<1 %", "cyst": "<1 %"}
    by_case = evaluate_folder(folder, folder, labels, metrics=["Dice"], group_by="case", cases=["a"])
    assert class_groups(by_case) == {"organ": "≥15 %", "vessels": "5–15 %", "tumour": "1–5 %", "cyst": "<1 %"}
    with fails("label-maps-missing"):
        size_shares(tmp_path, labels)
