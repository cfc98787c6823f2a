"""Short trainings: whole volumes are predicted as well as patches by every preset, and sides are told apart.

Toys on which a mirrored image is wrong. *Corner*: what is to be found lies below and to the right of a bright spot.
*Sides*: two equal blobs beside a bar, whose labels are left and right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_fm.data.presets import MIRRORING_PRESETS
from nnunet_fm.inference.predictor import load_predictor
from nnunet_fm.models.card import Recipe
from nnunet_fm.plans.planner import Options, planner_class
from tests.helpers import trainings
from tests.helpers.datasets import empty, training_folders, write_dataset, write_fingerprint, write_image

CPU = torch.device("cpu")
SHAPE, EDGE = (4, 24, 24), 24
CORNER = {"background": 0, "found": 1}
SIDES = {"background": 0, "spot_left": 1, "spot_right": 2}
VALIDATION, ITERATIONS = ["case_06", "case_07"], 60
NUMBERS = {"corner": 701, "sides": 702}
PRESETS = get_args(Recipe.model_fields["augmentation"].annotation)


def corner(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y, x = rng.integers(3, 11, 2)
    image, seg = rng.normal(0, 0.1, SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
    image[:, y - 1 : y + 2, x - 1 : x + 2] += 4
    seg[:, y + 4 : y + 10, x + 4 : x + 10] = 1
    return image, seg


def sides(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = rng.integers(6, 16)
    image, seg = rng.normal(0, 0.1, SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
    image[:, :, 11:13] += 2
    for label, x in ((1, 4), (2, 16)):
        image[:, y : y + 4, x : x + 4] += 4
        seg[:, y : y + 4, x : x + 4] = label
    return image, seg


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both toys: eight cases of four slices, of which two validate."""
    root = tmp_path_factory.mktemp("mirroring")
    with training_folders(root) as variables:
        for (kind, number), draw, labels in zip(NUMBERS.items(), (corner, sides), (CORNER, SIDES), strict=True):
            folder = write_dataset(
                variables["nnUNet_raw"], number, name=kind, shape=SHAPE, cases=8, test_cases=0, labels=labels
            )
            rng = np.random.default_rng(number)
            for case in range(8):
                image, seg = draw(rng)
                write_image(folder / "imagesTr" / f"case_{case:02d}_0000.nii.gz", image, (3, 1, 1))
                write_image(folder / "labelsTr" / f"case_{case:02d}.nii.gz", seg, (3, 1, 1))
            write_fingerprint(folder, [SHAPE] * 8, [(3.0, 1.0, 1.0)] * 8)
            split = {"train": [f"case_{i:02d}" for i in range(6)], "val": VALIDATION}
            preprocessed = Path(variables["nnUNet_preprocessed"], folder.name)
            (preprocessed / "splits_final.json").write_text(json.dumps([split]))
        yield root


@pytest.fixture(autouse=True)
def empty_results(folders: Path) -> Iterator[None]:
    yield
    empty(folders / "nnUNet_results")


@pytest.fixture(scope="module")
def plans(folders: Path) -> dict[str, dict[str, Any]]:
    """A plan of a tiny U-Net on slices for each toy, preprocessed."""
    recipe = {
        "optimizer": "adamw", "learning_rate": 1e-2, "loss": "nnunet", "sampling": "nnunet", "seed": 1,
        "augmentation": "nnunet", "iterations_per_epoch": ITERATIONS, "validation_iterations": 2,
        "volume_dice_every": 0,
    }  # fmt: skip
    network = {"channels": [8, 8, 8, 8, 8], "image_size": EDGE}
    options = Options(iterations=ITERATIONS, patch=[EDGE, EDGE], batch=8, recipe=recipe, network=network)
    planned = {}
    for kind, number in NUMBERS.items():
        planned[kind] = planner_class("FMPlanner_vanilla_unet2d")(number, 40, options=options).plan_experiment()
        preprocess_dataset(number, planned[kind]["plans_name"], ["2d"], [1], show_progress_bar=False)
    return planned


