"""The demo, run as a user would in a fresh environment, for a fraction of its time."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import SimpleITK as sitk

from nnunet_fm.dataset_conversion.demo import unpack
from nnunet_fm.studies.demo import Demo
from tests.helpers.errors import assert_refused, fails

ROOT = Path(__file__).parents[2]


def test_the_data_are_a_raw_dataset_with_unseen_labelled_cases(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "raw", 904)
    assert folder == tmp_path / "raw" / "Dataset904_Hippocampus"
    cases = {
        name: {p.name.removesuffix(".nii.gz").removesuffix("_0000") for p in (folder / name).iterdir()}
        for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
    }
    assert cases["imagesTr"] == cases["labelsTr"] and cases["imagesTs"] == cases["labelsTs"]
    assert (len(cases["imagesTr"]), len(cases["imagesTs"])) == (24, 10)
    assert not cases["imagesTr"] & cases["imagesTs"]
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert description["numTraining"] == 24 and description["labels"] == {
        "background": 0,
        "anterior": 1,
        "posterior": 2,
    }
    for label in (folder / "labelsTs").iterdir():
        image = sitk.ReadImage(str(folder / "imagesTs" / label.name.replace(".nii.gz", "_0000.nii.gz")))
        labels = sitk.ReadImage(str(label))
        assert image.GetSize() == labels.GetSize() and image.GetSpacing() == labels.GetSpacing() == (1, 1, 1)
        assert np.unique(sitk.GetArrayFromImage(labels)).tolist() == [0, 1, 2]
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text(encoding="utf-8")
    assert list((tmp_path / "raw").iterdir()) == [folder]


def test_a_number_that_is_taken_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dataset904_Mine").mkdir()
    with fails("dataset-taken", "Dataset904_Mine"):
        unpack(tmp_path, 904)
    with fails("dataset-number", "999"):
        unpack(tmp_path, 1000)


def test_bundled_data_stay_small_and_carry_their_licence() -> None:
    files = {
        p.name: len(p.read_bytes())
        for p in resources.files("nnunet_fm.dataset_conversion").joinpath("demo_data").iterdir()
    }
    assert set(files) == {"README.md", "hippocampus.zip"} and sum(files.values()) < 4 * 1024**2


def test_a_failed_step_shows_the_end_of_its_output(tmp_path: Path) -> None:
    run = Demo(tmp_path, as_json=True)
    program = Path(sys.executable).name
    run.nnunet("first", program, "-c", "import os; print(os.environ['nnUNet_raw'])")
    assert (tmp_path / "logs" / "first.txt").read_text().strip() == str(tmp_path / "nnUNet_raw")
    with fails("command-failed", "exit code 3: the reason", "second.txt"):
        run.nnunet("second", program, "-c", "print('the reason'); raise SystemExit(3)")


def test_a_demo_that_is_ended_ends_its_commands(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nnunet_fm.cli.console import exit_on_sigterm\n"
        "from nnunet_fm.studies.demo import Demo\n"
        "words = '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "with exit_on_sigterm():\n"
        "    Demo(Path(sys.argv[1]), as_json=True).nnunet('train', Path(sys.executable).name, *words)\n"
    )
    demo = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "logs" / "train.txt", time.monotonic() + 60
    while not (log.is_file() and log.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command = psutil.Process(int(log.read_text()))
    demo.terminate()
    assert demo.wait(60) == 128 + signal.SIGTERM
    assert not command.is_running() or command.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.alone
def test_from_a_clone_to_the_first_prediction(
    make_venv: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the README tells a new user to type, with a minute of training for six, and a folder predicted after it."""
    (line,) = (line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if ".venv/bin/nnunet-fm" in line)
    steps = [step.split() for step in line.strip().replace(".venv/bin/", "").split(" && ")]
    assert steps[1][:3] == ["pip", "install", "torch==2.14.1"] and steps[3] == ["nnunet-fm", "demo"]
    clone, output, environment = tmp_path / "clone", tmp_path / "demo", make_venv()  # with the libraries of the tests
    times = {"start": time.monotonic()}

    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", clone], check=True)
    times["clone"] = time.monotonic()
    assert steps[2] == ["pip", "install", '".[dev]"']
    environment.pip("install", f"{clone}[dev]")
    times["install"] = time.monotonic()
    done = environment.run(*steps[3], "--minutes", "1", "--output", output, "--json", timeout=900)
    times["demo"] = time.monotonic()
    result = json.loads(done.stdout)
    assert set(result["dice_per_class"]) == {"anterior", "posterior"}
    assert 0.3 < result["mean_dice"] < 1  # a minute, on a busy machine only ten iterations; six minutes give 0.88
    assert set(result["seconds"]) == {"fingerprint", "plan", "preprocess", "train", "predict", "report", "total"}
    page = Path(result["page"]).read_text(encoding="utf-8")
    assert "nnUNetv2_train 904 3d_fullres all" in page and page.count("data:image/png;base64") >= 3
    for key in ("plans", "model", "predictions"):
        assert Path(result[key]).exists()
    assert len(list(Path(result["predictions"]).glob("*.nii.gz"))) == 10
    assert "$ nnUNetv2_predict" in done.stderr and "$ export nnUNet_raw=" in done.stderr

    (images,) = (output / "nnUNet_raw").glob("*/imagesTs")
    predicted = tmp_path / "predicted"
    where = ["-i", images, "-o", predicted, "-m", result["model"], "-f", "all", "-device", "cpu"]
    environment.run("nnunet-fm", "predict", *where)
    times["predict"] = time.monotonic()
    files = sorted(path.name for path in predicted.glob("*.nii.gz"))
    assert files == sorted(path.name for path in Path(result["predictions"]).glob("*.nii.gz"))
    with capsys.disabled():
        print(", ".join(f"{b} {times[b] - times[a]:.0f} s" for a, b in itertools.pairwise(times)))
    assert times["predict"] - times["start"] < 900

    again = environment.run("nnunet-fm", "demo", "--output", output, check=False)
    assert again.returncode == 1
    assert_refused(again.stderr, "folder-not-empty", output)
