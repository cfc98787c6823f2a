"""Other datasets with the same labels whose Dice a training records: their plans and preprocessed cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_fm.data.folds import read_folds
from nnunet_fm.io.dataset_json import canonical, channel_names
from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.planfile.schema import KEY, PlanError
from nnunet_fm.planfile.write import write_json


def plans_for(plans: Mapping[str, Any]) -> str:
    """Name of the copy of a plan with which other datasets are preprocessed."""
    return f"{plans['plans_name']}_of_{plans['dataset_name']}"


def check_domains(dataset_name: str, dataset_json: Mapping[str, Any], datasets: Sequence[str]) -> None:
    """Check that a model of one dataset can be measured on others.

    Raises:
        PlanError: if one of them is missing, is the dataset itself, or differs in labels or channels.
    """
    for name in datasets:
        if name == dataset_name:
            raise PlanError(
                f"eval_datasets: the plan is for {name} itself, whose validation is recorded anyway", code="eval-own"
            )
        check_same_labels(dataset_json, _dataset_json(name), (dataset_name, name))


def write_plans_for(plans: Mapping[str, Any], datasets: Sequence[str]) -> list[str]:
    """Copy a plan to other datasets for preprocessing, and return the commands that preprocess them.

    The copy cannot be trained.
    """
    commands = []
    for name in datasets:
        folder = Path(nnUNet_preprocessed, name)
        folder.mkdir(parents=True, exist_ok=True)
        copy = {key: value for key, value in plans.items() if key not in (KEY, "continue_training")}
        write_json({**copy, "dataset_name": name, "plans_name": plans_for(plans)}, folder / f"{plans_for(plans)}.json")
        write_json(_dataset_json(name), folder / "dataset.json")
        commands += [_command(name, plans, configuration) for configuration in plans["configurations"]]
    return commands


def check_same_labels(here: Mapping[str, Any], there: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Check that two ``dataset.json`` have the same labels and numbers of channels.

    Raises:
        PlanError: naming what differs.
    """
    if faults := differences(here, there, names):
        raise PlanError(
            f"a model of {names[0]} cannot be evaluated on {names[1]}: {'; '.join(faults)}", code="eval-labels"
        )


def differences(here: Mapping[str, Any], there: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """Differences of two ``dataset.json`` in labels, order of regions and number of channels, as sentences."""
    faults = []
    here, there = canonical(here), canonical(there)
    mine, theirs = here["labels"], there["labels"]
    for label in dict.fromkeys((*mine, *theirs)):
        if label not in theirs:
            faults.append(f"only {names[0]} has '{label}' ({mine[label]})")
        elif label not in mine:
            faults.append(f"only {names[1]} has '{label}' ({theirs[label]})")
        elif mine[label] != theirs[label]:
            faults.append(f"'{label}' is {mine[label]} in {names[0]} and {theirs[label]} in {names[1]}")
    orders = [content.get("regions_class_order") for content in (here, there)]
    if orders[0] != orders[1]:
        faults.append(f"regions_class_order is {orders[0]} in {names[0]} and {orders[1]} in {names[1]}")
    channels = [channel_names(content) for content in (here, there)]
    if len(channels[0]) != len(channels[1]):
        faults.append(f"{names[0]} has the channels {', '.join(channels[0])}, {names[1]} has {', '.join(channels[1])}")
    return faults


def preprocessed_cases(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    configuration: str,
    data_identifier: str,
    dataset: str,
    fold: int | str,
) -> tuple[Path, list[str]]:
    """Folder of another dataset's preprocessed cases, and the cases to measure in a training of this fold.

    These are the other dataset's validation cases of the same fold, by its own split or nnU-Net's default split; all
    cases if it has no such fold.

    Raises:
        PlanError: if labels or channels differ, or there are no preprocessed cases.
    """
    check_domains(plans["dataset_name"], dataset_json, [dataset])
    base = Path(nnUNet_preprocessed, dataset)
    folder = base / data_identifier
    cases = sorted(file.stem for file in folder.glob("[!.]*.pkl")) if folder.is_dir() else []
    if not cases:
        if not (base / f"{plans_for(plans)}.json").is_file():
            write_plans_for(plans, [dataset])
        raise PlanError(
            f"eval_datasets: {dataset} is not preprocessed for these plans ({folder} holds no cases): run "
            f"`{_command(dataset, plans, configuration)}`",
            code="preprocessed-missing",
        )
    if fold == "all":
        return folder, cases
    folds = read_folds(cases, base)
    return folder, list(folds[int(fold)]["val"]) if int(fold) < len(folds) else cases


def _dataset_json(name: str) -> dict[str, Any]:
    for folder in (nnUNet_raw, nnUNet_preprocessed):
        if not folder.is_set():
            continue
        file = Path(folder, name, "dataset.json")
        if file.is_file():
            return canonical(read_object(file))
    raise PlanError(
        f"eval_datasets: there is no dataset {name} in nnUNet_raw or nnUNet_preprocessed", code="dataset-missing"
    )


def _command(dataset: str, plans: Mapping[str, Any], configuration: str) -> str:
    number = dataset_number(dataset)
    return f"nnUNetv2_preprocess -d {number} -plans_name {plans_for(plans)} -c {configuration}"
