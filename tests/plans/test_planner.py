"""The planner on fingerprints of many kinds: geometry, budget, intensities, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from nnunet_fm.models.names import VARIANTS
from nnunet_fm.models.registry import cards
from nnunet_fm.planfile.schema import PlanKey
from nnunet_fm.plans.choice import choose_model
from nnunet_fm.plans.geometry import orient_spacing
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.preprocessing.preprocessor import data_identifier
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails

Planner = Callable[..., dict[str, Any]]
ABDOMEN = {"shapes": [(140, 512, 512)] * 3, "spacings": [(5.0, 0.8, 0.8), (3.0, 0.7, 0.7), (5.0, 0.9, 0.9)]}
AORTA = {"shapes": [(700, 450, 450)] * 3, "spacings": [(1.0, 1.0, 1.0)] * 3}
SAGITTAL = {"shapes": [(400, 400, 60)] * 3, "spacings": [(0.9, 0.9, 3.3)] * 3}
HIPPOCAMPUS = {"shapes": [(36, 50, 35), (34, 52, 38), (38, 48, 34)], "spacings": [(1.0, 1.0, 1.0)] * 3}

SLICED = "FMPlanner_dinov2_s_linear_freeze"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Plan a dataset of given shapes and spacings, of which only the fingerprint exists."""
    variables = nnunet_folders(tmp_path, monkeypatch)

    def run(
        planner: str,
        data: dict[str, Any],
        *,
        name: str = "Blobs",
        channels: tuple[str, ...] = ("CT",),
        memory: float = 40,
        labels: Any = None,
        options: Options | None = None,
        plans_name: str | None = None,
        conversion: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        folder = write_dataset(
            variables["nnUNet_raw"],
            501,
            cases=1,
            test_cases=0,
            name=name,
            channels=channels,
            labels=labels,
            shape=(8, 8, 8),
        )
        if conversion is not None:
            (folder / "conversion.json").write_text(json.dumps(conversion))
        write_fingerprint(folder, data["shapes"], data["spacings"])
        made = planner_class(planner)(501, memory, plans_name=plans_name, options=options)
        plans = made.plan_experiment()
        written = Path(variables["nnUNet_preprocessed"], folder.name, f"{plans['plans_name']}.json")
        assert json.loads(written.read_text()) == json.loads(json.dumps(plans))
        return plans

    return run


def test_mission_geometry_of_axial_ct(plan: Planner) -> None:
    plans = plan("FMPlanner_stunet_b", ABDOMEN)
    configuration = plans["configurations"]["3d_fullres"]
    assert list(plans["configurations"]) == ["3d_fullres"]
    assert configuration["spacing"] == [2.0, 1.5, 1.5]
    assert plans["transpose_forward"] == plans["transpose_backward"] == [0, 1, 2]
    assert configuration["patch_size"] == [128, 128, 128]
    assert configuration["architecture"]["arch_kwargs"]["strides"][0] == [1, 1, 1]
    assert configuration["resampling_fn_probabilities"] == "resample_torch_fornnunet"
    assert configuration["preprocessor_name"] == "FMPreprocessor"
    key = PlanKey.read(plans)
    assert key is not None and key.model == "stunet_b" and key.origin["spacing"] == "mission"


def test_thick_axis_x_gets_the_two_millimetres(plan: Planner) -> None:
    plans = plan("FMPlanner_stunet_s", SAGITTAL)
    assert plans["configurations"]["3d_fullres"]["spacing"] == [1.5, 1.5, 2.0]
    assert plans["transpose_forward"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("median", "expected"),
    [
        ([5.0, 0.8, 0.8], [2.0, 1.5, 1.5]),
        ([0.8, 5.0, 0.8], [1.5, 2.0, 1.5]),
        ([0.9, 0.9, 3.3], [1.5, 1.5, 2.0]),
        ([1.0, 1.0, 1.2], [2.0, 1.5, 1.5]),  # not thicker than the next by more than 1.25
        ([1.0, 1.0, 1.0], [2.0, 1.5, 1.5]),
    ],
)
def test_orientation_of_the_target_spacing(median: list[float], expected: list[float]) -> None:
    assert orient_spacing([2.0, 1.5, 1.5], median) == expected


def test_spacing_stays_native_where_the_target_would_destroy_the_data(plan: Planner) -> None:
    plans = plan("FMPlanner_stunet_s", HIPPOCAMPUS, channels=("MRI",))
    configuration, key = plans["configurations"]["3d_fullres"], PlanKey.read(plans)
    assert configuration["spacing"] == [1.0, 1.0, 1.0]
    assert key is not None and key.origin["spacing"] == "data" and "18×33×23" in key.reasons["spacing"]
    assert configuration["patch_size"] == [40, 56, 40]  # the median image, rounded up to what the network takes
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]


