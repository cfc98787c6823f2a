"""A study of real images through Snakemake and the stock commands: killed, resumed, its report checked."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from nnunet_fm.dataset_conversion.demo import unpack
from tests.helpers.datasets import nnunet_folders
from tests.helpers.study_check import check

pytestmark = pytest.mark.slow
TRAINING, TEST = 8, 3


def few_cases(raw: Path) -> None:
    """The bundled hippocampus MRI with less cases: the time of a study is that of its commands here."""
    folder = unpack(raw, 904)
    for part, kept in (("imagesTr", TRAINING), ("labelsTr", TRAINING), ("imagesTs", TEST), ("labelsTs", TEST)):
        for file in sorted((folder / part).iterdir())[kept:]:
            file.unlink()
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": TRAINING}))


def test_a_killed_study_goes_on_and_its_report_is_right(
    fresh_venv: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = nnunet_folders(tmp_path)
    few_cases(Path(folders["nnUNet_raw"]))
    output, file = tmp_path / "out", tmp_path / "study.yaml"
    content = {
        "name": "killed",
        "output": str(output),
        "datasets": [904],
        "models": ["vanilla_unet3d"],
        "controls": {"stock": True, "resenc": False, "scratch": False},
        "budget": {"iterations": 4, "iterations_per_epoch": 2, "validation_iterations": 1},
        "gpu_memory_target": 1,  # GB: small batches
        "resources": {"gpu": 0, "cores": 1},
    }
    file.write_text(yaml.safe_dump(content))
    words = [fresh_venv.root / "bin" / "nnunet-fm", "study", file, "--cores", "1"]
    started = subprocess.Popen(words, env=fresh_venv.environment(**folders), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 500
    while not (trained := list(output.glob("jobs/train/*.json"))):
        assert started.poll() is None and time.monotonic() < deadline, started.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.2)
    family = [started, *psutil.Process(started.pid).children(recursive=True)]
    for process in family:
        process.kill()
    started.wait()
    checkpoints = {path: path.stat().st_mtime_ns for path in Path(folders["nnUNet_results"]).rglob("*_final.pth")}
    assert len(trained) == 1 and len(checkpoints) >= 1

    done = fresh_venv.run("nnunet-fm", "study", file, "--cores", "1", env=folders)
    assert "going on from where it was" in done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in Path(folders["nnUNet_results"]).rglob("*_final.pth")}
    assert len(after) == 2 and checkpoints.items() <= after.items()  # nothing finished was trained again
    monkeypatch.setenv("nnUNet_raw", folders["nnUNet_raw"])
    assert check(output) > 40
    page = (output / "report" / "index.html").read_text(encoding="utf-8")
    assert "no claim of superiority" in page.lower()
