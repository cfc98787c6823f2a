"""Stock nnU-Net commands in a fresh environment: plan, preprocess, train, continue, validate, predict, compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import pytest

from nnunet_fm.models.registry import cards
from tests.helpers.datasets import nnunet_folders, write_dataset

pytestmark = pytest.mark.slow
SHAPE = (20, 26, 24)
SMALLEST = ("stunet_s", "vanilla_unet3d", "vanilla_unet2d", "swin_unet", "dinov2_s", "resnet18")
"""The smallest model of each kind: other sizes are checked by names, shapes and counts, without running them."""

SHORT = ("--set", "recipe.iterations_per_epoch=2", "--set", "recipe.validation_iterations=1")


class Venv(Protocol):
    root: Path
    site_packages: Path

    def run(self, *command: str | Path, env: Any = None, check: bool = True, timeout: float = 600) -> Any: ...


@pytest.fixture
def nnunet(tmp_path: Path) -> dict[str, str]:
    """nnU-Net's folders with two small datasets; the variables with which commands see them."""
    variables = nnunet_folders(tmp_path)
    write_dataset(variables["nnUNet_raw"], 700, shape=SHAPE, name="Blobs")
    write_dataset(variables["nnUNet_raw"], 701, shape=SHAPE, name="Spaced", spacing=(3.0, 0.9, 0.9), channels=("CT",))
    return {
        **variables,
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "NNUNET_FM_WEIGHTS": str(tmp_path / "weights"),
        "OMP_NUM_THREADS": "1",
    }


def prepare(venv: Venv, nnunet: dict[str, str], planner: str, *options: str, dataset: str = "700") -> None:
    venv.run(
        "nnUNetv2_plan_and_preprocess", "-d", dataset, "-pl", planner, "-npfp", "1", "-np", "1", "1", "1",
        "--no_pbar", *options, env=nnunet,
    )  # fmt: skip


def predict(venv: Venv, nnunet: dict[str, str], output: Path, *options: str, dataset: str = "Dataset700_Blobs") -> Path:
    venv.run(
        "nnUNetv2_predict", "-d", dataset, "-i", Path(nnunet["nnUNet_raw"], dataset, "imagesTs"), "-o", output,
        "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar", *options, env=nnunet,
    )  # fmt: skip
    (result,) = output.glob("*.nii.gz")
    return result


def test_the_daily_commands(fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path) -> None:
    """Plan with options, short form, --c, --val, a normaliser and a resampler of ours in spawned workers, predict."""
    preprocessed = Path(nnunet["nnUNet_preprocessed"], "Dataset701_Spaced")
    options = ("-overwrite_plans_name", "FMPlans_mine", "-gpu_memory_target", "4")
    prepare(fresh_venv, nnunet, "FMPlanner_stunet_s", *options, dataset="701")
    assert (preprocessed / "FMPlans_mine.json").is_file() and not (preprocessed / "nnUNetPlans.json").exists()

    # A 2D plan names FMPercentileNormalization and fm_resample_data_to_shape: both must be found in spawned workers.
    prepare(fresh_venv, nnunet, "FMPlanner_dinov2_s", dataset="701")
    plan = json.loads((preprocessed / "FMPlans_dinov2_s.json").read_text())["configurations"]["2d"]
    assert plan["normalization_schemes"] == ["FMPercentileNormalization"]
    assert plan["resampling_fn_data"] == "fm_resample_data_to_shape"
    again = ("nnUNetv2_preprocess", "-d", "701", "-plans_name", "FMPlans_dinov2_s", "-c", "2d", "-np", "1", "--no_pbar")
    assert "up to date, nothing to do" in fresh_venv.run(*again, env=nnunet).stdout

    short = (*SHORT, "--iterations", "4", "--spacing", "2", "1", "1", "--patch", "16", "32", "32", "--name", "FMPlans")
    fresh_venv.run("nnunet-fm", "plan", "-d", "701", "-m", "stunet_s", *short, env=nnunet)
    (preprocessed / "FMPlans_mine.json").unlink()
    (preprocessed / "FMPlans_dinov2_s.json").unlink()
    fresh_venv.run(*again[:4], "FMPlans", "-c", "3d_fullres", "-np", "1", "--no_pbar", env=nnunet)
    trained = fresh_venv.run("nnUNetv2_train", "701", "fm_trainer_scratch", "0", "-device", "cpu", "--npz", env=nnunet)
    expanded = "nnUNetv2_train 701 3d_fullres 0 -tr fm_trainer_scratch -p FMPlans"
    assert expanded in trained.stdout
    results = Path(nnunet["nnUNet_results"], "Dataset701_Spaced")
    (folder,) = results.iterdir()
    assert folder.name == "fm_trainer_scratch__FMPlans__3d_fullres"
    fold = folder / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file() and (fold / "validation" / "summary.json").is_file()

    # Short and long form give the same folder; both forms continue and validate.
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    fresh_venv.run("nnUNetv2_train", "701", "fm_trainer_scratch", "0", "--c", "-device", "cpu", env=nnunet)
    shutil.rmtree(fold / "validation")
    long = ("701", "3d_fullres", "0", "-tr", "fm_trainer_scratch", "-p", "FMPlans")
    fresh_venv.run("nnUNetv2_train", *long, "--val", "-device", "cpu", env=nnunet)
    assert [f.name for f in results.iterdir()] == [folder.name] and (fold / "validation" / "summary.json").is_file()

    options = ("-c", "3d_fullres", "-f", "0", "-tr", "fm_trainer_scratch", "-p", "FMPlans")
    one = predict(fresh_venv, nnunet, tmp_path / "one", *options, dataset="Dataset701_Spaced")
    bundle = tmp_path / "model.zip"
    fresh_venv.run(
        "nnUNetv2_export_model_to_zip", "-d", "701", "-o", bundle, "-c", "3d_fullres", "-tr", "fm_trainer_scratch",
        "-p", "FMPlans", "-f", "0", env=nnunet,
    )  # fmt: skip
    elsewhere = nnunet | {"nnUNet_results": str(tmp_path / "elsewhere")}
    fresh_venv.run("nnUNetv2_install_pretrained_model_from_zip", bundle, env=elsewhere)
    two = predict(fresh_venv, elsewhere, tmp_path / "two", *options, dataset="Dataset701_Spaced")
    assert one.read_bytes() == two.read_bytes()