def test_thick_slices_are_no_reason_to_stay_native(plan: Planner) -> None:
    """12 slices of 6 mm become 36 of 2 mm: finer, so nothing is lost."""
    plans = plan("FMPlanner_stunet_s", {"shapes": [(12, 320, 320)], "spacings": [(6.0, 1.0, 1.0)]})
    assert plans["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.5, 1.5]


@pytest.mark.parametrize(
    ("model", "dataset", "expected"),
    [("stunet_b", "AortaSeg24", 20000), ("stunet_b", "HaNSeg", 12000), ("vanilla_unet3d", "AortaSeg24", 8970),
     ("vanilla_unet3d", "HaNSeg", 7470), ("vanilla_unet3d", "Other", 8970)],
)  # fmt: skip
def test_published_iterations(plan: Planner, model: str, dataset: str, expected: int) -> None:
    key = PlanKey.read(plan(f"FMPlanner_{model}", AORTA, name=dataset))
    assert key is not None and key.iterations == expected and key.origin["iterations"] == "mission"


SMALLEST = list({card.family: name for name, card in reversed(cards().items())}.values())
"""One model of each family: the others differ in size."""

OTHERWISE = [
    (m, v)
    for m, v in product(SMALLEST, VARIANTS)
    if cards()[m].variants.get(v, cards()[m].variants["mission"]) != cards()[m].variants["mission"]
    if cards()[m].dim == 3 or m == "dinov2_s"
]
"""Variants of their own; those of 2D models are alike."""


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        *((m, None) for m in SMALLEST),
        *OTHERWISE,
        *(pytest.param(m, None, marks=pytest.mark.slow) for m in cards() if m not in SMALLEST),
    ],
)
def test_every_model_and_variant_plans(plan: Planner, model: str, variant: str | None) -> None:
    card = cards()[model]
    parts = "_linear_freeze" if card.heads else ""  # the smallest head; all others are planned alike
    name = f"FMPlanner_{model}{parts}" + (f"_{variant}" if variant else "")
    plans = plan(
        name, AORTA, channels=("CT", "PET"), memory=1000
    )  # enough to predict once, not for every smaller patch
    assert plans["plans_name"] == name.replace("FMPlanner", "FMPlans")
    (configuration,) = plans["configurations"].values()
    assert len(configuration["patch_size"]) == len(configuration["spacing"]) == card.dim
    assert configuration["data_identifier"] == data_identifier(plans, card.configuration)
    assert len(configuration["normalization_schemes"]) == 2
    assert PlanKey.read(plans) is not None


def test_official_and_nnunet_variants_differ_as_said(plan: Planner) -> None:
    official = plan("FMPlanner_stunet_b_official", AORTA)["configurations"]["3d_fullres"]
    assert official["spacing"] == [1.5, 1.5, 1.5] and official["patch_size"] == [128, 128, 128]
    stock = plan("FMPlanner_stunet_b_nnunet", AORTA)["configurations"]["3d_fullres"]
    assert stock["spacing"] == [1.0, 1.0, 1.0]
    assert stock["normalization_schemes"] == ["CTNormalization"]
    assert plan("FMPlanner_stunet_b_thesis", AORTA)["configurations"]["3d_fullres"]["normalization_schemes"] == [
        "ScaleIntensity"
    ]