def make_trainer(plans: dict[str, Any], **recipe: Any) -> Any:
    key = plans["nnunet_fm"]
    plans = {**plans, "nnunet_fm": {**key, "recipe": {**key["recipe"], **recipe}}}
    return trainings.make_trainer(plans)


def train(plans: dict[str, Any], **recipe: Any) -> Any:
    trainer = make_trainer(plans, **recipe)
    trainer.run_training()
    return trainer


def patches(trainer: Any) -> float:
    """Mean Dice of the patches of the last validation."""
    return float(np.mean(trainer.logger.get_value("dice_per_class_or_region", step=-1)))


def volumes(trainer: Any, predictor: Any = None) -> float:
    """Mean Dice of whole validation volumes, predicted with the checkpoint that was written."""
    predictor = predictor or load_predictor(Path(trainer.output_folder_base), [0], device=CPU)
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    scores = []
    for case in VALIDATION:
        data, segmentation, _, _ = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case]).load_case(case)
        found = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:])).argmax(0).numpy()
        for label in trainer.label_manager.foreground_labels:
            here, there = found == label, segmentation[0] == label
            scores.append(2 * (here & there).sum() / (here.sum() + there.sum()))
    return float(np.mean(scores))


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - MIRRORING_PRESETS))
def test_what_was_not_flipped_is_not_predicted_mirrored(preset: str, plans: dict[str, dict[str, Any]]) -> None:
    trainer = train(plans["corner"], augmentation=preset, mirror="all")
    assert patches(trainer) > 0.6
    assert abs(volumes(trainer) - patches(trainer)) < 0.1


@pytest.mark.parametrize("preset", sorted(MIRRORING_PRESETS))
def test_left_and_right_are_learned_and_predicted(preset: str, plans: dict[str, dict[str, Any]]) -> None:
    assert plans["sides"]["nnunet_fm"]["recipe"]["mirror"] == [0]
    trainer = train(plans["sides"], augmentation=preset)
    assert patches(trainer) > 0.9
    assert abs(volumes(trainer) - patches(trainer)) < 0.1


def test_left_and_right_that_are_mirrored_are_confused(
    plans: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What a stock plan, or one of another dataset, does, of which the log warns."""
    key = plans["sides"]["nnunet_fm"]
    unaware = {**plans["sides"], "nnunet_fm": {**key, "reasons": {}}}
    trainer = train(unaware, augmentation="flips", mirror="all")
    assert trainer.inference_allowed_mirroring_axes == (0, 1)
    assert max(patches(trainer), volumes(trainer)) < 0.8
    assert "WARNING: labels spot_left and spot_right differ by side" in capsys.readouterr().out


def test_a_checkpoint_of_an_older_version(plans: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """It was trained without flips, and asks for mirrored images: they spoil the result, and are left out."""
    trainer = train(plans["corner"], augmentation="light", mirror=True)
    folder = Path(trainer.output_folder_base)
    file = Path(trainer.output_folder, "checkpoint_final.pth")
    checkpoint = torch.load(file, weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    torch.save({**checkpoint, "inference_allowed_mirroring_axes": (0, 1)}, file)

    stock = nnUNetPredictor(device=CPU, allow_tqdm=False)
    capsys.readouterr()
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    assert "give it --disable_tta" in capsys.readouterr().err
    assert volumes(trainer, stock) < patches(trainer) - 0.3
    assert abs(volumes(trainer) - patches(trainer)) < 0.1

    again = make_trainer(plans["corner"], augmentation="light", mirror=True)
    again.load_checkpoint(str(file))
    assert again.inference_allowed_mirroring_axes is None

    edited = json.loads((folder / "plans.json").read_text())
    edited["nnunet_fm"]["recipe"]["mirror"] = []
    (folder / "plans.json").write_text(json.dumps(edited))
    capsys.readouterr()
    assert load_predictor(folder, [0], device=CPU).allowed_mirroring_axes is None
    assert "WARNING: the checkpoint allows mirroring along axes [0, 1], but its training flipped none" in (
        capsys.readouterr().err
    )
