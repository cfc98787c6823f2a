"""Faults of downloads that are converted: those that every converter is tested for, on AortaSeg24."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from nnunet_fm.dataset_conversion.problems import ConversionError
from tests.dataset_conversion.test_aortaseg24 import TestAortaSeg24 as Converted
from tests.faults.registry import Bench, Outcome, fault
from tests.helpers.convert_tester import NUMBER, Fault, snapshot

STAGE = "Converting"
TESTER = Converted()

BROKEN = {
    "missing_label": "An image has no label map.",
    "second_file": "A label map is there twice.",
    "empty_mask": "A label map has no class.",
    "other_geometry": "Image and label map lie in different places.",
    "flipped_direction": "The label map's axes point the other way than the image's.",
    "foreign_label": "A label map has a number that the dataset's table does not have.",
    "nan_in_the_image": "An image has a voxel that is NaN.",
    "fractions_in_the_labels": "A label map has fractions.",
    "truncated_image": "An image is cut off.",
    "truncated_archive": "The downloaded archive is cut off.",
    "member_that_leaves_the_archive": "The archive has a member that would be written outside of its folder.",
    "wrong_folder": "The folder given is another one.",
}
"""Methods of `ConverterTester` that do the damage, and what it is."""


def damaged(at: Bench, damage: Callable[[Path], Fault]) -> Outcome:
    TESTER.make_tree(at.root / "source", TESTER.variants[0])
    source, file, _ = damage(at.root / "source")
    with at.unchanged():
        message = at.raises(ConversionError, lambda: TESTER.convert(source, at.raw))
    _ = file
    return Outcome("refused, all problems are listed", "the source; nothing is written", message)


def _add(method: str, broken: str) -> None:
    def run(at: Bench) -> Outcome:
        return damaged(at, getattr(TESTER, method))

    run.__name__ = f"a_source_with_{method}" if method != "wrong_folder" else "a_source_that_is_another"
    fault(STAGE, broken)(run)


for _method, _broken in BROKEN.items():
    _add(_method, _broken)


@fault(STAGE, "The disk is full in the middle of a conversion.")
def a_full_disk_in_a_conversion(at: Bench) -> Outcome:
    TESTER.make_tree(at.root / "source", TESTER.variants[0])
    with at.full_disk(1000):
        message = at.raises((OSError, ConversionError), lambda: TESTER.convert(at.root / "source", at.raw))
    assert [path.name for path in at.raw.iterdir() if not path.name.startswith(".")] == []
    TESTER.convert(at.root / "source", at.raw)
    return Outcome("stopped", "the source; the same command works when there is room", message)


def convert_and_die(source: Path, raw: Path) -> None:
    """Convert, and be killed when two cases are done."""

    def progress(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    TESTER.convert(source, raw, progress=progress)


@fault(STAGE, "A conversion is killed (SIGKILL) after two cases.")
def killed_in_a_conversion(at: Bench) -> Outcome:
    TESTER.make_tree(at.root / "source", TESTER.variants[0])
    whole = TESTER.convert(at.root / "source", at.root / "whole").folder
    code, printed = at.process(convert_and_die, at.root / "source", at.raw)
    assert code == -signal.SIGKILL, printed
    assert not list(at.raw.glob("Dataset*"))
    report = TESTER.convert(at.root / "source", at.raw)
    assert report.kept == 2 and snapshot(report.folder) == snapshot(whole) and report.folder is not None
    assert report.folder.name.startswith(f"Dataset{NUMBER}")
    return Outcome("the same command goes on, with the same result", "the two finished cases")
