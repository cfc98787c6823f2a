"""Plans of `nnunet-fm adapt`: what is checked before anything is written, what is written, and how it is found."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nnunet_fm.cli.app import app
from nnunet_fm.hook.short_form import expand
from nnunet_fm.models.names import Spec
from nnunet_fm.planfile.schema import PlanKey
from nnunet_fm.planfile.trained_model import read_source
from nnunet_fm.planfile.training_config import resolve
from nnunet_fm.plans.adapt import AdaptOptions, check_domains, plan_adaptation
from nnunet_fm.plans.planner import Options, planner_class
from nnunet_fm.preprocessing.preprocessor import data_identifier
from nnunet_fm.trainers.selftraining import fm_trainer_selftraining
from nnunet_fm.weights.cache import compute_sha256
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint
from tests.helpers.errors import fails
from tests.helpers.results_maker import write_record

SHAPES = [(30, 40, 36), (33, 44, 36), (32, 42, 40)]
SPACINGS = [(1.0, 1.0, 1.0)] * 3
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """nnUNet_raw with a source and a target; both have fingerprints that differ in everything."""
    variables = nnunet_folders(tmp_path, monkeypatch)
    for number, name in ((801, "Source"), (802, "Zïel")):
        folder = write_dataset(variables["nnUNet_raw"], number, name=name, shape=(8, 8, 8), cases=3)
        write_fingerprint(folder, SHAPES if number == 801 else SHAPES[:2], SPACINGS[: 3 if number == 801 else 2])
    yield Path(variables["nnUNet_raw"])


@cache
def plan_source(planner: str, options: str) -> str:
    """The plan of the source, which is the same in every test, as JSON."""
    made = planner_class(planner)(801, 40, options=Options(**json.loads(options)))
    return json.dumps(made.plan_experiment())


def train(planner: str, trainer: str = "fm_trainer", plans: dict[str, Any] | None = None, **options: Any) -> Path:
    """The folder that a training leaves, with a checkpoint without weights; returns it."""
    plans = json.loads(plan_source(planner, json.dumps(options)) if plans is None else json.dumps(plans))
    configuration = list(plans["configurations"])[-1]
    results = Path(_folder("results"), plans["dataset_name"])
    folder = results / f"{trainer}__{plans['plans_name']}__{configuration}"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(Path(_folder("raw"), plans["dataset_name"], "dataset.json"), folder)
    content = {"trainer_name": trainer, "init_args": {"configuration": configuration}, "network_weights": {}}
    torch.save(content, folder / "fold_0" / "checkpoint_best.pth")
    return folder


def _folder(which: str) -> str:
    return os.environ[f"nnUNet_{which}"]


def change(raw: Path, number: int, **content: Any) -> None:
    (file,) = raw.glob(f"Dataset{number}_*/dataset.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def written() -> list[str]:
    return sorted(p.name for p in Path(_folder("preprocessed")).glob("Dataset802_*/*") if "fingerprint" not in p.name)


def adapt(folder: Path, method: Any = "selftraining", **options: Any) -> dict[str, Any]:
    return plan_adaptation(folder, 802, AdaptOptions(method, **options)).plans


# What is written


def test_a_2d_plan(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear", epochs=3)
    source = json.loads((folder / "plans.json").read_text())
    adapted = plan_adaptation(folder, 802, AdaptOptions("selftraining", seed=7))
    plans, key = adapted.plans, PlanKey.read(adapted.plans)
    assert json.loads(adapted.path.read_text()) == plans
    assert adapted.path.name == "FMPlans_dinov2_s_linear_rein_lora_from_801_selftraining.json"
    assert adapted.path.parent.name == plans["dataset_name"] == "Dataset802_Zïel"
    mine, theirs = plans["configurations"]["2d"], source["configurations"]["2d"]
    assert mine == {**theirs, "data_identifier": mine["data_identifier"]}
    assert mine["data_identifier"] == data_identifier(plans, "2d")
    intensities = "foreground_intensity_properties_per_channel"
    assert plans[intensities] == source[intensities]
    assert plans["original_median_shape_after_transp"] == [32, 42, 36]
    assert key is not None and key.adaptation is not None
    assert (key.model, key.head, key.adapter) == ("dinov2_s", "linear", "rein_lora")
    # 20 epochs over the 30 + 33 slices of the target, four at a time
    assert (key.slices, key.epochs, key.iterations, key.recipe.iterations_per_epoch) == (63, 20, 20 * 16, 16)
    assert (key.recipe.loss, key.recipe.sampling, key.recipe.oversample_foreground) == ("ce", "nnunet", 0)
    assert key.recipe.seed == 7 and key.recipe.volume_dice_every == 1 and key.recipe.augmentation == "slices"
    assert key.adaptation.source == "Dataset801_Source" and key.adaptation.labelled == 3
    assert key.adaptation.sha256 == compute_sha256(folder / "fold_0" / "checkpoint_best.pth")
    assert Path(key.adaptation.model_folder) == folder
    assert "dataset.json" in written()
    assert resolve(plans, fm_trainer_selftraining.spec).parts == ()


def test_methods_share_preprocessed_data(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    one, two = adapt(folder), adapt(folder, "entropymin")
    assert one["plans_name"] != two["plans_name"]
    assert one["configurations"]["2d"]["data_identifier"] == two["configurations"]["2d"]["data_identifier"]
    key = PlanKey.read(two)
    assert key is not None and key.adaptation is not None
    assert (key.epochs, key.adaptation.labelled) == (2, 0)


def test_the_rate_of_slices_is_the_target_s(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear_full")
    (raw / "Dataset802_Zïel").rename(raw / "Dataset802_VerSe")
    (raw.parent / "nnUNet_preprocessed" / "Dataset802_Zïel").rename(
        raw.parent / "nnUNet_preprocessed" / "Dataset802_VerSe"
    )
    assert adapt(folder)["nnunet_fm"]["recipe"]["learning_rate"] == 1e-5  # where the source's is 2e-5
    by_user = train("FMPlanner_dinov2_s_linear_full", "fm_trainer_scratch")
    assert adapt(by_user, name="FMPlans_a")["nnunet_fm"]["recipe"]["learning_rate"] == 5e-4
    assert (
        adapt(folder, name="FMPlans_b", recipe={"learning_rate": 3e-3})["nnunet_fm"]["recipe"]["learning_rate"] == 3e-3
    )


def test_a_rate_of_the_source_s_user_is_kept(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear_full", recipe={"learning_rate": 0.01})
    assert adapt(folder)["nnunet_fm"]["recipe"]["learning_rate"] == 0.01


def test_a_3d_plan(raw: Path) -> None:
    folder = train("FMPlanner_stunet_s", patch=[16, 16, 32], spacing=[1, 1, 1])
    plans = adapt(folder, iterations=None)
    key = PlanKey.read(plans)
    assert key is not None
    # patches of 16 x 16 x 32 voxels that hold volumes of 30 x 40 x 36 and 33 x 44 x 36
    samples = math.ceil((30 * 40 * 36 + 33 * 44 * 36) / (16 * 16 * 32))
    assert key.slices is None and key.iterations == 20 * math.ceil(samples / 2)
    assert key.recipe.learning_rate == pytest.approx(1e-4) and plans["transpose_forward"] == [0, 1, 2]


def test_the_trainer_s_name_counts(raw: Path) -> None:
    """Head and adapter are what was trained, whatever the source's plan says."""
    plans = adapt(train("FMPlanner_dinov2_s_linear", "fm_trainer_segformer_freeze"))
    assert plans["plans_name"].startswith("FMPlans_dinov2_s_segformer_freeze_from_801")
    assert plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["head"] == "segformer"


