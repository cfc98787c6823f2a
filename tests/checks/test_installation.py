"""Findings on versions, hook, folders and weights, each problem with a cure."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import nnunet_fm.checks.hook as hook_checks
from nnunet_fm.checks import folders, versions, weights
from tests.helpers.checks import GB, Usage, by_name


def test_a_version_out_of_limits_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.24" if name == "timm" else real(name))
    checks = by_name(versions.versions())
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
    (check,) = [check for check in versions.versions() if check.name == "einops"]
    assert check.state == "problem" and "not installed" in check.detail and "einops" in check.cure


def test_without_the_hook_the_portable_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_HOOK", "0")
    check = hook_checks.hook()
    assert (check.state, check.detail) == ("problem", "off, NNUNET_FM_HOOK=0 is set")
    folder = check.cure.rpartition("nnUNet_extTrainer=")[2]
    assert "--portable" in check.cure and len(list(Path(folder).glob("*.py"))) == 1
    monkeypatch.setenv("nnUNet_extTrainer", folder)
    check = hook_checks.hook()
    assert check.state == "note" and "portable plans work" in check.detail


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    found = by_name(folders.folders())
    assert found["nnUNet_raw"].state == "ok" and " free)" in found["nnUNet_raw"].detail
    assert found["nnUNet_preprocessed"].cure == "export nnUNet_preprocessed=FOLDER"
    assert found["nnUNet_results"].cure == f"mkdir -p {tmp_path / 'results'}, or nnunet-fm doctor --fix"
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file"))
    assert "is not a folder" in by_name(folders.folders())["nnUNet_results"].detail


@pytest.mark.parametrize(("free", "state"), [(30 * GB, "ok"), (5 * GB, "note"), (GB // 2, "problem")])
def test_a_disk_with_little_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    for name in folders.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100 * GB, 0, free))
    found = by_name(folders.folders())
    assert (found["nnUNet_raw"].state, found["nnUNet_results"].state) == ("ok", state)


def test_results_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in folders.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)  # for root nothing is read-only
    found = by_name(folders.folders())
    assert (found["nnUNet_raw"].state, found["nnUNet_results"].state) == ("note", "problem")
    assert found["nnUNet_results"].cure.startswith(f"chmod u+w {tmp_path}")


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

    found = list(hook_checks.not_portable(hook_is_alive=False))
    assert [(check.name, check.state) for check in found] == [("plans", "problem"), ("trained", "problem")]
    assert "FMPlans_stunet_b.json needs the hook (FMPreprocessor)" in found[0].detail
    assert "--portable" in found[0].cure
    assert "FMPlans_stunet_b__3d_fullres needs the hook (fm_resample_data_to_shape)" in found[1].detail
    assert [(check.state, check.cure) for check in hook_checks.not_portable(hook_is_alive=True)] == [("note", "")] * 2


def test_weights_with_hash_and_licences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_fm.weights.cache import pin

    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path))
    (check,) = weights.weights()
    assert check.state == "note" and "has none" in check.detail and "fm_trainer_scratch" in check.cure
    file = tmp_path / "small_ep4k.model"
    file.write_bytes(b"weights")
    name = "stunet_small_totalsegmentator"
    first, check = weights.weights()
    assert first.detail == f"{tmp_path} has 1 official files"
    assert check.state == "note" and check.cure == f"nnunet-fm weights verify {name}"
    assert "(weights: not stated apart from the repository's Apache-2.0; code: Apache-2.0)" in check.detail
    pin(file)
    assert list(weights.weights())[1].state == "ok"
    record = tmp_path / ".pinned.json"
    record.write_text(json.dumps({file.name: "0" * 64}))
    check = by_name(weights.weights())["weights"]
    assert check.state == "problem" and check.cure == f"remove {file} and fetch it again: nnunet-fm weights pull {name}"