def test_missing_weights_and_unknown_names_end_in_one_line(fresh_venv: Venv, nnunet: dict[str, str]) -> None:
    prepare(fresh_venv, nnunet, "FMPlanner_stunet_s")
    long = ("nnUNetv2_train", "700", "3d_fullres", "0", "-p", "FMPlans_stunet_s", "-device", "cpu", "-tr")
    missing = fresh_venv.run(*long, "fm_trainer", env=nnunet, check=False)
    assert missing.returncode == 1
    assert "small_ep4k.model" in missing.stderr and "fm_trainer_scratch" in missing.stderr
    unknown = fresh_venv.run(*long, "fm_trainer_stunet_xs", env=nnunet, check=False)
    assert unknown.returncode == 1 and "fm_trainer_stunet_s" in unknown.stderr
    assert "Traceback" not in unknown.stderr + missing.stderr


def test_portable_plans_need_no_hook(fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path) -> None:
    fresh_venv.run(
        "nnunet-fm", "plan", "-d", "700", "-m", "stunet_s", "--portable", *SHORT, "--iterations", "2", env=nnunet
    )
    shim = next(fresh_venv.site_packages.glob("nnunet_fm/trainers/ext"))
    bare = nnunet | {"NNUNET_FM_HOOK": "0", "nnUNet_extTrainer": str(shim)}
    fresh_venv.run(
        "nnUNetv2_preprocess", "-d", "700", "-plans_name", "FMPlans_stunet_s", "-c", "3d_fullres", "-np", "1",
        "--no_pbar", env=bare,
    )  # fmt: skip
    arguments = ("-tr", "fm_trainer_scratch", "-p", "FMPlans_stunet_s")
    fresh_venv.run("nnUNetv2_train", "700", "3d_fullres", "0", *arguments, "-device", "cpu", env=bare)
    assert predict(fresh_venv, bare, tmp_path / "out", "-c", "3d_fullres", "-f", "0", *arguments).is_file()


def test_model_selection_and_ensembling_over_2d_and_3d(
    fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path
) -> None:
    plans = {"FMPlans_stunet_s": "3d_fullres", "FMPlans_vanilla_unet2d": "2d"}
    probabilities = []
    for name, configuration in plans.items():
        model = name.removeprefix("FMPlans_")
        fresh_venv.run("nnunet-fm", "plan", "-d", "700", "-m", model, *SHORT, "--iterations", "2", env=nnunet)
        fresh_venv.run(
            "nnUNetv2_preprocess", "-d", "700", "-plans_name", name, "-c", configuration, "-np", "1", env=nnunet
        )
        arguments = ("-tr", "fm_trainer_scratch", "-p", name)
        for fold in "01":
            train = ("nnUNetv2_train", "700", configuration, fold, *arguments, "-device", "cpu", "--npz")
            fresh_venv.run(*train, env=nnunet)
        options = ("-c", configuration, "-f", "0", "1", *arguments, "--save_probabilities")
        probabilities.append(predict(fresh_venv, nnunet, tmp_path / name, *options).parent)
    fresh_venv.run(
        "nnUNetv2_find_best_configuration", "700", "-c", "2d", "3d_fullres", "-tr", "fm_trainer_scratch", "-p", *plans,
        "-f", "0", "1", "-np", "1", env=nnunet,
    )  # fmt: skip
    best = json.loads(Path(nnunet["nnUNet_results"], "Dataset700_Blobs", "inference_information.json").read_text())
    assert len([k for k in best["all_results"] if k.startswith("ensemble")]) == 1
    fresh_venv.run("nnUNetv2_ensemble", "-i", *probabilities, "-o", tmp_path / "both", "-np", "1", env=nnunet)
    assert len(list((tmp_path / "both").glob("*.nii.gz"))) == 1


@pytest.mark.parametrize("model", SMALLEST)
def test_every_model_trains_and_predicts(fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path, model: str) -> None:
    card = cards()[model]
    fresh_venv.run("nnunet-fm", "plan", "-d", "700", "-m", model, *SHORT, "--iterations", "2", env=nnunet)
    name, configuration = f"FMPlans_{model}", card.configuration
    fresh_venv.run("nnUNetv2_preprocess", "-d", "700", "-plans_name", name, "-c", configuration, "-np", "1", env=nnunet)
    arguments = ("-tr", f"fm_trainer_{model}_scratch", "-p", name)
    fresh_venv.run("nnUNetv2_train", "700", configuration, "0", *arguments, "-device", "cpu", env=nnunet)
    assert predict(fresh_venv, nnunet, tmp_path / "out", "-c", configuration, "-f", "0", *arguments).is_file()
