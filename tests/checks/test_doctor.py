"""``nnunet-fm doctor``: exit code, JSON, forecast, cure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import nnunet_fm.checks.hook as hook_checks
from nnunet_fm.checks import folders
from nnunet_fm.checks.finding import OK, Check
from tests.helpers.checks import write_planned
from tests.helpers.commands import Command, make_command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys, "doctor")


def test_exit_code_and_json(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hook_checks, "hook", lambda: Check("hook", OK, "alive"))
    code, out, _ = command("--json")
    result = json.loads(out)
    assert code == 1 and result["usable"] is False
    problems = [check for check in result["checks"] if check["state"] == "problem"]
    assert {check["name"] for check in problems} == set(folders.VARIABLES) and all(check["cure"] for check in problems)
    for name in folders.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    code, out, _ = command()
    assert code == 0 and out.endswith("Ready.\n") and "\x1b" not in out


def test_forecast_and_fix_from_the_command_line(
    dataset: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_checks, "hook", lambda: Check("hook", OK, "alive"))
    write_planned(dataset)
    os.rmdir(os.environ["nnUNet_results"])
    code, out, _ = command("-d", "690", "-c", "3d_fullres", "--fix")
    assert code == 0 and out.startswith(f"fixed   made {os.environ['nnUNet_results']}\n")
    assert "besides the network, nnunet-fm predict needs" in out and "(nnUNetPlans, 3d_fullres)" in out
    code, out, _ = command("-d", "691x", "--json")
    result = json.loads(out)
    (check,) = [check for check in result["checks"] if check["state"] == "problem"]
    assert code == 1 and check["name"] == "dataset" and check["cure"] and result["fixed"] == []
    assert command("-c", "2d")[0] == 2


@pytest.mark.slow
def test_doctor_finds_the_hook_alive_in_an_installation(fresh_venv: Any, tmp_path: Path) -> None:
    paths = dict.fromkeys(folders.VARIABLES, str(tmp_path))
    done = fresh_venv.run("nnunet-fm", "doctor", "--json", env=paths)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["hook"]["state"] == "ok" and checks["commands"]["state"] == "ok"
    assert "nnunet-fm" not in checks, "an installation knows what it asks for"
    off = fresh_venv.run("nnunet-fm", "doctor", env=paths | {"NNUNET_FM_HOOK": "0"}, check=False)
    assert off.returncode == 1 and "unset NNUNET_FM_HOOK" in off.stdout
