"""``nnunet-fm predict`` in scripts: JSON, exit codes, a log, and an interruption."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from nnunet_fm.inference import predict as inference
from nnunet_fm.records.prediction import CaseTimes
from tests.helpers.commands import Command, make_command
from tests.helpers.datasets import write_image
from tests.helpers.tiny_models import write_model


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command with a model of one channel and a folder of two images."""
    write_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for number in range(2):
        voxels = np.random.default_rng(number).normal(100, 20, (9, 10, 11))
        write_image(tmp_path / "in" / f"case_{number}_0000.nii.gz", voxels, (1.0, 1.0, 2.0))
    monkeypatch.chdir(tmp_path)
    run = make_command(monkeypatch, capsys, "predict")
    return lambda *more: run(
        *["-m", "model", "-i", "in", "-o", "out", "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0"], *more
    )


def test_all_is_well(command: Command, tmp_path: Path) -> None:
    code, out, err = command("--json", "--log", "logs/predict.txt")
    assert code == 0, err
    content = json.loads(out)
    assert (list(content["cases"]), content["failed"], content["skipped"]) == (["case_0", "case_1"], {}, {})
    assert content["error"] is None and content["threads"] >= 1
    lines = (tmp_path / "logs" / "predict.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d case_0 done, \d+\.\d s", lines[0]) and len(lines) == 3


def test_some_cases_fail(command: Command, tmp_path: Path) -> None:
    (tmp_path / "in" / "case_0_0000.nii.gz").write_bytes(b"nothing")
    (tmp_path / "in" / "case_9.nii").write_bytes(b"")
    code, out, err = command("--json", "--log", "log.txt")
    content = json.loads(out)
    assert code == 3 and list(content["cases"]) == ["case_1"]
    assert list(content["failed"]) == ["case_0"] and list(content["skipped"]) == ["case_9.nii"]
    assert content["error"]["code"] == "cases-failed" and "[cases-failed]" in err
    assert "case_0 failed" in (tmp_path / "log.txt").read_text()


def test_nothing_is_predicted(command: Command, tmp_path: Path) -> None:
    (tmp_path / "model" / "plans.json").unlink()
    code, out, err = command("--json")
    content = json.loads(out)
    assert code == 1 and content["cases"] == {} and "plans.json" in content["error"]["message"]
    assert f"[{content['error']['code']}]" in err


def test_an_interruption_says_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(request: object, *, on_case: inference.OnCase, **_: object) -> None:
        on_case("case_0", CaseTimes(reading=1, preprocessing=1, inference=1, export=0.5))
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "predict_request", interrupted)
    code, out, err = command()
    assert code == 130 and out == "case_0 done, 3.5 s\n"
    assert "1 case is done" in err and "--continue_prediction" in err
