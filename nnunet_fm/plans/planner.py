"""FMPlanner: an nnU-Net experiment planner that plans one model, and the planner classes of all legal names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_raw

from nnunet_fm.cpu.limits import shared_memory_fault
from nnunet_fm.io.dataset_names import dataset_name
from nnunet_fm.models.names import PLANNER_PREFIX, Spec, plans_name
from nnunet_fm.models.registry import get_card, grammar
from nnunet_fm.planfile.eval_datasets import check_domains, write_plans_for
from nnunet_fm.planfile.schema import KEY, PlanError
from nnunet_fm.planfile.write import save_plans, write_json
from nnunet_fm.plans.pipeline import Options, choose_spec, plan_model, read_task
from nnunet_fm.plans.plan import RawDataset, summary
from nnunet_fm.preprocessing.fingerprint import fingerprint
from nnunet_fm.preprocessing.grids import check_grids
from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json, training_cases


class FMPlanner(ExperimentPlanner):
    """Plan one model for one dataset and write ``FMPlans[_<model>…].json``.

    The base class of all planner names; under its own name it chooses the model from the fingerprint (`choose_model`).
    Geometry and budget are those of the card's variant, fitted to the data and to ``gpu_memory_target_in_gb``. The
    steps are in `nnunet_fm.plans.pipeline`.

    All arguments but the last two are those of nnU-Net's planner.

    Args:
        options: the user's choices.
        processes: number of processes that extract a missing fingerprint; None refuses a dataset without one.
    """

    spec = Spec()

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        options: Options | None = None,
        processes: int | None = None,
    ) -> None:
        if fault := shared_memory_fault():  # nnU-Net lists cases in twelve processes
            raise PlanError(fault, code="shared-memory")
        name = dataset_name(dataset_name_or_id)
        raw = Path(nnUNet_raw, name)
        dataset_json = read_dataset_json(raw)
        for warning in check_cases(raw, dataset_json):
            print(f"WARNING: {warning}", file=sys.stderr)
        if processes is not None:
            fingerprint(name, dataset_json, processes)
        plans_name = plans_name or self.default_plans_name()
        super().__init__(name, gpu_memory_target_in_gb, preprocessor_name, plans_name, None, suppress_transpose)
        self.dataset_json = dataset_json
        self.dataset = training_cases(raw, dataset_json)  # nnU-Net's own list has hidden files as cases
        self.reader = self.determine_reader_writer().__name__
        for warning in check_grids(self.dataset, self.reader):
            print(f"WARNING: {warning}", file=sys.stderr)
        # The stock command always passes DefaultPreprocessor, so that only another name comes from the user.
        if preprocessor_name not in ("DefaultPreprocessor", "FMPreprocessor"):
            raise PlanError(
                f"plans of nnunet-fm use FMPreprocessor (or --portable), not '{preprocessor_name}'",
                code="preprocessor-other",
            )
        self.options = options or Options()
        if overwrite_target_spacing is not None:
            self.options = replace(self.options, spacing=[float(s) for s in overwrite_target_spacing])

    @classmethod
    def default_plans_name(cls) -> str:
        """Default name of the plans that this planner writes."""
        return plans_name(cls.spec)

    def plan_experiment(self) -> dict[str, Any]:
        """Write the plan and return it.

        Raises:
            PlanError: if the model cannot take the data, an option is illegal, or the plan already has trained models.
        """
        data = RawDataset(self.dataset_name, self.dataset_json, self.dataset, self.reader, self.dataset_fingerprint)
        memory_gb = self.UNet_vram_target_GB
        chosen = choose_spec(self.spec, data, memory_gb)
        if "model" in chosen.reasons:
            print(f"FMPlanner chose {chosen.value.model}: {chosen.reasons['model']}")
        stock_spacing = [float(size) for size in self.determine_fullres_target_spacing()]
        task = read_task(chosen.value, data, self.options, memory_gb=memory_gb, stock_spacing=stock_spacing)
        plan = plan_model(task, chosen, name=self.plans_identifier, planner=type(self).__name__)
        self.plans = plan.to_json()
        self.save_plans(self.plans)
        print(f"\n{summary(self.plans)}")
        return self.plans

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plan file in one step; an older file is replaced.

        Raises:
            PlanError: if models were trained with a different plan of this name and ``force`` is not set.
        """
        if others := plans[KEY]["eval_datasets"]:
            check_domains(self.dataset_name, self.dataset_json, others)
        target = save_plans(plans, force=self.options.force)
        commands = write_plans_for(plans, others) if others else []
        write_json(self.dataset_json, target.with_name("dataset.json"))
        print(f"Plans were saved to {target}")
        if commands:
            print("Preprocess the other datasets that the training is to be measured on:")
            print("\n".join(f"  {command}" for command in commands))


@cache
def planner_class(name: str) -> type[FMPlanner]:
    """The planner class of a legal name; raises `UnknownNameError` with the nearest names."""
    spec = grammar().planner(name)
    if name == PLANNER_PREFIX:
        return FMPlanner
    of = f"Plans {get_card(spec.model).title}" if spec.model else "Plans the model that suits the data"
    doc = f"{of}; writes {plans_name(spec)}.json."
    return type(name, (FMPlanner,), {"spec": spec, "__module__": __name__, "__qualname__": name, "__doc__": doc})


def __getattr__(name: str) -> type[FMPlanner]:
    if not name.startswith(PLANNER_PREFIX):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return planner_class(name)


__all__ = ["FMPlanner", "Options", "planner_class"]


def plan(
    dataset: str | int,
    model: str | None = None,
    *,
    head: str | None = None,
    adapter: str | None = None,
    variant: str | None = None,
    name: str | None = None,
    gpu_memory_gb: float = 8.0,
    processes: int = 2,
    **options: Any,
) -> dict[str, Any]:
    """Plan a model for a dataset as ``nnunet-fm plan`` does: write the plan file and return its content.

    Args:
        dataset: number or name of a dataset in nnUNet_raw; a missing fingerprint is taken first.
        model: name of the model; None chooses one from the data.
        head: decode head of a 2D model.
        adapter: adapter.
        variant: ``official``, ``thesis``, ``nnunet`` or ``quick``; None for this package's own defaults.
        name: name of the plans, instead of ``FMPlans_<model>``.
        gpu_memory_gb: GB that patch and batch are fitted into.
        processes: processes that take the fingerprint.
        options: fields of `Options`, such as ``iterations=2000`` or ``spacing=[2, 1.5, 1.5]``.

    Raises:
        PlanError: if the model cannot take the data, or an option is illegal.
        UnknownNameError: for a model, head or adapter that does not exist.
    """
    parts = (PLANNER_PREFIX, model, head, adapter, variant)
    planner = planner_class("_".join(part for part in parts if part))
    made = planner(dataset, gpu_memory_gb, plans_name=name, options=Options(**options), processes=processes)
    return made.plan_experiment()
