"""Files are replaced in one step and are on the disk then, whoever else writes; all of the package's writers do so."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from nnunet_fm.io.atomic_write import partial_folder, replacing, write_text
from nnunet_fm.metrics.scores_table import write_scores
from nnunet_fm.reporting.sections.elements import Column, Table
from nnunet_fm.weights.report import LoadReport
from tests.helpers.errors import fails

SOURCE = Path(__file__).parents[2] / "nnunet_fm"
WRITES = re.compile(
    r"\.write_(text|bytes)\(|\.to_csv\((?!index)|\.savefig\(|imsave\(|\bopen\([^)]*[\"'][wxa]b?[\"']|json\.dump\("
)
NOT_REPLACED = {
    "cli/console.py": "what is printed into nothing",
    "cli/predict.py": "a log to which lines are added",
    "studies/demo.py": "the log of a command",
    "dataset_conversion/tree.py": "what is unpacked into a folder for temporary files",
    "dataset_conversion/writer.py": "images in a folder that is renamed when it is complete",
    "studies/run.py": "the log of a command",
    "trainers/callbacks/fold_lock.py": "the file of a lock",
    "weights/add.py": "what is unpacked under a temporary name",
    "weights/download.py": "a download that is continued, and its tag",
    "weights/files.py": "a checkpoint, which has a writer of its own",
}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old\n")
    with pytest.raises(ValueError, match="broken"), replacing(path) as partial:
        partial.write_text("half")
        raise ValueError("broken")
    with fails("file-not-written", "a.json"), replacing(path):
        raise OSError(errno.ENOSPC, "no room")
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]

    steps: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (steps.append("sync"), sync(handle)))
    monkeypatch.setattr("os.replace", lambda old, new: (steps.append("replace"), replace(old, new)))
    with replacing(path) as first, replacing(path) as second:  # as two processes of one number in two containers do
        assert first != second
        first.write_text("first"), second.write_text("second")
    assert steps[:3] == ["sync", "replace", "sync"], "content, name, folder"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_two_processes_have_a_folder_each_and_take_over_what_a_third_left(tmp_path: Path) -> None:
    path = tmp_path / "case"
    code = (
        "import os, signal, sys; from pathlib import Path; from nnunet_fm.io.atomic_write import partial_folder as p\n"
        "with p(Path(sys.argv[1])) as folder:\n    (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.rglob("half")] == ["half"]
    with partial_folder(path) as first, partial_folder(path) as second:
        assert first != second and not list(first.iterdir()) and not list(second.iterdir())
        (first / "a").touch()
        with partial_folder(path) as third:
            assert third not in (first, second)
        assert (first / "a").is_file()
    assert not list(tmp_path.iterdir())


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with partial_folder(tmp_path / "case") as first, partial_folder(tmp_path / "case") as second:
        assert first != second and first.is_dir() and second.is_dir()
    assert not list(tmp_path.iterdir())


def test_tables_and_reports_are_kept_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"a": [1.0]})

    def write() -> None:
        for one in (
            lambda: write_scores(frame, tmp_path / "scores.csv"),
            lambda: Table("table", "a table", frame, [Column("a", "a", ".1f")]).write(tmp_path),
            lambda: LoadReport().write(tmp_path),
        ):
            with suppress(OSError):
                one()

    write()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before) == 6 and all(before.values())
    frame.loc[0, "a"] = 2.0

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    write()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_no_file_is_written_in_place() -> None:
    found: dict[str, list[str]] = {}
    for file in SOURCE.rglob("*.py"):
        name = file.relative_to(SOURCE).as_posix()
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if WRITES.search(line)]
        if lines := [line for line in lines if "partial" not in line and "buffer" not in line]:
            found[name] = lines
    assert set(found) <= set(NOT_REPLACED), found
