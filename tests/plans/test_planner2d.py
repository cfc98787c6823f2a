"""Planning of 2D models: choices by the dataset's name, epochs over slices, the axis of slices."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_fm.data.folds import first_cases
from nnunet_fm.models.card import DatasetChoice
from nnunet_fm.models.registry import get_card
from nnunet_fm.models.variants import dataset_choice, on_dataset
from nnunet_fm.planfile.schema import PlanKey
from nnunet_fm.plans.geometry import slice_axis
from nnunet_fm.plans.planner import Options, planner_class
from tests.helpers.datasets import (
    blobs,
    extract_fingerprint,
    nnunet_folders,
    write_dataset,
    write_fingerprint,
    write_image,
)
from tests.helpers.errors import fails

PLANNER = "FMPlanner_dinov2_s_linear_freeze"
SLICES = {
    "shapes": [(12, 320, 300), (13, 320, 300), (16, 310, 290)],
    "spacings": [(5.0, 0.6, 0.5), (3.0, 0.6, 0.5), (5.0, 0.6, 0.5)],
}
Planner = Callable[..., tuple[dict[str, Any], PlanKey]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Plan a dataset of a given name, of which only the fingerprint exists; returns configuration and key."""
    variables = nnunet_folders(tmp_path, monkeypatch)

    def run(
        name: str = "Blobs",
        planner: str = PLANNER,
        channels: tuple[str, ...] = ("MRI",),
        conversion: str | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], PlanKey]:
        raw = variables["nnUNet_raw"]
        folder = write_dataset(raw, 501, cases=1, test_cases=0, name=name, channels=channels, shape=(8, 8, 8))
        if conversion is not None:
            (folder / "conversion.json").write_text(conversion)
        write_fingerprint(folder, SLICES["shapes"], SLICES["spacings"])
        plans = planner_class(planner)(folder.name, 40, options=Options(**options)).plan_experiment()
        key = PlanKey.read(plans)
        assert key is not None
        (configuration,) = plans["configurations"].values()
        return {**configuration, "transpose": plans["transpose_forward"]}, key

    return run


# What a dataset's name changes


def test_longer_names_go_on_top_of_shorter_ones() -> None:
    datasets = {
        "hcp": DatasetChoice(spacing=0.7, learning_rate={"default": 1e-5, "rein": 3e-5}),
        "hcpt1": DatasetChoice(epochs=9, learning_rate={"ladder": 1e-6}),
        "hcpt2": DatasetChoice(spacing="native"),
        "nci": DatasetChoice(epochs=7),
    }
    both = dataset_choice(datasets, "Dataset501_HCP-T1_young")
    assert (both.spacing, both.epochs) == (0.7, 9)
    assert both.learning_rate == {"default": 1e-5, "rein": 3e-5, "ladder": 1e-6}
    assert dataset_choice(datasets, "Dataset501_hcp_T2").spacing == "native"
    assert dataset_choice(datasets, "Dataset501_hcp_T2").learning_rate == datasets["hcp"].learning_rate
    assert dataset_choice(datasets, "Dataset501_T1_HCP") == DatasetChoice()


@pytest.mark.parametrize(
    ("dataset", "model", "adapter", "spacing", "epochs", "rate", "intensity"),
    [
        ("HCP_T1", "dinov2_b", "freeze", [0.7, 0.7], 120, 1e-5, "percentile"),
        ("HCP_T1", "dinov2_b", "rein_lora", [0.7, 0.7], 120, 2e-5, "percentile"),
        ("HCP_T1", "dinov2_b", "ladder", [0.7, 0.7], 120, 1e-5, "percentile"),
        ("HCP_T2", "dinov2_b", "ladder", [0.7, 0.7], 120, 2e-5, "percentile"),
        ("ABIDE_Caltech", "dinov2_b", "freeze", [0.7, 0.7], 120, 2e-5, "percentile"),
        ("NCI", "dinov2_l", "full", [0.625, 0.625], 120, 2e-5, "percentile"),
        ("VerSe", "dinov2_s", "ladder", [0.7, 0.7], 100, 1e-5, "percentile"),
        ("VerSe", "dinov2_s", "full", [0.7, 0.7], 100, 1e-5, "percentile"),
        ("BraTS_T1", "dinov2_s", "rein", "native", 80, 2e-5, "minmax"),
        ("Hippocampus", "dinov2_s", "freeze", "native", 120, 2e-5, "percentile"),
        ("USZ", "vanilla_unet2d", None, [0.625, 0.625], 120, 5e-5, "percentile"),
        ("HCP_T1", "vanilla_unet2d", None, [0.7, 0.7], 120, 5e-5, "percentile"),
    ],
)
def test_the_numbers_of_the_thesis(
    dataset: str, model: str, adapter: str | None, spacing: Any, epochs: int, rate: float, intensity: str
) -> None:
    variant = on_dataset(get_card(model).variants["mission"], f"Dataset501_{dataset}", adapter)
    assert (variant.geometry.spacing, variant.geometry.patch, variant.geometry.batch) == (spacing, [256, 256], 4)
    assert (variant.epochs, variant.recipe.learning_rate) == (epochs, rate)
    assert (variant.intensity.other, variant.intensity.ct) == (intensity, intensity)


