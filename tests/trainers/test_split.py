"""Folds that cannot be trained are refused in a sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm.trainers.split import check_split
from tests.helpers.errors import fails


def check(tmp_path: Path, cases: int, split: Any = None, fold: int | str = 0) -> None:
    file = tmp_path / "splits_final.json"
    if split is not None:
        file.write_text(json.dumps(split))
    check_split(file, list("abcdefgh"[:cases]), tmp_path / "fm", "nnUNetv2_preprocess", fold)


@pytest.mark.parametrize(
    ("cases", "split", "fold", "expected"),
    [
        (3, None, 0, ("cases-few", "3", "5")),
        (3, [{"train": ["a", "b", "c"], "val": []}], 0, ("fold-empty", "0", "splits_final.json")),
        (3, [{"train": [], "val": ["a"]}], 0, ("fold-empty", "0", "splits_final.json")),
        (3, [{"train": ["a"], "val": ["b"]}, {"train": [], "val": []}], 1, ("fold-empty", "1")),
        (1, [], 0, ("cases-few",)),
    ],
)
def test_a_fold_without_cases_is_refused(
    tmp_path: Path, cases: int, split: Any, fold: int, expected: tuple[str, ...]
) -> None:
    with fails(*expected) as caught:
        check(tmp_path, cases, split, fold)
    assert "train fold all" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cases", "split", "fold"),
    [
        (1, None, "all"),
        (3, [{"train": [], "val": []}], "all"),
        (5, None, 4),
        (3, [{"train": ["a"], "val": ["b"]}, {"train": [], "val": []}], 0),
        (3, [{"train": ["a"], "val": ["b"]}], 7),  # nnU-Net draws four fifths at random
    ],
)
def test_other_folds_are_trained(tmp_path: Path, cases: int, split: Any, fold: int | str) -> None:
    check(tmp_path, cases, split, fold)