def test_options_win_over_the_card(plan: Planner) -> None:
    options = Options(iterations=77, spacing=[3.0, 1.0, 1.0], patch=[64, 96, 96], batch=1, recipe={"loss": "ce"})
    plans = plan("FMPlanner_stunet_s", AORTA, options=options, plans_name="FMPlans_mine")
    configuration, key = plans["configurations"]["3d_fullres"], PlanKey.read(plans)
    assert (configuration["spacing"], configuration["patch_size"], configuration["batch_size"]) == (
        [3.0, 1.0, 1.0], [64, 96, 96], 1)  # fmt: skip
    assert key is not None and key.iterations == 77 and key.recipe.loss == "ce"
    assert {key.origin[k] for k in ("spacing", "patch_size", "batch_size", "iterations")} == {"user"}
    native = plan("FMPlanner_stunet_s", AORTA, options=Options(spacing="native"), plans_name="FMPlans_native")
    assert native["configurations"]["3d_fullres"]["spacing"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("planner", "options", "expected"),
    [
        ("FMPlanner_stunet_s", Options(patch=[65, 96, 96]), ("patch-illegal",)),
        ("FMPlanner_stunet_s", Options(patch=[64, 64]), ("patch-illegal", "3")),
        ("FMPlanner_stunet_s", Options(spacing=[1.0, -1.0, 1.0]), ("spacing-invalid",)),
        ("FMPlanner_stunet_s", Options(slice_axis=1), ("option-dimension",)),
        ("FMPlanner_stunet_s", Options(recipe={"los": "ce"}), ("recipe-field", "recipe.los")),
        ("FMPlanner_stunet_s", Options(recipe={"loss": "hinge"}), ("recipe-field", "recipe.loss")),
        ("FMPlanner_stunet_s", Options(network={"widths": [4]}), ("argument-unknown",)),
        ("FMPlanner_stunet_s", Options(weights="base"), ("weights-unknown", "base", "stunet_small_totalsegmentator")),
        ("FMPlanner_spadnet", Options(network={"spad_patch_depth": 3}), ("argument-value", "3")),
    ],
)
def test_illegal_options_are_explained(
    plan: Planner, planner: str, options: Options, expected: tuple[str, ...]
) -> None:
    with fails(*expected):
        plan(planner, AORTA, options=options)


@pytest.mark.parametrize(
    "planner", ["FMPlanner_stunet_s", "FMPlanner_dinov2_s_linear_freeze", "FMPlanner_suprem_thesis"]
)
def test_portable_plans_use_stock_names_only(plan: Planner, planner: str) -> None:
    plans = plan(planner, AORTA, channels=("CT", "T1"), options=Options(portable=True))
    (configuration,) = plans["configurations"].values()
    stock = {"CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization"}
    assert set(configuration["normalization_schemes"]) <= stock
    text = json.dumps({k: v for k, v in configuration.items() if k != "architecture"})
    assert "FMPreprocessor" not in text and "fm_resample" not in text
    fallen_back = planner != "FMPlanner_stunet_s"
    assert ("intensities" in plans["nnunet_fm"]["reasons"]) == fallen_back


def test_network_arguments_follow_spacing_patch_and_user(plan: Planner) -> None:
    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return plan(*args, **kwargs)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]

    auto = {"network": {"spad_patch_depth": "auto"}}
    assert arguments("FMPlanner_spadnet", AORTA)["spad_patch_depth"] == 4  # as published
    assert arguments("FMPlanner_spadnet", AORTA, options=Options(**auto))["spad_patch_depth"] == 16
    thick = Options(spacing=[6.0, 1.0, 1.0], **auto)
    assert arguments("FMPlanner_spadnet", AORTA, options=thick, plans_name="FMPlans_t")["spad_patch_depth"] == 4
    assert arguments("FMPlanner_misfm", AORTA)["patch_size"] == [64, 128, 128]
    small = Options(patch=[32, 64, 64])
    assert arguments("FMPlanner_misfm", AORTA, options=small, plans_name="FMPlans_s")["patch_size"] == [32, 64, 64]