def test_only_the_variants_of_the_thesis_follow_the_name() -> None:
    card = get_card("dinov2_b")
    assert on_dataset(card.variants["nnunet"], "Dataset501_HCP_T1", "freeze") == card.variants["nnunet"]
    volumetric = get_card("stunet_b").variants["mission"]
    assert on_dataset(volumetric, "Dataset501_HCP_T1", "full") == volumetric


def test_a_dataset_of_the_thesis_is_planned_as_published(plan: Planner) -> None:
    """The images are 274 × 214 pixels at 0.7 mm: the patch stays the published field of view."""
    configuration, key = plan("HCP_T1")
    assert configuration["spacing"] == [0.7, 0.7] and configuration["patch_size"] == [256, 256]
    assert configuration["batch_size"] == 4 and configuration["normalization_schemes"] == ["FMPercentileNormalization"]
    assert {key.origin[what] for what in ("spacing", "patch_size", "batch_size", "iterations", "recipe")} == {"mission"}
    assert key.recipe.learning_rate == 1e-5
    assert key.reasons["learning_rate"] == "1e-05 for adapter 'freeze' on Dataset501_HCP_T1"
    by_user = plan("HCP_T1", recipe={"learning_rate": 3e-3})[1]
    assert by_user.recipe.learning_rate == 3e-3 and "learning_rate" not in by_user.reasons


def test_other_datasets_keep_their_median_spacing(plan: Planner) -> None:
    configuration, key = plan("Knee", channels=("CT", "MRI"))
    assert configuration["spacing"] == [0.6, 0.5] and key.origin["spacing"] == "data"
    assert configuration["normalization_schemes"] == ["FMPercentileNormalization"] * 2
    assert key.recipe.learning_rate == 2e-5 and "learning_rate" not in key.reasons
    both = ("CT", "MRI")
    # nnU-Net would take 3.4 mm, the 10th percentile.
    assert plan("Knee", channels=both, slice_axis="x")[0]["spacing"] == [5.0, 0.6]
    assert plan("Knee", f"{PLANNER}_nnunet", channels=both, slice_axis="x")[0]["spacing"] == pytest.approx([3.4, 0.6])


def test_brats_is_scaled_from_its_minimum_and_maximum(plan: Planner) -> None:
    configuration, key = plan("BraTS_FLAIR")
    assert configuration["normalization_schemes"] == ["ScaleIntensity"] and key.epochs == 80
    assert configuration["architecture"]["arch_kwargs"]["input_range"] == "unit"
    assert configuration["spacing"] == [0.6, 0.5]


def test_what_a_converter_has_scaled_is_not_clipped_again(plan: Planner) -> None:
    configuration, _ = plan("HCP_T1", channels=("T1_0_to_1", "T2"))
    assert configuration["normalization_schemes"] == ["ScaleIntensity", "FMPercentileNormalization"]


def test_a_small_image_shrinks_the_patch_where_no_spacing_is_published(plan: Planner) -> None:
    spacing = [1.5, 1.0]
    assert plan("Knee", spacing=spacing)[0]["patch_size"] == [128, 152]
    assert plan("HCP", spacing=spacing)[0]["patch_size"] == [128, 152]


# Epochs