def test_a_pinned_trainer_on_stock_plans(raw: Path) -> None:
    base = json.loads(plan_source("FMPlanner_stunet_s", json.dumps({"patch": [16, 16, 32], "spacing": [1, 1, 1]})))
    stock = {k: v for k, v in base.items() if k != "nnunet_fm"} | {"plans_name": "nnUNetPlans"}
    entry = stock["configurations"].pop("3d_fullres")
    kept = ("patch_size", "batch_size", "data_identifier")
    stock["configurations"] = {
        "3d_lowres": {k: v for k, v in entry.items() if k not in kept} | {"preprocessor_name": "DefaultPreprocessor"},
        "3d_fullres": {"inherits_from": "3d_lowres", **{k: entry[k] for k in kept}},
    }
    plans = adapt(train("", "fm_trainer_stunet_s", stock))
    mine = plans["configurations"]["3d_fullres"]
    assert list(plans["configurations"]) == ["3d_fullres"] and "inherits_from" not in mine
    assert mine["architecture"]["network_class_name"].startswith("nnunet_fm.")
    assert mine["preprocessor_name"] == "FMPreprocessor" and mine["data_identifier"].startswith("fm_3d_fullres")
    assert plans["nnunet_fm"]["model"] == "stunet_s" and plans["nnunet_fm"]["variant"] == "nnunet"


