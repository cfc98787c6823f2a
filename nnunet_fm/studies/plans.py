"""Plans of a study: the file of each training, the arguments that write it, and the preprocessed data that plans share.

A plan's name has a hash of all its options, so that equal trainings of several studies are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_fm.models.variants import on_dataset
from nnunet_fm.planfile.schema import STOCK_ITERATIONS
from nnunet_fm.plans.stock import BASES, PLANNERS, base_plans
from nnunet_fm.reporting.results import Run
from nnunet_fm.studies.datasets import Dataset
from nnunet_fm.studies.job_names import digest, join
from nnunet_fm.studies.rows import Row
from nnunet_fm.studies.schema import Adapt, Study

PLANS = "StudyPlans"
"""Prefix of the names; unlike `FMPlans`, the short form of training does not search it."""


@dataclass(frozen=True)
class StudyPlan:
    """A plan file of one dataset.

    Attributes:
        dataset: nnU-Net's name of the dataset.
        name: name of the file, without ending.
        data: key of the preprocessed data; plans of a dataset with equal keys share them.
        what: arguments of the step that writes the file.
    """

    dataset: str
    name: str
    configuration: str
    data: tuple[str, ...]
    what: Mapping[str, Any]


def model_plan(study: Study, row: Row, source: Dataset, seed: int, cases: int | None) -> StudyPlan:
    """Plan of a model under study and of its twin from random weights."""
    entry, budget = row.entry, study.budget
    variant = entry.variant or study.variant
    settings = {**study.set, **entry.set, **_epochs(study), "recipe.seed": seed}
    if budget.minutes is not None:
        settings["recipe.max_minutes"] = budget.minutes
    options = _given(
        {
            "-m": row.card.name,
            "--head": entry.head,
            "--adapter": entry.adapter,
            "--variant": variant,
            "--iterations": budget.iterations,
            "--epochs": budget.epochs if row.card.dim == 2 else None,
            "--weights": entry.weights,
            "--head-weights": entry.head_weights,
            "--train-cases": cases,
            "--gpu-memory-target": study.gpu_memory_target,
        }
    )
    parts = [row.card.name, entry.head, entry.adapter, variant if variant != "mission" else None]
    name = join(PLANS, *parts, digest([options, settings], 8))
    planned = on_dataset(row.card.variants[variant], f"Dataset000_{source.short}", row.adapter)
    prepared = [planned.geometry.spacing, planned.intensity.model_dump()]
    data = ("own", row.card.configuration, digest(prepared, 8))
    what = {"dataset": source.name, "name": name, "options": options, "set": settings}
    return StudyPlan(source.name, name, row.card.configuration, data, what)


def stock_plan(
    study: Study, source: Dataset, size: str | None, configuration: str, seed: int | None, cases: int | None
) -> StudyPlan:
    """nnU-Net's own plan or, with a seed, a copy of it with seed, budget and training cases."""
    target = study.gpu_memory_target
    control = f"resenc_{size.lower()}" if size else "stock"
    base = base_plans(control, target)
    planner = PLANNERS[BASES[control]] or "ExperimentPlanner"
    data = ("stock", configuration) if target is None else ("stock", f"{target:g}GB", configuration)
    what: dict[str, Any] = {
        "dataset": source.name, "name": base, "base": base, "planner": planner, "gpu_memory_target": target
    }  # fmt: skip
    if seed is None:
        return StudyPlan(source.name, base, configuration, data, what)
    options = _given(
        {
            "--control": control,
            "--iterations": study.controls.iterations or study.budget.iterations or STOCK_ITERATIONS,
            "--seed": seed,
            "--train-cases": cases,
            "--gpu-memory-target": target,
        }
    )
    settings = _epochs(study)
    name = join(PLANS, control, digest([options, settings], 8))
    return StudyPlan(
        source.name, name, configuration, data, {**what, "name": name, "options": options, "set": settings}
    )


def adapted_plan(study: Study, run: Run, plan: StudyPlan, adapt: Adapt, target: Dataset) -> StudyPlan:
    """Plan that adapts the model of a run, trained with ``plan``, to another dataset."""
    options = _given(
        {
            "--labelled": adapt.labelled,
            "--confidence": adapt.confidence,
            "--update-every": adapt.update_every,
            "--teacher-momentum": adapt.teacher_momentum,
            "--train": adapt.train,
            "--epochs": adapt.epochs,
            "--iterations": adapt.iterations,
        }
    )
    what = {
        "dataset": target.name,
        "source": run.model_folder,
        "fold": run.fold,
        "checkpoint": f"checkpoint_{study.checkpoint}.pth",
        "method": adapt.method,
        "faithful": adapt.faithful,
        "options": options,
        "set": {**adapt.set},
    }
    # The name must not depend on the path of nnUNet_results.
    name = join(PLANS, adapt.method, digest({**what, "source": [run.dataset, Path(run.model_folder).name]}, 8))
    data = ("adapted", run.dataset, *plan.data)
    return StudyPlan(target.name, name, run.configuration, data, {**what, "name": name})


def _epochs(study: Study) -> dict[str, Any]:
    """Lengths of nnU-Net's epochs as options of ``--set``."""
    names = ("iterations_per_epoch", "validation_iterations")
    return {f"recipe.{name}": value for name in names if (value := getattr(study.budget, name)) is not None}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {option: value for option, value in options.items() if value is not None}
