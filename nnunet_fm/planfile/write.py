"""Writing of plan files in one step; plans of trained models only change on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results

from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.planfile.schema import KEY, PlanError


def write_json(content: Any, target: Path) -> None:
    """Write a JSON file in one step, indented like nnU-Net's."""
    write_text(target, json.dumps(content, indent=4))


def plan_file(plans: Mapping[str, Any]) -> Path:
    """Path of a plan in its dataset's preprocessed folder."""
    return Path(nnUNet_preprocessed, plans["dataset_name"], f"{plans['plans_name']}.json")


def save_plans(plans: Mapping[str, Any], *, force: bool) -> Path:
    """Write the plan file of a dataset in one step, and return its path; an older file is replaced.

    Raises:
        PlanError: if models were trained with a different plan of this name and ``force`` is not set.
    """
    name, dataset = plans["plans_name"], plans["dataset_name"]
    target = plan_file(plans)
    if target.is_file() and not force and not _same_plan(target, plans):
        trained = _trained_folders(dataset, name)
        if trained:
            raise PlanError(
                f"{target.name} has trained models ({', '.join(trained)}) and would change. Keep both with "
                f"-overwrite_plans_name (nnunet-fm plan --name), or replace it with `nnunet-fm plan --force`",
                code="plan-trained",
            )
    write_json(plans, target)
    return target


def _trained_folders(dataset: str, plans_name: str) -> list[str]:
    """Result folders of a dataset whose models were trained with plans of this name."""
    if not nnUNet_results.is_set():
        return []
    found = Path(nnUNet_results, dataset).glob(f"*__{plans_name}__*/fold_*/checkpoint_*.pth")
    return sorted({path.parent.parent.name for path in found})


def _same_plan(file: Path, plans: Mapping[str, Any]) -> bool:
    """Whether a plan file holds this plan; hashes of official files added since then are no difference."""

    def comparable(content: Mapping[str, Any]) -> dict[str, Any]:
        key = {name: value for name, value in content.get(KEY, {}).items() if name != "weights"}
        return {**content, KEY: key}

    written = json.loads(file.read_text(encoding="utf-8"))
    return comparable(written) == comparable(json.loads(json.dumps(plans)))