def test_the_faithful_procedure(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    plans = adapt(folder, "entropymin", faithful=True)
    assert plans["plans_name"].endswith("entropymin_faithful") and plans["nnunet_fm"]["recipe"]["faithful"]
    with fails("option-conflict"):
        adapt(folder, faithful=True, update_every=2)


def test_another_fold_and_the_final_checkpoint(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    (folder / "fold_0").rename(folder / "fold_2")
    (folder / "fold_2" / "checkpoint_best.pth").rename(folder / "fold_2" / "checkpoint_final.pth")
    with fails("fold-missing", "0", "2"):
        adapt(folder)
    with fails("checkpoint-missing", "checkpoint_best.pth", "checkpoint_final.pth"):
        adapt(folder, fold="2", checkpoint="checkpoint_best.pth")
    plans = adapt(folder, fold="2")
    assert plans["nnunet_fm"]["adaptation"]["checkpoint"] == "checkpoint_final.pth"
    assert "NOTE" in capsys.readouterr().out and "from_801_fold2_selftraining" in plans["plans_name"]


def test_slices_follow_the_target_s_anatomy(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    (raw / "Dataset802_Zïel" / "conversion.json").write_text('{"slice_axis": "x"}')
    plans = adapt(folder)
    assert plans["transpose_forward"] == [2, 0, 1] and plans["transpose_backward"] == [1, 2, 0]
    assert plans["nnunet_fm"]["slices"] == 72 and "conversion.json" in plans["nnunet_fm"]["reasons"]["slice_axis"]


def test_left_and_right_follow_the_target_s_labels(raw: Path) -> None:
    labels = {"background": 0, "lung left": 1, "lung right": 2}
    for number in (801, 802):
        change(raw, number, labels=labels)
    folder = train("FMPlanner_stunet_s", patch=[16, 16, 32], spacing=[1, 1, 1], recipe={"mirror": "all"})
    key = adapt(folder)["nnunet_fm"]
    assert key["recipe"]["mirror"] == [0, 1] and key["origin"]["mirror"] == "data"
    assert "x is the left-right axis" in key["reasons"]["mirror"]
    assert adapt(folder, recipe={"mirror": "all"}, force=True)["nnunet_fm"]["recipe"]["mirror"] == [0, 1, 2]
    key = adapt(folder, recipe={"augmentation": "light"}, force=True)["nnunet_fm"]
    assert key["recipe"]["mirror"] == [] and "mirror" not in key["reasons"]


def test_no_validation_case_was_trained_on(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The target's cases are other images of the source's patients."""
    folder = train("FMPlanner_dinov2_s_linear")
    for number, name, subjects in ((801, "Source", "abc"), (802, "Zïel", "xab")):
        cases = {f"case_{index:02d}": {"subject": subject} for index, subject in enumerate(subjects)}
        file = raw / f"Dataset{number}_{name}" / "conversion.json"
        file.write_text(json.dumps({"dataset": "hcp", "cases": cases}))
    write_record(folder / "fold_0", "Dataset801_Source", ["case_00", "case_02"])
    split = raw / "Dataset802_Zïel" / "splits_final.json"
    split.write_text(json.dumps([{"train": ["case_00"], "val": ["case_01", "case_02"]}]))
    with fails("cases-seen", "case_01"):
        adapt(folder)
    split.write_text(
        json.dumps([{"train": ["case_01"], "val": ["case_00"]}, {"train": ["case_00"], "val": ["case_01"]}])
    )
    adapt(folder)
    assert "1 of fold 1, such as case_01): folds 1 cannot be adapted to" in capsys.readouterr().out


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"labels": {"background": 0, "one": 2, "two": 1}},
            ("target-labels", "one", "Dataset801_Source", "Dataset802"),
        ),
        (
            {"labels": {"background": 0, "one": 1, "zwei": 2}},
            ("target-labels", "Dataset801_Source", "two", "2", "zwei"),
        ),
        ({"labels": REGIONS, "regions_class_order": [1, 2]}, ("target-labels", "whole")),
        (
            {"labels": {"background": 0, "one": 1, "two": 2, "ignore": 3}},
            ("target-labels", "Dataset802_Zïel", "ignore", "3"),
        ),
        ({"channel_names": {"0": "T1", "1": "T2"}}, ("target-labels", "MRI", "Dataset802_Zïel", "T1", "T2")),
    ],
)
def test_domains_must_share_labels_and_channels(raw: Path, content: dict[str, Any], expected: tuple[str, ...]) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    change(raw, 802, **content)
    with fails(*expected):
        adapt(folder)
    assert written() == []


def test_equal_regions_are_equal() -> None:
    content = {"labels": REGIONS, "regions_class_order": [1, 2], "channel_names": {"0": "CT"}}
    check_domains(
        content, {**content, "labels": {**REGIONS, "whole": (1, 2)}, "channel_names": {"0": "MR"}}, ("a", "b")
    )
    with fails("target-labels", "regions_class_order"):
        check_domains(content, {**content, "regions_class_order": [2, 1]}, ("a", "b"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "entropymin", "labelled": 3}, ("option-conflict",)),
        ({"method": "entropymin", "teacher_momentum": 0.9}, ("option-conflict",)),
        ({"labelled_cases": ["case_00", "case_99"]}, ("case-unknown", "case_99", "case_00", "case_01", "case_02")),
        ({"recipe": {"sampling": "rare_class"}}, ("recipe-sampling",)),
        ({"recipe": {"sampled": 1}}, ("recipe-field",)),
        ({"confidence": 1.0}, ("recipe-field",)),
    ],
)
def test_options_that_do_not_fit(raw: Path, options: dict[str, Any], expected: tuple[str, ...]) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    with fails(*expected):
        adapt(folder, options.pop("method", "selftraining"), **options)
    assert written() == []


def test_sources_that_cannot_be_adapted(raw: Path, tmp_path: Path) -> None:
    with fails("model-incomplete", "plans.json"):
        read_source(tmp_path)
    folder = train("FMPlanner_dinov2_s_linear", "nnUNetTrainer")
    with fails("model-trainer", "nnUNetTrainer", "fm_trainer"):
        adapt(folder)
    (folder / "fold_0" / "checkpoint_best.pth").write_bytes(b"nothing")
    with fails("checkpoint-unreadable"):
        adapt(folder)
    assert written() == []


def test_targets_that_are_not_there(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    with fails("dataset-missing", "--target", "799"):
        plan_adaptation(folder, 799, AdaptOptions("entropymin"))
    for image in (raw / "Dataset802_Zïel" / "imagesTr").iterdir():
        image.unlink()
    with fails("images-missing"):
        adapt(folder)
    shutil.rmtree(raw / "Dataset802_Zïel" / "labelsTr")
    with fails("target-incomplete", "labelsTr"):
        adapt(folder)


def test_norms_must_be_there_to_be_trained(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train("FMPlanner_dinov2_s_linear")

    def refuse(*arguments: Any, **more: Any) -> None:
        raise ValueError("no parameter")

    monkeypatch.setattr("nnunet_fm.plans.adapt.set_trainable", refuse)
    with fails("head-norms", "--faithful"):
        adapt(folder, "entropymin", faithful=True)
    assert written() == []


def test_plans_with_trained_models_stay(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    plans = adapt(folder)
    of_plan = f"fm_trainer_selftraining__{plans['plans_name']}__2d"
    file = Path(_folder("results"), plans["dataset_name"], of_plan, "fold_0", "checkpoint_best.pth")
    file.parent.mkdir(parents=True)
    file.touch()
    assert adapt(folder) == plans
    with fails("plan-trained"):
        adapt(folder, confidence=0.8)
    assert adapt(folder, confidence=0.8, force=True) != plans


# Which trainer trains them


def test_plans_and_trainers_must_fit(raw: Path) -> None:
    plans = adapt(train("FMPlanner_dinov2_s_linear"))
    for spec in (Spec(), Spec(method="entropymin"), Spec(head="linear")):
        with fails("plan-method", "-tr", "fm_trainer_selftraining"):
            resolve(plans, spec)
    with fails("plan-method"):
        resolve({**plans, "nnunet_fm": {**plans["nnunet_fm"], "adaptation": None}}, Spec(method="selftraining"))


def test_the_short_form_finds_the_plan_of_the_method(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    planner_class("FMPlanner_dinov2_s_linear")(802, 40).plan_experiment()
    with fails("plans-missing", "--source", "MODEL_FOLDER", "--target", "--method"):
        expand(["802", "fm_trainer_entropymin", "0"])
    name = adapt(folder)["plans_name"]
    adapt(folder, "entropymin", name="Mine")
    assert expand(["802", "fm_trainer_selftraining", "0"]) == [
        *("802", "2d", "0", "-tr", "fm_trainer_selftraining", "-p", name)
    ]
    assert expand(["802", "fm_trainer_entropymin", "0"])[-1] == "Mine"
    assert expand(["802", "fm_trainer", "0"])[-1] == "FMPlans_dinov2_s_linear"
    adapt(folder, labelled=1, name="FMPlans_other")
    with fails("plans-several", "fm_trainer_selftraining"):
        expand(["802", "fm_trainer_selftraining", "0"])


# The command


def test_the_command(raw: Path) -> None:
    folder = train("FMPlanner_dinov2_s_linear")
    command = ["adapt", "--source", str(folder), "--target", "802", "--method", "selftraining"]
    options = ["--labelled-cases", "case_02", "case_00", "--iterations", "8", "--set", "recipe.learning_rate=1e-3"]
    result = CliRunner().invoke(app, [*command, *options, "--train", "all", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.strip().splitlines()[-1])
    assert answer["trainer"] == "fm_trainer_selftraining" and answer["configuration"] == "2d"
    assert json.loads(Path(answer["path"]).read_text()) == answer["plans"]
    key = answer["plans"]["nnunet_fm"]
    assert key["adaptation"]["labelled_cases"] == ["case_02", "case_00"] and key["adaptation"]["labelled"] == 2
    assert key["adaptation"]["train"] == "all" and (key["iterations"], key["epochs"]) == (8, None)
    assert key["recipe"]["learning_rate"] == 1e-3 and "learning_rate" in key["origin"]["recipe"]
    printed = CliRunner().invoke(app, [*command, "--name", "FMPlans_x"]).output
    assert "nnUNetv2_train 802 2d 0 -tr fm_trainer_selftraining -p FMPlans_x" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--iterations", "3", "--epochs", "2"],
        ["--labelled", "3", "--labelled-cases", "a"],
        ["--set", "network.image_size=56"],
        ["--method", "other"],
    ],
)
def test_bad_usage(options: list[str], tmp_path: Path) -> None:
    command = ["adapt", "--source", str(tmp_path), "--target", "802", "--method", "selftraining"]
    assert CliRunner().invoke(app, [*command, *options]).exit_code == 2