@pytest.mark.parametrize(
    ("model", "patch", "aortaseg24", "hanseg"),
    [
        ("misfm", [64, 128, 128], 20000, 12000),
        ("spadnet", [96, 96, 96], 30090, 17970),
        ("swinmm", [64, 64, 64], 20000, 12000),
        ("dae", [96, 96, 96], 20000, 12000),
        ("suprem", [96, 96, 96], 5970, 4470),
        ("stunet_b", [128, 128, 128], 20000, 12000),
        ("vanilla_unet3d", [128, 128, 128], 8970, 7470),
    ],
)
def test_the_table_of_the_mission(model: str, patch: list[int], aortaseg24: int, hanseg: int) -> None:
    card = cards()[model]
    for variant in ("mission", "thesis"):
        geometry = card.variants[variant].geometry  # type: ignore[index]
        assert (geometry.spacing, geometry.patch) == ([2.0, 1.5, 1.5], patch)
        assert card.variants[variant].iterations is None  # type: ignore[index]
    assert card.iterations == {"aortaseg24": aortaseg24, "hanseg": hanseg, "default": aortaseg24}


def test_slice_axis_from_data_converter_and_user(plan: Planner) -> None:
    assert plan(SLICED, SAGITTAL)["transpose_forward"] == [2, 0, 1]
    assert plan(SLICED, SAGITTAL, conversion={"slice_axis": 1})["transpose_forward"] == [1, 0, 2]
    by_user = plan(SLICED, SAGITTAL, options=Options(slice_axis=0), conversion={"slice_axis": 1})
    assert by_user["transpose_forward"] == [0, 1, 2]
    assert plan(SLICED, SAGITTAL)["transpose_backward"] == [1, 0, 2]


def test_a_spacing_by_the_user_names_the_axes_of_the_image(plan: Planner) -> None:
    three = plan(SLICED, SAGITTAL, options=Options(spacing=[0.5, 0.7, 3.0]))
    two = plan(SLICED, SAGITTAL, options=Options(spacing=[0.5, 0.7]))
    assert three["transpose_forward"] == [2, 0, 1]
    assert three["configurations"]["2d"]["spacing"] == two["configurations"]["2d"]["spacing"] == [0.5, 0.7]


def test_padding_is_air_in_every_window() -> None:
    """nnU-Net pads images with 0 in training and prediction: that is the darkest value wherever values have bounds."""
    bounded = ("window", "percentile", "minmax")
    for card in cards().values():
        for name, variant in card.variants.items():
            intensity = variant.intensity
            if intensity.ct in bounded or intensity.other in bounded:
                assert intensity.range == (0, 1), (card.name, name)


def test_patches_of_every_default_show_foreground() -> None:
    """Of many small classes, patches that lie anywhere show next to nothing."""
    for card in cards().values():
        recipe = card.variants["mission"].recipe
        assert recipe.sampling == "rare_class" or recipe.oversample_foreground >= 0.3, card.name
    assert cards()["misfm"].variants["official"].recipe.oversample_foreground == 0  # as published


def test_the_network_shifts_what_is_scaled_to_the_unit_range(plan: Planner) -> None:
    planned = plan("FMPlanner_spadnet", AORTA)
    (entry,) = planned["configurations"].values()
    numbers = planned["foreground_intensity_properties_per_channel"]["0"]
    assert entry["normalization_schemes"] == ["CTNormalization"]
    assert [(hu - numbers["mean"]) / numbers["std"] for hu in (-175, 250)] == pytest.approx([0, 1])
    assert entry["architecture"]["arch_kwargs"]["unit_channels"] == [0]
    (entry,) = plan("FMPlanner_spadnet_nnunet", AORTA)["configurations"].values()
    assert entry["architecture"]["arch_kwargs"]["unit_channels"] == []


def test_inputs_of_photograph_models_say_their_range(plan: Planner) -> None:
    unit = plan(SLICED, AORTA)["configurations"]["2d"]
    assert unit["normalization_schemes"] == ["FMPercentileNormalization"]
    assert unit["architecture"]["arch_kwargs"]["input_range"] == "unit"
    stock = plan(f"{SLICED}_nnunet", AORTA)["configurations"]["2d"]
    assert stock["architecture"]["arch_kwargs"]["input_range"] == "standardised"


