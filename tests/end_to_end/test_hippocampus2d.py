"""2D models on real hippocampus MR by stock commands: they learn, load official files, keep only what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_fm.dataset_conversion.demo import NAME, unpack
from tests.end_to_end.test_commands import Venv
from tests.helpers.datasets import nnunet_folders
from tests.helpers.official_files import OFFICIAL, write_official

pytestmark = pytest.mark.slow
NUMBER = 740
DATASET = f"Dataset{NUMBER}_{NAME}"
SHORT = ("--set", "recipe.validation_iterations=1", "--set", "recipe.volume_dice_every=1")


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The bundled data as a raw folder, shared by the tests of this file, and an empty weights folder."""
    root = tmp_path_factory.mktemp("nnunet")
    variables = nnunet_folders(root)
    raw = unpack(Path(variables["nnUNet_raw"]), NUMBER)
    for file in sorted((raw / "imagesTs").glob("*.nii.gz"))[4:]:
        file.unlink()  # four unseen cases will do
    yield {
        **variables,
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "NNUNET_FM_WEIGHTS": str(root / "weights"),
        "OMP_NUM_THREADS": "1",
    }


def train(venv: Venv, nnunet: dict[str, str], name: str, trainer: str, *plan: str) -> tuple[Path, str]:
    """Plan, preprocess and train fold 0; the fold's folder and what training printed."""
    venv.run("nnunet-fm", "plan", "-d", str(NUMBER), "--name", name, "-npfp", "1", *plan, env=nnunet)
    venv.run("nnUNetv2_preprocess", "-d", str(NUMBER), "-plans_name", name, "-c", "2d", "-np", "1", env=nnunet)
    arguments = (str(NUMBER), "2d", "0", "-tr", trainer, "-p", name, "-device", "cpu")
    trained = venv.run("nnUNetv2_train", *arguments, env=nnunet, timeout=1500)
    return Path(nnunet["nnUNet_results"], DATASET, f"{trainer}__{name}__2d", "fold_0"), trained.stdout


def predict(
    venv: Venv, nnunet: dict[str, str], output: Path, name: str, trainer: str, *more: str, check: bool = True
) -> Any:
    source = Path(nnunet["nnUNet_raw"], DATASET, "imagesTs")
    return venv.run(
        "nnUNetv2_predict", "-d", str(NUMBER), "-i", source, "-o", output, "-c", "2d", "-f", "0", "-tr", trainer,
        "-p", name, "-device", "cpu", "-npp", "1", "-nps", "1", *more, env=nnunet, check=check,
    )  # fmt: skip


def dice_of_folder(nnunet: dict[str, str], predicted: Path) -> float:
    """Mean foreground Dice over the test cases."""
    scores = []
    for result in sorted(predicted.glob("*.nii.gz")):
        truth = Path(nnunet["nnUNet_raw"], DATASET, "labelsTs", result.name)
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(f)) for f in (truth, result))
        scores += [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2)]
    return float(np.mean(scores))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("head", "iterations"), [("hqhsam", 140)])  # linear: 320
def test_a_transformer_learns_from_random_weights(
    fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path, head: str, iterations: int
) -> None:
    """In two minutes on two cores; Dice in the loss and no augmentation, for which so few iterations have no use."""
    name, trainer = f"FMPlans_{head}", f"fm_trainer_dinov2_s_{head}_full_scratch"
    model = ("-m", "dinov2_s", "--head", head, "--adapter", "full")
    settings = ("loss=nnunet", "augmentation=none", "validation_iterations=2", "volume_dice_every=1")
    changes = [word for setting in settings for word in ("--set", f"recipe.{setting}")]
    budget = ("--iterations", str(iterations), "--set", f"recipe.iterations_per_epoch={iterations // 2}")
    fold, _ = train(fresh_venv, nnunet, name, trainer, *model, *budget, *changes)
    predict(fresh_venv, nnunet, tmp_path / "out", name, trainer)
    assert dice_of_folder(nnunet, tmp_path / "out") > 0.6
    for which in ("checkpoint_best.pth", "checkpoint_lowest_loss.pth"):
        assert (fold / which).is_file()
    predict(fresh_venv, nnunet, tmp_path / "lowest", name, trainer, "-chk", "checkpoint_lowest_loss.pth")
    assert dice_of_folder(nnunet, tmp_path / "lowest") > 0.5


