"""Faults of downloads that are converted: those that every converter is tested for, on AortaSeg24."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from nnunet_fm.dataset_conversion.problems import ConversionError
from tests.dataset_conversion.test_aortaseg24 import TestAortaSeg24 as Converted
from tests.faults.registry import Bench, Seen, fault
from tests.helpers.convert_tester import NUMBER, Fault, snapshot

STAGE = "Converting"
TESTER = Converted()


def damaged(at: Bench, damage: Callable[[Path], Fault]) -> Seen:
    TESTER.make_tree(at.root / "source", TESTER.variants[0])
    source, file, *_ = damage(at.root / "source")
    with at.unchanged():
        seen = at.raises(ConversionError, lambda: TESTER.convert(source, at.raw))
    assert Path(file).name in seen.text
    return seen


@fault(
    STAGE,
    "An image has no label map.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="file-missing",
)
def a_source_with_missing_label(at: Bench) -> Seen:
    return damaged(at, TESTER.missing_label)


@fault(
    STAGE,
    "A label map is there twice.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="file-twice",
)
def a_source_with_second_file(at: Bench) -> Seen:
    return damaged(at, TESTER.second_file)


@fault(
    STAGE,
    "A label map has no class.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="mask-empty",
)
def a_source_with_empty_mask(at: Bench) -> Seen:
    return damaged(at, TESTER.empty_mask)


@fault(
    STAGE,
    "Image and label map lie in different places.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="labels-outside",
)
def a_source_with_other_geometry(at: Bench) -> Seen:
    return damaged(at, TESTER.other_geometry)


@fault(
    STAGE,
    "The label map's axes point the other way than the image's.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="labels-outside",
)
def a_source_with_flipped_direction(at: Bench) -> Seen:
    return damaged(at, TESTER.flipped_direction)


@fault(
    STAGE,
    "A label map has a number that the dataset's table does not have.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="labels-unknown",
)
def a_source_with_foreign_label(at: Bench) -> Seen:
    return damaged(at, TESTER.foreign_label)


@fault(
    STAGE,
    "An image has a voxel that is NaN.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="image-not-finite",
)
def a_source_with_nan_in_the_image(at: Bench) -> Seen:
    return damaged(at, TESTER.nan_in_the_image)


@fault(
    STAGE,
    "A label map has fractions.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="labels-fraction",
)
def a_source_with_fractions_in_the_labels(at: Bench) -> Seen:
    return damaged(at, TESTER.fractions_in_the_labels)


@fault(
    STAGE,
    "An image is cut off.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="image-cut-off",
)
def a_source_with_truncated_image(at: Bench) -> Seen:
    return damaged(at, TESTER.truncated_image)


@fault(
    STAGE,
    "The downloaded archive is cut off.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="archive-damaged",
)
def a_source_with_truncated_archive(at: Bench) -> Seen:
    return damaged(at, TESTER.truncated_archive)


@fault(
    STAGE,
    "The archive has a member that would be written outside of its folder.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="archive-escape",
)
def a_source_with_member_that_leaves_the_archive(at: Bench) -> Seen:
    return damaged(at, TESTER.member_that_leaves_the_archive)


@fault(
    STAGE,
    "The folder given is another one.",
    happens="refused, all problems are listed",
    keeps="the source; nothing is written",
    code="source-unknown",
)
def a_source_that_is_another(at: Bench) -> Seen:
    return damaged(at, TESTER.wrong_folder)


@fault(
    STAGE,
    "The disk is full in the middle of a conversion.",
    happens="stopped",
    keeps="the source; the same command works when there is room",
    code="disk-full",
)
def a_full_disk_in_a_conversion(at: Bench) -> Seen:
    TESTER.make_tree(at.root / "source", TESTER.variants[0])
    with at.full_disk(1000):
        seen = at.raises((OSError, ConversionError), lambda: TESTER.convert(at.root / "source", at.raw))
    assert [path.name for path in at.raw.iterdir() if not path.name.startswith(".")] == []
    TESTER.convert(at.root / "source", at.raw)
    return seen


def convert_and_die(source: Path, raw: Path) -> None:
    """Convert, and be killed when two cases are done."""

    def progress(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    TESTER.convert(source, raw, progress=progress)


@fault(
    STAGE,
    "A conversion is killed (SIGKILL) after two cases.",
    happens="the same command goes on, with the same result",
    keeps="the two finished cases",
)
def killed_in_a_conversion(at: Bench) -> None:
    TESTER.make_tree(at.root / "source", TESTER.variants[0])
    whole = TESTER.convert(at.root / "source", at.root / "whole").folder
    code, printed = at.process(convert_and_die, at.root / "source", at.raw)
    assert code == -signal.SIGKILL, printed
    assert not list(at.raw.glob("Dataset*"))
    report = TESTER.convert(at.root / "source", at.raw)
    assert report.kept == 2 and snapshot(report.folder) == snapshot(whole) and report.folder is not None
    assert report.folder.name.startswith(f"Dataset{NUMBER}")