@pytest.mark.parametrize(
    "planner",
    [
        "FMPlanner_stunet_b",
        pytest.param("FMPlanner_dinov2_b_linear_full", marks=pytest.mark.slow),
        pytest.param("FMPlanner_vanilla_unet3d", marks=pytest.mark.slow),
    ],
)
def test_less_memory_never_gives_a_larger_plan(plan: Planner, planner: str) -> None:
    voxels = []
    for memory in (3, 8, 40):
        plans = plan(planner, AORTA, memory=memory, plans_name=f"FMPlans_{memory}")
        (configuration,) = plans["configurations"].values()
        edges = configuration["patch_size"]
        size = configuration["batch_size"]
        for edge in edges:
            size *= edge
        voxels.append((size, edges))
    assert voxels[0][0] <= voxels[1][0] <= voxels[2][0]
    assert all(a <= b for smaller, larger in pairwise(voxels)
               for a, b in zip(smaller[1], larger[1], strict=True))  # fmt: skip


def test_the_split_of_a_converter_goes_where_nnunet_looks_for_it(plan: Planner, tmp_path: Path) -> None:
    """nnU-Net's planner, under ours, copies it; one that is there stays, with the folds that it has besides."""
    raw, fold = tmp_path / "nnUNet_raw" / "Dataset501_Blobs", {"train": ["case_00"], "val": ["case_01"]}
    raw.mkdir(parents=True)
    (raw / "splits_final.json").write_text(json.dumps([fold]))
    plan("FMPlanner_stunet_s", HIPPOCAMPUS)
    (found,) = (tmp_path / "nnUNet_preprocessed").glob("*/splits_final.json")
    assert json.loads(found.read_text()) == [fold]
    found.write_text(json.dumps([fold, fold]))
    plan("FMPlanner_stunet_s", HIPPOCAMPUS)
    assert json.loads(found.read_text()) == [fold, fold]


def test_a_plan_with_trained_models_is_not_replaced(plan: Planner, tmp_path: Path) -> None:
    plan("FMPlanner_stunet_s", AORTA)
    fold = tmp_path / "nnUNet_results" / "Dataset501_Blobs" / "fm_trainer__FMPlans_stunet_s__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_best.pth").touch()
    plan("FMPlanner_stunet_s", AORTA)  # the same plan again is no change
    with fails("plan-trained", "--force"):
        plan("FMPlanner_stunet_s", AORTA, options=Options(iterations=5))
    assert plan("FMPlanner_stunet_s", AORTA, options=Options(iterations=5, force=True))["nnunet_fm"]["iterations"] == 5


def test_configurations_of_an_older_file_are_not_merged(plan: Planner, tmp_path: Path) -> None:
    first = plan("FMPlanner_stunet_s", AORTA)
    file = tmp_path / "nnUNet_preprocessed" / "Dataset501_Blobs" / "FMPlans_stunet_s.json"
    first["configurations"]["3d_lowres"] = first["configurations"]["3d_fullres"]
    file.write_text(json.dumps(first))
    assert list(plan("FMPlanner_stunet_s", AORTA)["configurations"]) == ["3d_fullres"]


def test_unknown_keys_and_versions_of_the_extra_entry_are_refused(plan: Planner) -> None:
    plans = plan("FMPlanner_stunet_s", AORTA)
    plans["nnunet_fm"]["model_size"] = "b"
    with fails("plan-field", "model_size"):
        PlanKey.read(plans)
    plans["nnunet_fm"] = {"version": 2}
    with fails("plan-version", "2"):
        PlanKey.read(plans)
    assert PlanKey.read({"plans_name": "nnUNetPlans"}) is None


def test_the_same_preprocessing_shares_an_identifier(plan: Planner) -> None:
    small = plan("FMPlanner_stunet_s", AORTA)["configurations"]["3d_fullres"]["data_identifier"]
    base = plan("FMPlanner_stunet_b", AORTA)["configurations"]["3d_fullres"]["data_identifier"]
    thesis = plan("FMPlanner_stunet_s_thesis", AORTA)["configurations"]["3d_fullres"]["data_identifier"]
    assert small == base != thesis


