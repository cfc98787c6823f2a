"""The golden record: what it finds, and that the present code still gives what the repository's record holds."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.golden import __main__ as golden
from tests.golden import record

RECORD = Path(record.__file__).with_name("record")
ELSEWHERE = ("*SHA-256*", "*dice*", "*Dice*", "*miou*")
"""Entries that may differ on another processor: hashes of computed numbers, and scores that single voxels change."""
TRAINED = ("stunet_s", "dinov2_s_linear_freeze_slim")

CONTENT: dict[str, Any] = {"plans": {"spacing": [1.0, 2.0], "names": ["nnunet_fm.a.X", "b"], "none": {}}, "loss": 0.5}


def changed(**values: Any) -> list[str]:
    found = record.differences({"a/b": CONTENT}, {"a/b": {**CONTENT, **values}})
    return [str(difference) for difference in found]


def test_every_change_is_named_with_both_values() -> None:
    assert changed() == []
    assert changed(loss=0.5000000000000001) == ["a/b: loss\n  before  0.5\n  after   0.5000000000000001"]
    plans = {"spacing": [1.0, 2.5], "names": ["nnunet_fm.a.X"], "none": {}, "more": True}
    assert changed(plans=plans) == [
        "a/b: plans > spacing\n  before  [1.0, 2.0]\n  after   [1.0, 2.5]",
        'a/b: plans > names > 1\n  before  "b"\n  after   (absent)',
        "a/b: plans > more\n  before  (absent)\n  after   true",
    ]
    assert changed(loss=1) and changed(loss="0.5") and changed(plans={**CONTENT["plans"], "none": None})
    assert [d.key for d in record.differences({}, {"a/b": CONTENT})] == [""]


def test_what_is_expected_to_change_is_no_difference() -> None:
    new = record.plain({"a/b": {**CONTENT, "loss": 0.5001}})
    new["a/b"]["plans"] = {**CONTENT["plans"], "names": ["nnunet_fm.c.Y", "b"]}
    old = record.renamed({"a/b": CONTENT}, {"nnunet_fm.a": "nnunet_fm.wrong", "nnunet_fm.a.X": "nnunet_fm.c.Y"})
    assert [d.key for d in record.differences(old, new)] == ["loss"]
    assert record.differences(old, new, tolerance=1e-3) == [] == record.differences(old, new, ignore=["a/*: loss"])
    assert len(record.differences(old, new, tolerance=1e-5)) == 1
    nan = float("nan")
    assert record.differences({"a/b": {"x": [nan, 1.0]}}, {"a/b": {"x": [nan, 1.0]}}) == []


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    content = {"b": [1, -2.5, None], "a": {"empty": [], "words": ["x [", "1"], "nested": [[1], [], [2.0]]}, "ü": {}}
    record.write(tmp_path, "part/name", content)
    assert record.read(tmp_path) == {"part/name": content}
    assert '"b": [1, -2.5, null]' in (tmp_path / "part" / "name.json").read_text("utf-8")
    with pytest.raises(FileNotFoundError, match=r"tests\.golden write"):
        record.read(tmp_path / "none")


def test_further_cases_hold_what_differs_from_the_first() -> None:
    long = {"x": {"y": 1, "z": "a long text, which is in all of them"}, "w": [2]}
    short = record.against_first({"a": long, "b": {**long, "w": [3]}, "c": {"x": 5}})
    assert short == {"a": long, "b": {"w": [3]}, "c": {"x": 5}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "names"),
    [pytest.param("plans", (), marks=pytest.mark.long), ("study", ()), ("tables", ()), ("training", TRAINED)],
)
def test_the_code_gives_what_the_record_holds(
    part: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit but for numbers that a processor computes, which may be off by a thousandth on another one."""
    for variable, value in golden.SETTINGS.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", os.environ.get("NNUNET_FM_WEIGHTS", ""))  # `make` sets it
    with redirect_stdout(StringIO()):
        made = record.plain(dict(golden.make([part], names)))
    held = record.read(RECORD)
    folders = golden.PARTS[part]
    assert {s for s in held if s.split("/")[0] in folders} == set(made)
    found = record.differences(held, made, tolerance=1e-3 if part == "training" else 1e-9, ignore=ELSEWHERE)
    assert not found, "\n".join(map(str, found[:20]))