@pytest.mark.parametrize(
    ("name", "train", "val"), [("USZ", 28, 20), ("ABIDE_Caltech", 10, 5), ("NCI", 10, 5), ("HCP_T1", 20, 5)]
)
def test_a_published_split_is_trained_as_long_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, train: int, val: int
) -> None:
    """120 passes over the slices of the training volumes, not over those of the validation volumes as well."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    folder = write_dataset(variables["nnUNet_raw"], 501, cases=train + val, test_cases=0, name=name, shape=(2, 4, 4))
    cases = [f"case_{number:02d}" for number in range(train + val)]
    shapes = [(10 + number, 300, 300) for number in range(train + val)]
    write_fingerprint(folder, shapes, [(3.0, 0.6, 0.6)] * len(shapes))
    published = {"train": cases[val:], "val": cases[:val]}
    (folder / "splits_final.json").write_text(json.dumps([published, {"train": cases[:4], "val": cases[4:]}]))
    key = PlanKey.read(planner_class(PLANNER)(folder.name, 40).plan_experiment())
    assert key is not None
    counted = {"0": sum(range(10 + val, 10 + val + train)), "1": 10 + 11 + 12 + 13, "all": sum(s[0] for s in shapes)}
    assert key.fold_samples == counted and key.slices == counted["0"]
    assert (key.iterations, key.recipe.iterations_per_epoch) == (120 * -(-counted["0"] // 4), -(-counted["0"] // 4))
    assert f"over {counted['0']:,} slices of the training cases of fold 0 in" in key.reasons["iterations"]
    assert "other folds count theirs (46 to 46)" in key.reasons["iterations"]
    few = planner_class(PLANNER)(folder.name, 40, options=Options(train_cases=3, force=True)).plan_experiment()
    chosen = first_cases(published["train"], 3, few["nnunet_fm"]["recipe"]["seed"])
    assert few["nnunet_fm"]["slices"] == sum(10 + int(case[-2:]) for case in chosen)


def test_without_a_split_the_folds_are_those_that_nnunet_will_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = nnunet_folders(tmp_path, monkeypatch)
    folder = write_dataset(variables["nnUNet_raw"], 501, cases=11, test_cases=0, shape=(2, 4, 4))
    slices = {f"case_{number:02d}": 2**number for number in range(11)}
    write_fingerprint(folder, [(count, 300, 300) for count in slices.values()], [(3.0, 0.6, 0.6)] * 11)
    key = PlanKey.read(planner_class(PLANNER)(folder.name, 40).plan_experiment())
    drawn = generate_crossval_split(sorted(slices), seed=12345, n_splits=5)
    expected = {str(number): sum(slices[case] for case in fold["train"]) for number, fold in enumerate(drawn)}
    assert key is not None and key.fold_samples == {**expected, "all": 2**11 - 1}


def test_iterations_are_epochs_over_all_slices_where_there_are_no_folds(plan: Planner) -> None:
    _, key = plan("Knee")  # 12 + 13 + 16 slices: 11 batches of 4
    assert (key.iterations, key.epochs, key.slices) == (120 * 11, 120, 41)
    assert (key.recipe.iterations_per_epoch, key.recipe.validation_iterations) == (11, 11)
    assert key.reasons["iterations"] == "120 epochs over 41 slices of all images in batches of 4"
    assert key.origin["iterations"] == "mission"


def test_the_slices_are_those_along_the_chosen_axis_and_the_batch_the_planned_one(plan: Planner) -> None:
    _, key = plan("VerSe", slice_axis="x", batch=7)  # 300 + 300 + 290 slices: 128 batches of 7
    assert (key.iterations, key.epochs, key.slices) == (100 * 128, 100, 890)
    assert (key.recipe.iterations_per_epoch, key.recipe.validation_iterations) == (128, 50)


def test_a_budget_by_the_user_replaces_the_epochs(plan: Planner, capsys: pytest.CaptureFixture[str]) -> None:
    _, key = plan(iterations=77)
    assert (key.iterations, key.epochs, key.slices, key.origin["iterations"]) == (77, None, 41, "user")
    assert key.recipe.iterations_per_epoch == 11 and "iterations" not in key.reasons
    assert "epochs" not in capsys.readouterr().out
    _, key = plan(epochs=3, recipe={"iterations_per_epoch": 5})
    assert (key.iterations, key.epochs, key.origin["iterations"]) == (33, 3, "user")
    assert (key.recipe.iterations_per_epoch, key.recipe.validation_iterations) == (5, 5)
    printed = capsys.readouterr().out
    assert "iterations  33  [user]" in printed and "epochs      3" in printed and "over 41 slices" in printed


def test_variants_without_epochs_count_iterations_unless_asked(plan: Planner) -> None:
    _, key = plan(planner=f"{PLANNER}_nnunet")
    assert (key.iterations, key.epochs, key.recipe.iterations_per_epoch) == (250000, None, 250)
    _, key = plan(planner=f"{PLANNER}_nnunet", epochs=2)
    assert (key.iterations, key.epochs, key.recipe.iterations_per_epoch) == (22, 2, 11)
    with fails("option-dimension", "--iterations"):
        plan(planner="FMPlanner_stunet_s", epochs=2)


# The axis of slices


@pytest.mark.parametrize(
    ("given", "orientations", "axis"),
    [
        (1, {}, 1),
        ("2", {}, 2),
        ("Y", {}, 1),
        ("axial", {"RAS": 2}, 0),
        ("coronal", {"RAS": 2, "LPS": 1}, 1),
        ("sagittal", {"LPI": 2}, 2),
        ("coronal", {"RSA": 1}, 0),  # x to the right, y up, z forward
        ("sagittal", {"ASR": 1}, 0),
        ("axial", {"ASR": 1, "PIL": 4}, 1),
    ],
)
def test_names_of_slice_axes(given: object, orientations: dict[str, int], axis: int) -> None:
    assert slice_axis(given, orientations) == axis


@pytest.mark.parametrize(
    ("conversion", "expected"),
    [
        ("{", ("json-invalid",)),
        ("[1]", ("conversion-form",)),
        ('{"slice_axis": 3}', ("slice-axis", "0", "1", "2")),
        ('{"slice_axis": true}', ("slice-axis",)),
        ('{"slice_axis": [1]}', ("slice-axis",)),
        ('{"slice_axis": "oblique"}', ("slice-axis", "oblique")),
    ],
)
def test_a_faulty_conversion_file_is_named(plan: Planner, conversion: str, expected: tuple[str, ...]) -> None:
    with fails(*expected, "conversion.json"):
        plan(conversion=conversion)


def test_a_plane_needs_to_know_how_the_images_lie(plan: Planner) -> None:
    """SimpleITK's default direction is LPS; the axes of the array are (z, y, x)."""
    configuration, key = plan(conversion='{"slice_axis": "coronal", "source": "x"}')
    assert configuration["transpose"] == [1, 0, 2] and key.origin["slice_axis"] == "dataset"
    assert plan(slice_axis="sagittal", conversion="{}")[0]["transpose"] == [2, 0, 1]
    assert plan(conversion="{}")[1].origin["slice_axis"] == "data"
    with pytest.raises(ValueError, match="no direction"):
        slice_axis("coronal", {})
    with pytest.raises(ValueError, match="3 RAS, 1 RSA"):
        slice_axis("coronal", {"RAS": 3, "RSA": 1})
    with fails("slice-axis", "--slice-axis", "oblique"):
        plan(slice_axis="oblique")


