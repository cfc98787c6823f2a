"""Plans of controls: an existing stock plan with a budget, a seed and training cases for ``fm_trainer_stock``."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.planfile.schema import KEY, STOCK_ITERATIONS, STOCK_KEY, PlanError, StockKey
from nnunet_fm.planfile.write import save_plans

ITERATIONS_PER_EPOCH = 250
VALIDATION_ITERATIONS = 50

PLANNERS = {
    "nnUNetPlans": None,
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""Stock plans -> the planner that makes them, None for nnU-Net's default."""

BASES = dict(zip(("stock", "resenc_m", "resenc_l", "resenc_xl"), PLANNERS, strict=True))
"""Name of a control -> the stock plans it copies."""


def base_plans(control: str, gpu_memory_target: float | None = None) -> str:
    """Name of the stock plans that a control copies.

    Args:
        control: a key of `BASES`.
        gpu_memory_target: GB that patch and batch are fitted into; None for nnU-Net's own target.
    """
    return BASES[control] if gpu_memory_target is None else f"{BASES[control]}_{gpu_memory_target:g}GB"


def write_stock_plans(
    dataset_name: str,
    base: str = "nnUNetPlans",
    name: str | None = None,
    *,
    iterations: int = STOCK_ITERATIONS,
    seed: int = 42,
    train_cases: int | None = None,
    iterations_per_epoch: int | None = None,
    validation_iterations: int = VALIDATION_ITERATIONS,
    force: bool = False,
) -> Path:
    """Copy stock plans under another name, with what ``fm_trainer_stock`` reads; returns the file.

    Preprocessed data are those of the stock plans: the copy names the same folders.

    Args:
        dataset_name: such as ``Dataset904_A``.
        base: name of the stock plans.
        name: of the copy; ``<base>_control`` by default.
        iterations: optimiser steps, met exactly.
        seed: of the training, and of the order that ``train_cases`` are the first ones of.
        train_cases: so many training cases of a fold; None for all.
        iterations_per_epoch: between two validations; at most 250, and the whole budget if that is less, by default.
        validation_iterations: batches of a validation.
        force: replace plans of this name even if models were trained with them.

    Raises:
        PlanError: if the stock plans are missing or no stock plans, or trained models have plans of this name.
    """
    file = Path(nnUNet_preprocessed, dataset_name, f"{base}.json")
    if not file.is_file():
        number = dataset_number(dataset_name)
        default, _, target = base.removesuffix("GB").partition("_") if base.endswith("GB") else (base, "", "")
        planner = f" -pl {PLANNERS[default]}" if PLANNERS.get(default) else ""
        if target:
            planner += f" -gpu_memory_target {target} -overwrite_plans_name {base}"
        raise PlanError(
            f"{file} does not exist. Make it with `nnUNetv2_extract_fingerprint -d {number}` and "
            f"`nnUNetv2_plan_experiment -d {number}{planner}`, or both and the preprocessing with "
            f"`nnUNetv2_plan_and_preprocess -d {number}{planner}`",
            code="plans-missing",
        )
    plans = read_object(file)
    if KEY in plans:
        raise PlanError(
            f"'{base}' are plans of nnunet-fm: a control needs plans of stock nnU-Net", code="plan-not-stock"
        )
    plans["plans_name"] = name or f"{base}_control"
    if plans["plans_name"] == base:
        raise PlanError(f"a control needs a name of its own, not that of the stock plans, '{base}'", code="plan-name")
    plans[STOCK_KEY] = StockKey(
        iterations=iterations,
        iterations_per_epoch=iterations_per_epoch or min(ITERATIONS_PER_EPOCH, iterations),
        validation_iterations=validation_iterations,
        seed=seed,
        train_cases=train_cases,
    ).model_dump()
    return save_plans(plans, force=force)