CASES = {
    # model and adapter -> official files, parts of the load report
    ("dinov2_s", "hqhsam", "freeze"): (("dinov2_s", "sam_b"), ("backbone", "head")),
    ("medsam_b", "hqhsam", "ladder"): (("medsam_b", "dinov2_s"), ("backbone", "head", "ladder")),
}


@pytest.mark.parametrize(
    ("model", "head", "adapter"),
    [pytest.param(*case, marks=pytest.mark.long if case[0] == "medsam_b" else []) for case in CASES],
)
def test_from_official_files_to_a_slim_checkpoint(
    fresh_venv: Venv, nnunet: dict[str, str], tmp_path: Path, model: str, head: str, adapter: str
) -> None:
    """With files added by the command; the checkpoint holds only what is new, and says what it needs elsewhere."""
    files, parts = CASES[model, head, adapter]
    name, trainer = f"FMPlans_{model}_{head}_{adapter}", f"fm_trainer_{model}_{head}_{adapter}"
    plan = ("-m", model, "--head", head, "--adapter", adapter, "--iterations", "2", *SHORT)
    missing = ""
    for i, owner in enumerate(files):
        if i == len(files) - 1:  # the last file is missing: the training says which, before anything is built
            fresh_venv.run("nnunet-fm", "plan", "-d", str(NUMBER), "--name", name, "-npfp", "1", *plan, env=nnunet)
            fresh_venv.run(
                "nnUNetv2_preprocess", "-d", str(NUMBER), "-plans_name", name, "-c", "2d", "-np", "1", env=nnunet
            )
            arguments = (str(NUMBER), "2d", "0", "-tr", trainer, "-p", name, "-device", "cpu")
            missing = fresh_venv.run("nnUNetv2_train", *arguments, env=nnunet, check=False).stderr
        file = write_official(owner, tmp_path)
        fresh_venv.run("nnunet-fm", "weights", "add", file, "--as", OFFICIAL[owner].file[:-4], env=nnunet)
        file.unlink()
    assert OFFICIAL[files[-1]].file in missing and "Traceback" not in missing

    fold, printed = train(fresh_venv, nnunet, name, trainer, *plan)
    report = json.loads((fold / "weights_report.json").read_text())
    assert [section["part"] for section in report] == list(parts) and "Official weights" in printed
    slim = fold / "checkpoint_final.pth"
    weights = torch.load(slim, map_location="cpu", weights_only=False)["network_weights"]
    left_out = {n for n, t in weights.items() if t.numel() > 1 and not any(t.stride())}
    backbone = {n for n in weights if n.startswith("backbone.")}
    assert left_out and left_out <= backbone | {n for n in weights if n.startswith("head.prompt_encoder")}
    kept = sum(weights[n].numel() for n in backbone - left_out)
    assert kept < 0.1 * sum(weights[n].numel() for n in backbone)
    predict(fresh_venv, nnunet, tmp_path / "slim", name, trainer)
    fresh_venv.run("nnunet-fm", "weights", "bundle", fold, env=nnunet)
    for file in Path(nnunet["NNUNET_FM_WEIGHTS"]).glob("*.pth"):
        file.unlink()
    predict(fresh_venv, nnunet, tmp_path / "full", name, trainer)
    for one in (tmp_path / "slim").glob("*.nii.gz"):
        assert one.read_bytes() == (tmp_path / "full" / one.name).read_bytes()
    slim.unlink()