def moved(first: list[float], axis: int) -> list[float]:
    """A list with its first element at another place, the others in their order."""
    return [*first[1 : axis + 1], first[0], *first[axis + 1 :]]


def test_a_rotated_copy_gives_the_same_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same anatomy stored along other axes: equal plans, and equal slices to the last bit."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    # nnU-Net's pools as threads: starting processes would take most of a minute.
    monkeypatch.setattr("multiprocessing.get_context", lambda _: SimpleNamespace(Pool=ThreadPool, Event=Event))
    planned, slices = [], []
    for number, axis in ((511, 1), (512, 2)):
        folder = write_dataset(variables["nnUNet_raw"], number, name="HCP", cases=0, test_cases=0, numTraining=2)
        (folder / "conversion.json").write_text(json.dumps({"slice_axis": "zyx"[axis]}))
        rng = np.random.default_rng(5)
        for case in range(2):
            image, labels = blobs((9, 18 + case, 26), 2, rng)
            image[:, :3] = 0  # nnU-Net crops what is empty
            spacing = moved([0.5, 0.8, 1.1], axis)  # the slices are not across the thick axis
            write_image(folder / "imagesTr" / f"case_{case}_0000.nii.gz", np.moveaxis(image, 0, axis), spacing)
            write_image(folder / "labelsTr" / f"case_{case}.nii.gz", np.moveaxis(labels, 0, axis), spacing)
        extract_fingerprint(number)
        plans = planner_class(PLANNER)(number, 40).plan_experiment()
        preprocess_dataset(number, plans["plans_name"], ["2d"], [1], show_progress_bar=False)
        assert plans["transpose_forward"][0] == axis
        key = PlanKey.read(plans)
        assert key is not None and key.slices == 18 and key.origin["slice_axis"] == "dataset"
        configuration = plans["configurations"]["2d"]
        planned.append(({**configuration, "data_identifier": ""}, key.model_copy(update={"reasons": {}})))
        written = Path(variables["nnUNet_preprocessed"], folder.name, configuration["data_identifier"])
        cases = infer_dataset_class(str(written))(str(written), ["case_0", "case_1"])
        slices.append([np.array(array[:]) for case in cases.identifiers for array in cases.load_case(case)[:2]])
    assert planned[0] == planned[1] and planned[0][0]["spacing"] == [0.7, 0.7]
    assert slices[0][0].shape == (1, 9, 17, 41)  # 15 rows of 0.8 mm are left
    for one, other in zip(*slices, strict=True):
        np.testing.assert_array_equal(one, other)
