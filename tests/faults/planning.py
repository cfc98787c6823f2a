"""Faults of plans: made by hand, by another version, for another network; and of datasets that cannot be planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.planfile.schema import KEY, PlanError
from nnunet_fm.plans.planner import Options, planner_class
from tests.faults.registry import SHAPE, Bench, Seen, change_json, cut_in_half, fault
from tests.helpers.datasets import write_fingerprint

STAGE = "Planning"
REFUSED = "refused before anything is written"


def planned(at: Bench, planner: str = "FMPlanner_stunet_s", number: int = 501, **options: Any) -> dict[str, Any]:
    """A dataset of two cases and its plan."""
    folder = at.dataset(number)
    write_fingerprint(folder, [SHAPE] * 2, [(1.0, 1.0, 1.0)] * 2)
    made = Options(iterations=4, **options)
    return planner_class(planner)(number, 40, options=made).plan_experiment()


def train(at: Bench, plans: dict[str, Any], configuration: str = "3d_fullres", name: str = "fm_trainer_scratch") -> Any:
    """A trainer as nnU-Net's command builds it, from the plan in its file."""
    import nnunet_fm.trainers

    folder = at.preprocessed / plans["dataset_name"]
    content = json.loads((folder / f"{plans['plans_name']}.json").read_text())
    dataset = json.loads((at.raw / plans["dataset_name"] / "dataset.json").read_text())
    return getattr(nnunet_fm.trainers, name)(content, configuration, 0, dataset, torch.device("cpu"))


def edited(at: Bench, change: Callable[[dict[str, Any]], object], **how: Any) -> Seen:
    """A plan that somebody edits before training."""
    plans = planned(at)
    file = at.preprocessed / plans["dataset_name"] / f"{plans['plans_name']}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with at.unchanged():
        seen = at.raises((PlanError, UnknownNameError), lambda: train(at, plans, **how))
    return seen


@fault(
    STAGE,
    "A plan edited by hand has a key that no plan has.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-field",
)
def a_plan_with_a_wrong_key(at: Bench) -> Seen:
    return edited(at, lambda plans: plans[KEY].update(learning_rate=0.1))


@fault(
    STAGE,
    "A plan edited by hand has a recipe with a rate that is a word.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-field",
)
def a_plan_with_a_wrong_value(at: Bench) -> Seen:
    return edited(at, lambda plans: plans[KEY]["recipe"].update(learning_rate="small"))


@fault(
    STAGE,
    "A plan edited by hand mirrors an axis beside an augmentation that flips nothing.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-field",
)
def a_plan_that_mirrors_what_it_does_not_flip(at: Bench) -> Seen:
    return edited(at, lambda plans: plans[KEY]["recipe"].update(augmentation="none", mirror=[0]))


@fault(
    STAGE,
    "A plan edited by hand has a patch that the network cannot take.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-numbers",
)
def a_plan_with_a_wrong_patch(at: Bench) -> Seen:
    return edited(at, lambda plans: plans["configurations"]["3d_fullres"].update(patch_size=[0, 20, 20]))


@fault(
    STAGE,
    "A plan edited by hand has batch size 0.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-numbers",
)
def a_plan_with_batch_0(at: Bench) -> Seen:
    return edited(at, lambda plans: plans["configurations"]["3d_fullres"].update(batch_size=0))


@fault(
    STAGE,
    "A plan edited by hand has no spacing.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-numbers",
)
def a_plan_without_spacing(at: Bench) -> Seen:
    return edited(at, lambda plans: plans["configurations"]["3d_fullres"].pop("spacing"))


@fault(
    STAGE,
    "A plan was written by a newer nnunet-fm.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-version",
)
def a_plan_of_a_newer_version(at: Bench) -> Seen:
    return edited(at, lambda plans: plans[KEY].update(version=2))


@fault(
    STAGE,
    "A plan was written by an older nnunet-fm, before its entry had a version.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-version",
)
def a_plan_of_an_older_version(at: Bench) -> Seen:
    return edited(at, lambda plans: plans[KEY].pop("version"))


@fault(
    STAGE,
    "A plan names a model that no card describes.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="name-unknown",
)
def a_plan_of_an_unknown_model(at: Bench) -> Seen:
    return edited(at, lambda plans: plans[KEY].update(model="stunet_xl"))


@fault(
    STAGE,
    "A configuration is trained that the plan does not have.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="configuration-missing",
)
def a_configuration_that_is_not_planned(at: Bench) -> Seen:
    return edited(at, lambda plans: None, configuration="2d")


@fault(
    STAGE,
    "A pinned trainer is given the plan of another model.",
    happens="refused before anything is written",
    keeps="data and plan",
    code="plan-model",
)
def a_trainer_of_another_model(at: Bench) -> Seen:
    return edited(at, lambda plans: None, name="fm_trainer_stunet_b")


@fault(
    STAGE,
    "A plan file is cut off.",
    happens="refused before anything is written",
    keeps="all files",
    code="json-invalid",
)
def half_a_plan_file(at: Bench) -> Seen:
    plans = planned(at)
    file = at.preprocessed / plans["dataset_name"] / "FMPlans_stunet_s.json"
    file.write_bytes(file.read_bytes()[:1000])  # before the recipe, whose fields become more
    from nnunet_fm.hook.short_form import ShortFormError, expand

    seen = at.raises(ShortFormError, lambda: expand(["501", "fm_trainer", "0"]))
    return seen


def dataset_json(at: Bench, change: Callable[[Path], object]) -> Seen:
    """A dataset whose dataset.json is wrong, planned."""
    file = at.dataset() / "dataset.json"
    change(file)
    with at.unchanged(at.raw):
        seen = at.fails("plan", "-d", "501", "-m", "stunet_s")
    assert not list(at.preprocessed.rglob("FMPlans*"))
    return seen


