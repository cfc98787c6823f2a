"""The 3D foundation models on real CT and MR, by stock nnU-Net commands, from official files to a prediction."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from tests.end_to_end.test_commands import SHORT, Venv, predict
from tests.helpers.datasets import nnunet_folders
from tests.helpers.official_files import OFFICIAL, write_official

pytestmark = pytest.mark.slow
DATA = Path(__file__).parents[1] / "images"
MODELS = ("stunet_s", "dae", "spadnet", "swinmm")
IGNORE = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder that files are written to when they are needed."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def nnunet(tmp_path: Path, weights: Path) -> dict[str, str]:
    return {
        **nnunet_folders(tmp_path),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "NNUNET_FM_WEIGHTS": str(weights),
        "OMP_NUM_THREADS": "1",
    }


def write_dataset(raw: str, name: str, image: str, channels: tuple[str, ...], **content: Any) -> Path:
    """A dataset of five training cases and one test case that are the same real image with other noise."""
    folder = Path(raw, name)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    source, labels = sitk.ReadImage(DATA / f"{image}.nii.gz"), sitk.ReadImage(DATA / f"{image}_labels.nii.gz")
    grey, seg = sitk.GetArrayFromImage(source), sitk.GetArrayFromImage(labels)
    if any(label == "ignore" for label in content["labels"]):
        seg[:4] = IGNORE
    rng = np.random.default_rng(0)
    for case in range(6):
        for channel in range(len(channels)):
            noisy = grey + rng.integers(-5, 6, grey.shape) + 50 * channel
            out = sitk.GetImageFromArray(noisy.astype(np.int16))
            out.CopyInformation(source)
            part = "imagesTr" if case < 5 else "imagesTs"
            sitk.WriteImage(out, folder / part / f"case_{case}_{channel:04d}.nii.gz")
        if case < 5:
            target = sitk.GetImageFromArray(seg)
            target.CopyInformation(labels)
            sitk.WriteImage(target, folder / "labelsTr" / f"case_{case}.nii.gz")
    content |= {
        "channel_names": {str(i): c for i, c in enumerate(channels)},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def train_and_predict(
    venv: Venv, nnunet: dict[str, str], output: Path, dataset: str, model: str, trainer: str, *options: str
) -> tuple[Path, Path]:
    """Plan, preprocess, two iterations, predict; returns the fold's folder and the predicted file."""
    number = dataset[7:10]
    plan = ("nnunet-fm", "plan", "-d", number, "-m", model, "--patch", "32", "64", "64", "--batch", "1", *SHORT)
    venv.run(*plan, "--iterations", "2", *options, env=nnunet)
    name = f"FMPlans_{model}"
    venv.run("nnUNetv2_preprocess", "-d", number, "-plans_name", name, "-c", "3d_fullres", "-np", "1", env=nnunet)
    arguments = ("-tr", trainer, "-p", name)
    venv.run("nnUNetv2_train", number, "3d_fullres", "0", *arguments, "-device", "cpu", env=nnunet)
    fold = Path(nnunet["nnUNet_results"], dataset, f"{trainer}__{name}__3d_fullres", "fold_0")
    chosen = ("-c", "3d_fullres", "-f", "0", *arguments, "--disable_tta")
    return fold, predict(venv, nnunet, output, *chosen, dataset=dataset)


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=[] if model in ("stunet_s", "swinmm") else pytest.mark.long) for model in MODELS],
)
def test_from_official_weights_on_ct_with_ignore_label(
    fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path, weights: Path, model: str
) -> None:
    vertebrae = {f"L{6 - i}": i for i in range(1, 6)}
    dataset = "Dataset710_Spine"
    labels = {"background": 0, **vertebrae, "ignore": IGNORE}
    write_dataset(nnunet["nnUNet_raw"], dataset, "ct_spine", ("CT",), labels=labels)
    file = write_official(model, weights)
    try:
        fold, result = train_and_predict(fresh_venv, nnunet, tmp_path / "out", dataset, model, "fm_trainer")
    finally:
        file.unlink()  # a few hundred MB each
    report = json.loads((fold / "weights_report.json").read_text())
    assert report[0]["file"] == OFFICIAL[model].file and report[0]["counts"]["matched"] > 100
    plan = json.loads(Path(nnunet["nnUNet_preprocessed"], dataset, f"FMPlans_{model}.json").read_text())
    configuration = plan["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [2.0, 1.5, 1.5]
    assert np.all(np.array(configuration["median_image_size_in_voxels"]) > configuration["patch_size"])
    image, predicted = sitk.ReadImage(DATA / "ct_spine.nii.gz"), sitk.ReadImage(result)
    assert predicted.GetSize() == image.GetSize() and predicted.GetDirection() == image.GetDirection()
    assert sitk.GetArrayFromImage(predicted).max() < IGNORE


@pytest.mark.parametrize("model", ["stunet_s", "suprem", "misfm"])  # a U-Net, a transformer, and both in one
def test_three_channels_and_regions_of_mr_with_lora(
    fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path, model: str
) -> None:
    labels = {"background": 0, "organs": [1, 2, 3], "kidneys": [1]}
    dataset = "Dataset711_Organs"
    channels = ("T1", "T2", "FLAIR")
    write_dataset(nnunet["nnUNet_raw"], dataset, "mr", channels, labels=labels, regions_class_order=[2, 1])
    native = ("--spacing", "native")
    trainer = f"fm_trainer_{model}_lora_scratch"
    _, result = train_and_predict(fresh_venv, nnunet, tmp_path / "out", dataset, model, trainer, *native)
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(result)))) <= {0, 1, 2}


def test_a_frozen_encoder_is_not_stored_twice(
    fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path, weights: Path
) -> None:
    """A slim checkpoint predicts where the cache holds its base, elsewhere says what is missing, and can be bundled."""
    dataset = "Dataset712_Spine"
    labels = {"background": 0, **{f"L{6 - i}": i for i in range(1, 6)}}
    write_dataset(nnunet["nnUNet_raw"], dataset, "ct_spine", ("CT",), labels=labels)
    file = write_official("suprem", weights)
    trainer = "fm_trainer_freeze"
    fold, result = train_and_predict(fresh_venv, nnunet, tmp_path / "out", dataset, "suprem", trainer)
    checkpoint = fold / "checkpoint_final.pth"
    slim = checkpoint.stat().st_size
    chosen = ("-c", "3d_fullres", "-f", "0", "-tr", trainer, "-p", "FMPlans_suprem", "--disable_tta")
    elsewhere = nnunet | {"NNUNET_FM_WEIGHTS": str(tmp_path / "empty")}
    missing = fresh_venv.run(
        "nnUNetv2_predict", "-d", "712", "-i", Path(nnunet["nnUNet_raw"], dataset, "imagesTs"), "-o", tmp_path / "no",
        "-device", "cpu", "-npp", "1", "-nps", "1", *chosen, env=elsewhere, check=False,
    )  # fmt: skip
    assert missing.returncode == 1 and file.name in missing.stderr and "Traceback" not in missing.stderr
    fresh_venv.run("nnunet-fm", "weights", "bundle", fold, env=nnunet)
    assert checkpoint.stat().st_size > slim + 30e6  # the Swin encoder has 8 million parameters
    again = predict(fresh_venv, elsewhere, tmp_path / "again", *chosen, dataset=dataset)
    assert again.read_bytes() == result.read_bytes()
    shutil.rmtree(fold)
    os.unlink(file)
