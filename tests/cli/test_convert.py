"""``nnunet-fm convert``: exit codes, tables, worker processes, usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import Command, make_command
from tests.helpers.convert_tester import edit, snapshot
from tests.helpers.errors import assert_refused
from tests.helpers.toy_converter import write_aorta


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys, "convert")


@pytest.fixture
def aorta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return write_aorta(tmp_path / "aorta")


def test_worker_processes_write_the_same(aorta: Path, tmp_path: Path, command: Command) -> None:
    code, out, _ = command("aortaseg24", aorta, "-d", "501", "-np", "2")
    assert code == 0 and "6 training cases, 0 test cases" in out
    code, out, _ = command("AortaSeg24", aorta, "-d", "502", "-np", "1", "--json")
    assert code == 0 and json.loads(out)["status"] == "converted"
    raw = tmp_path / "raw"
    assert snapshot(raw / "Dataset501_AortaSeg24") == snapshot(raw / "Dataset502_AortaSeg24")
    code, out, _ = command("aortaseg24", aorta, "-d", "501")
    assert code == 0 and "the same conversion of the same files, nothing to do" in out


def test_exit_codes_and_tables(aorta: Path, tmp_path: Path, command: Command) -> None:
    edit(aorta / "masks/subject002_label.mha", lambda array: array * 0)
    edit(aorta / "masks/subject003_label.mha", lambda array: array + 24)
    for flags in (("--dry-run",), ()):
        code, out, err = command("aortaseg24", aorta, "-d", "501", "-np", "1", *flags)
        lines = out.splitlines()
        assert code == 1 and lines[0].split() == ["case", "file", "rule"]
        assert "subject002" in lines[2] and "empty" in lines[2] and "subject003" in lines[3]
        assert err.startswith("nnunet-fm: 2 problems") and err.count("\n") == 1
        assert not (tmp_path / "raw" / "Dataset501_AortaSeg24").exists()
    code, out, err = command("aortaseg24", aorta, "-d", "501", "-np", "1", "--json")
    assert code == 1 and [p["case"] for p in json.loads(out)["problems"]] == ["subject002", "subject003"]
    code, out, err = command("aortaseg24", aorta, "-d", "501", "-np", "1", "--skip-invalid")
    assert code == 0 and "4 training cases" in out and "subject002" in out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("aorta", "SOURCE", "-d", "1"), 2, ("converter-unknown", "aortaseg24")),
        (("aortaseg24", "SOURCE", "-d", "1", "--domain", "t1"), 2, ("option-unknown", "--domain", "--split FILE")),
        (("aortaseg24", "SOURCE", "-d", "1", "--thesis"), 2, ("option-unknown", "--thesis")),
        (("aortaseg24", "SOURCE", "-d", "1", "--no-n4"), 2, ("option-unknown", "--n4")),
        (("aortaseg24", "nowhere", "-d", "1"), 1, ("source-missing", "nowhere")),
    ],
)
def test_bad_usage(
    arguments: tuple[str, ...], code: int, expected: tuple[str, ...], aorta: Path, command: Command
) -> None:
    found, _, err = command(*(str(aorta) if word == "SOURCE" else word for word in arguments))
    assert found == code
    assert_refused(err, *expected)


def test_a_number_is_needed_and_has_three_digits(aorta: Path, command: Command) -> None:
    for words, fact in (((), "-d"), (("-d", "1000"), "999")):
        code, _, err = command("aortaseg24", aorta, *words)
        assert code == 2 and fact in err


def test_nnunets_variable_is_needed_to_write_only(
    aorta: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert command("aortaseg24", aorta, "-d", "1", "--dry-run", "-np", "1")[0] == 0
    code, _, err = command("aortaseg24", aorta, "-d", "1")
    assert code == 1
    assert_refused(err, "variable-unset", "nnUNet_raw")