MANY = {"background": 0, **{f"zone {i}": i for i in range(1, 24)}}
FEW = {"background": 0, "liver": 1}
THICK = {"shapes": [(60, 320, 320)] * 3, "spacings": [(2.5, 1.0, 1.0)] * 3}
SMALL = {"shapes": [(80, 90, 85)] * 3, "spacings": [(1.5, 1.5, 1.5)] * 3}
ISOTROPIC = {"shapes": [(256, 256, 256)] * 3, "spacings": [(1.0, 1.0, 1.0)] * 3}
SLICES = {"shapes": [(12, 320, 320)], "spacings": [(6.0, 0.6, 0.6)]}
SINGLE = {"shapes": [(1, 512, 512)], "spacings": [(1.0, 1.0, 1.0)]}
FINGERPRINTS = [
    (AORTA, "CT", MANY, 40.0, "stunet_l", "stunet_l"),
    (AORTA, "CT", MANY, 10.0, "stunet_b", "stunet_b"),
    (AORTA, "CT", FEW, 4.0, "stunet_s", "stunet_s"),
    (AORTA, "CT", FEW, 10.0, "dae", "suprem"),
    (HIPPOCAMPUS, "MRI", None, 8.0, "stunet_s", "stunet_s"),
    (ISOTROPIC, "T1", None, 8.0, "misfm", "misfm"),
    (THICK, "CT", MANY, 10.0, "stunet_b", "spadnet"),
    (SMALL, "CT", MANY, 10.0, "stunet_b", "swinmm"),
    (SLICES, "MRI", None, 8.0, "dinov2_b", "dinov2_b"),
    (SINGLE, "MRI", None, 8.0, "dinov2_b", "dinov2_b"),
]
"""Data, channel, labels, GB, and the model chosen without any file at hand, and with all of them."""


@pytest.mark.parametrize("at_hand", [False, True])
@pytest.mark.parametrize(("data", "channel", "labels", "memory", "without", "with_files"), FINGERPRINTS)
def test_the_planner_alone_chooses_with_a_reason(
    data: dict[str, Any], channel: str, labels: Any, memory: float, without: str, with_files: str, at_hand: bool,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path))
    for card in cards().values():
        if at_hand and card.checkpoint is not None:
            file = tmp_path / card.checkpoint.files[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"seeded")
    fingerprint = {"shapes_after_crop": data["shapes"], "spacings": data["spacings"]}
    dataset_json = {"channel_names": {"0": channel}, "labels": labels or FEW}
    model, reason = choose_model(fingerprint, dataset_json, memory_gb=memory)
    assert model == (with_files if at_hand else without)
    assert len(reason) > 40 and cards()[model].weights_licence in reason
    if not at_hand and without != with_files:
        assert f"{with_files} would come first" in reason or f"{with_files}, " in reason


def test_the_choice_is_planned(plan: Planner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path))
    plans = plan("FMPlanner", HIPPOCAMPUS, channels=("MRI",))
    key = PlanKey.read(plans)
    assert plans["plans_name"] == "FMPlans" and key is not None and key.model == "stunet_s"
    assert "small images" in key.reasons["model"]


def test_weights_at_hand_decide_between_equals(plan: Planner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NNUNET_FM_WEIGHTS", str(tmp_path))
    (tmp_path / "small_ep4k.model").write_bytes(b"seeded")
    key = PlanKey.read(plan("FMPlanner", AORTA, labels=MANY, memory=10))
    assert key is not None and key.model == "stunet_s" and key.weights["backbone"].sha256


def test_photographs_are_planned_in_2d(plan: Planner) -> None:
    """nnU-Net's 2D readers give a spacing of 999 mm to the axis that is not there."""
    photographs = {"shapes": [(1, 300, 400)] * 3, "spacings": [(999.0, 1.0, 1.0)] * 3}
    plans = plan("FMPlanner", photographs, channels=("R", "G", "B"))
    assert plans["transpose_forward"] == [0, 1, 2] and plans["nnunet_fm"]["model"] == "dinov2_b"
    assert plans["configurations"]["2d"]["spacing"] == [1.0, 1.0]
    assert plans["configurations"]["2d"]["patch_size"] == [256, 256]


def test_a_single_slice_is_refused_by_3d_models(plan: Planner) -> None:
    with fails("images-flat"):
        plan("FMPlanner_stunet_s", {"shapes": [(1, 512, 512)], "spacings": [(1.0, 1.0, 1.0)]})