@fault(
    STAGE,
    "dataset.json is missing.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="dataset-json-missing",
)
def a_missing_dataset_json(at: Bench) -> Seen:
    return dataset_json(at, lambda file: file.unlink())


@fault(
    STAGE,
    "dataset.json is cut off.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="json-invalid",
)
def half_a_dataset_json(at: Bench) -> Seen:
    return dataset_json(at, cut_in_half)


@fault(
    STAGE,
    "dataset.json has no labels.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="dataset-json",
)
def a_dataset_json_without_labels(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, labels=None))


@fault(
    STAGE,
    "dataset.json gives two classes the same label.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="dataset-json",
)
def a_dataset_json_with_a_label_twice(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, labels={"background": 0, "liver": 1, "spleen": 1}))


@fault(
    STAGE,
    "dataset.json leaves out a number between its labels.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="dataset-json",
)
def a_dataset_json_with_a_gap(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, labels={"background": 0, "liver": 1, "spleen": 3}))


@fault(
    STAGE,
    "dataset.json has the labels the wrong way round: number -> name, as nnU-Net v1 had them.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="dataset-json",
)
def a_dataset_json_of_version_1(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, labels={"0": "background", "1": "liver"}))


@fault(
    STAGE,
    "dataset.json names another file ending than the images have.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="images-missing",
)
def a_dataset_json_with_a_wrong_ending(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, file_ending=".nrrd"))


@fault(
    STAGE,
    "A training case has an image and no label map.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="label-maps-missing",
)
def a_case_without_labels(at: Bench) -> Seen:
    return dataset_json(at, lambda file: (file.parent / "labelsTr" / "case_01.nii.gz").unlink())


@fault(
    STAGE,
    "A label map has no image.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="images-missing",
)
def a_label_map_without_an_image(at: Bench) -> Seen:
    return dataset_json(at, lambda file: (file.parent / "imagesTr" / "case_01_0000.nii.gz").unlink())


@fault(
    STAGE,
    "dataset.json says another number of training cases than there are.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="cases-number",
)
def a_wrong_number_of_cases(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, numTraining=3))


@fault(
    STAGE,
    "A training case lacks its second channel.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="channels-count",
)
def a_training_case_without_a_channel(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, channel_names={"0": "CT", "1": "PET"}))


@fault(
    STAGE,
    "A training case has its channels under the numbers of others.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="channels-count",
)
def a_training_case_with_other_channels(at: Bench) -> Seen:
    def renumber(file: Path) -> None:
        for case in ("case_00", "case_01"):
            image = file.parent / "imagesTr" / f"{case}_0000.nii.gz"
            image.with_name(f"{case}_{'0001' if case == 'case_00' else '0002'}.nii.gz").write_bytes(image.read_bytes())
        (file.parent / "imagesTr" / "case_01_0000.nii.gz").rename(file.parent / "imagesTr" / "case_01_0001.nii.gz")
        change_json(file, channel_names={"0": "CT", "1": "PET"})

    return dataset_json(at, renumber)


@fault(
    STAGE,
    "The ignore label is 255, with a single class.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="dataset-json",
)
def an_ignore_label_far_above_the_classes(at: Bench) -> Seen:
    return dataset_json(at, lambda file: change_json(file, labels={"background": 0, "liver": 1, "ignore": 255}))


@fault(
    STAGE,
    "The folders of training cases are empty.",
    happens="refused, exit code 1",
    keeps="the raw data; no plan is written",
    code="images-missing",
)
def an_empty_dataset(at: Bench) -> Seen:
    def remove(file: Path) -> None:
        for image in (*file.parent.glob("imagesTr/*"), *file.parent.glob("labelsTr/*")):
            image.unlink()

    return dataset_json(at, remove)


@fault(
    STAGE,
    "There is no dataset of this number.",
    happens="refused, exit code 1",
    keeps="all files",
    code="dataset-missing",
)
def a_dataset_that_does_not_exist(at: Bench) -> Seen:
    at.dataset()
    with at.unchanged():
        seen = at.fails("plan", "-d", "777", "-m", "stunet_s")
    return seen


@fault(
    STAGE, "A model name with a typing error.", happens="refused, exit code 1", keeps="all files", code="name-unknown"
)
def a_misspelt_model(at: Bench) -> Seen:
    at.dataset()
    with at.unchanged():
        seen = at.fails("plan", "-d", "501", "-m", "stunet_x")
    return seen


@fault(
    STAGE,
    "A plan of the same name was trained, and planning again would change it.",
    happens="refused, exit code 1",
    keeps="plan and models",
    code="plan-trained",
)
def a_plan_with_trained_models(at: Bench) -> Seen:
    plans = planned(at)
    trained = at.results / plans["dataset_name"] / f"fm_trainer__{plans['plans_name']}__3d_fullres" / "fold_0"
    trained.mkdir(parents=True)
    (trained / "checkpoint_final.pth").write_bytes(b"hours of work")
    with at.unchanged():
        seen = at.fails("plan", "-d", "501", "-m", "stunet_s", "--iterations", "5000")
    return seen


@fault(
    STAGE,
    "The disk is full when a plan is replaced.",
    happens="exit code 1",
    keeps="the former plan; nothing half-written is left",
    code="file-not-written",
)
def a_full_disk_while_a_plan_is_written(at: Bench) -> Seen:
    plans = planned(at)
    file = at.preprocessed / plans["dataset_name"] / f"{plans['plans_name']}.json"
    before = file.read_text()
    with at.full_disk():
        seen = at.fails("plan", "-d", "501", "-m", "stunet_s", "--iterations", "5000")
    assert file.read_text() == before and not list(file.parent.glob("*.json.*"))
    return seen
