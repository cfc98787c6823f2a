"""Splits of users and datasets, folds by subject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_fm.dataset_conversion.splits import Split, make_folds, read_split
from tests.helpers.errors import fails

CASES = {f"case_{i:02d}": f"subject_{i // 2}" for i in range(20)}


def test_folds_are_nnunets_own_where_every_case_is_a_subject() -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    own = {case: case for case in CASES}
    assert make_folds(Split(tuple(CASES)), own) == generate_crossval_split(list(CASES))


def test_a_subject_is_in_one_fold_and_fold_0_is_the_published_one() -> None:
    cases = list(CASES)
    split = Split(tuple(cases[:12]), tuple(cases[12:16]), tuple(cases[16:]))
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
    ("name", "content", "expected"),
    [
        ("s.json", '{"train": ["case_0"]}', ("split-cases", "case_0")),
        ("s.json", '{"train": ["case_00", "subject_0"]}', ("split-double", "case_00")),
        ("s.json", '{"train": ["case_00"], "test": ["case_00"]}', ("split-double", "case_00")),
        ("s.json", '{"training": []}', ("split-form",)),
        ("s.json", '{"train": [', ("split-unreadable",)),
        ("s.csv", "case,part\ncase_00,training", ("split-unreadable", "2")),
        ("s.json", '{"test": ["case_00"]}', ("split-empty",)),
    ],
)
def test_splits_that_say_nothing_are_refused(
    name: str, content: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with fails(*expected, name):
        read_split(tmp_path / name, CASES)
