"""``nnunet-fm doctor``: what it finds, and that each problem has a cure."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm.cli import doctor

VARIABLES = (*doctor.PATHS, doctor.EXTERNAL_TRAINERS, "NNUNET_FM_HOOK")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_version_out_of_limits_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.24" if name == "timm" else real(name))
    checks = {check.name: check for check in doctor._versions()}
    assert (checks["timm"].state, checks["torch"].state) == ("problem", "ok")
    assert "1.0.24 is installed" in checks["timm"].detail
    assert checks["timm"].cure == f'{sys.executable} -m pip install "timm<1.0.23"'


def test_a_missing_library_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "einops":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    (check,) = [check for check in doctor._versions() if check.name == "einops"]
    assert check.state == "problem" and "not installed" in check.detail and "einops" in check.cure


def test_without_the_hook_the_portable_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_HOOK", "0")
    check = doctor._hook()
    assert (check.state, check.detail) == ("problem", "off, NNUNET_FM_HOOK=0 is set")
    folder = check.cure.rpartition("nnUNet_extTrainer=")[2]
    assert "--portable" in check.cure and len(list(Path(folder).glob("*.py"))) == 1
    monkeypatch.setenv("nnUNet_extTrainer", folder)
    check = doctor._hook()
    assert check.state == "note" and "portable plans work" in check.detail


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    raw, preprocessed, results = doctor._folders()
    assert raw.state == "ok" and preprocessed.cure == "export nnUNet_preprocessed=FOLDER"
    assert results.state == "problem" and results.cure == f"mkdir -p {tmp_path / 'results'}"


def write_plans(path: Path, **configuration: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"configurations": {"3d_fullres": configuration, "2d": {}}}))


def test_plans_that_need_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    stock = {"preprocessor_name": "DefaultPreprocessor", "normalization_schemes": ["CTNormalization"]}
    plans, trained = tmp_path / "nnUNet_preprocessed/Dataset501_X", tmp_path / "nnUNet_results/Dataset501_X"
    write_plans(plans / "FMPlans_stunet_b.json", preprocessor_name="FMPreprocessor")
    write_plans(plans / "FMPlans_portable.json", **stock, resampling_fn_data="resample_data_or_seg_to_shape")
    (plans / "splits_final.json").write_text("[]")
    (plans / "broken.json").write_text("{")
    resampled = {"resampling_fn_data": "fm_resample_data_to_shape"}
    write_plans(trained / "fm_trainer__FMPlans_stunet_b__3d_fullres/plans.json", **stock, **resampled)
    write_plans(trained / "fm_trainer__FMPlans_stunet_b__2d/plans.json", **resampled)

    found = list(doctor._not_portable(hook_is_alive=False))
    assert [(check.name, check.state) for check in found] == [("plans", "problem"), ("trained", "problem")]
    assert "FMPlans_stunet_b.json needs the hook (FMPreprocessor)" in found[0].detail
    assert "--portable" in found[0].cure
    assert "FMPlans_stunet_b__3d_fullres needs the hook (fm_resample_data_to_shape)" in found[1].detail
    assert [(check.state, check.cure) for check in doctor._not_portable(hook_is_alive=True)] == [("note", "")] * 2


def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from nnunet_fm.cli.app import main

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nnunet-fm", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    monkeypatch.setattr(doctor, "_hook", lambda: doctor.Check("hook", doctor.OK, "alive"))
    code, out = run("--json")
    result = json.loads(out)
    assert code == 1 and result["usable"] is False
    problems = [check for check in result["checks"] if check["state"] == "problem"]
    assert {check["name"] for check in problems} == set(doctor.PATHS) and all(check["cure"] for check in problems)
    for name in doctor.PATHS:
        monkeypatch.setenv(name, str(tmp_path))
    code, out = run()
    assert code == 0 and out.endswith("Ready.\n") and "\x1b" not in out


@pytest.mark.slow
def test_doctor_finds_the_hook_alive_in_an_installation(fresh_venv: Any, tmp_path: Path) -> None:
    paths = dict.fromkeys(doctor.PATHS, str(tmp_path))
    done = fresh_venv.run("nnunet-fm", "doctor", "--json", env=paths)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["hook"]["state"] == "ok" and checks["commands"]["state"] == "ok"
    assert "nnunet-fm" not in checks, "an installation knows what it asks for"
    off = fresh_venv.run("nnunet-fm", "doctor", env=paths | {"NNUNET_FM_HOOK": "0"}, check=False)
    assert off.returncode == 1 and "unset NNUNET_FM_HOOK" in off.stdout
