"""Short form of training: ``nnUNetv2_train 501 fm_trainer 0`` is expanded to the command that names a plan.

nnUNetv2_train 501 fm_trainer 0 --npz
nnUNetv2_train 501 3d_fullres 0 -tr fm_trainer -p FMPlans_stunet_b --npz
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nnunet_fm.errors import FMError, code_of
from nnunet_fm.hook.names import resembles_ours
from nnunet_fm.io.dataset_names import DatasetNameError, dataset_name, dataset_number
from nnunet_fm.io.untrusted import ForeignFileError, read_json
from nnunet_fm.models.names import (
    PLANNER_PREFIX,
    PLANS_PREFIX,
    TRAINER_PREFIX,
    Spec,
    UnknownNameError,
    plans_name,
    trainer_name,
)
from nnunet_fm.models.registry import get_card, grammar
from nnunet_fm.planfile.schema import KEY, STOCK_KEY

COMMAND = "nnUNetv2_train"
NOT_PLANS = frozenset({"dataset.json", "dataset_fingerprint.json", "splits_final.json"})
VALUE_OPTIONS = ("-tr", "-p", "-pretrained_weights", "-num_gpus", "-device")
FLAGS = ("--npz", "--c", "--val", "--val_best", "--disable_checkpointing")


MAKE = {
    "stock": "nnunet-fm plan -d ID --control stock",
    "selftraining": "nnunet-fm adapt --source MODEL_FOLDER --target ID --method selftraining",
    "entropymin": "nnunet-fm adapt --source MODEL_FOLDER --target ID --method entropymin",
}
"""Command that makes plans, by the method in a trainer's name."""


class ShortFormError(FMError, ValueError):
    """The short form cannot be expanded; the message says why and what to type instead."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse nnU-Net's own arguments, without options that were not given; returns unknown arguments separately."""
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for positional in ("dataset", "configuration", "fold"):
        parser.add_argument(positional)
    for option in VALUE_OPTIONS:
        parser.add_argument(option, dest=option)
    for flag in FLAGS:
        parser.add_argument(flag, dest=flag, action="store_true")
    return parser.parse_known_args(arguments)


@dataclass(frozen=True)
class Plan:
    """Facts about a plans file that the short form needs."""

    name: str
    configurations: tuple[str, ...]
    model: str | None
    head: str | None
    adapter: str | None
    method: str | None = None

    @classmethod
    def read(cls, path: Path) -> Plan | None:
        """Read the plan of a JSON file; None if the file holds something else."""
        try:
            content = read_json(path)
        except ForeignFileError as error:
            raise ShortFormError(str(error), code=error.code) from None
        if not isinstance(content, dict) or not isinstance(content.get("configurations"), dict):
            return None
        key = content.get(KEY)
        key = {k: v for k, v in key.items() if isinstance(v, (str, dict))} if isinstance(key, dict) else {}
        adaptation = key.get("adaptation")
        method = adaptation.get("method") if isinstance(adaptation, dict) else None
        return cls(
            path.name[: -len(".json")],
            tuple(content["configurations"]),
            model=key.get("model"),
            head=key.get("head"),
            adapter=key.get("adapter"),
            method="stock" if STOCK_KEY in content else method,
        )

    def fits(self, spec: Spec) -> bool:
        """Whether a trainer can follow the plan: same model, legal head and adapter."""
        if spec.method is not None or self.method is not None:
            return spec.method == self.method
        if self.model is None or spec.model not in (None, self.model):
            return False
        wanted = Spec(self.model, spec.head, spec.adapter)
        return trainer_name(wanted) in grammar().trainers

    def exactly(self, spec: Spec) -> bool:
        """Whether the plan has the head and the adapter of the trainer's name."""
        return spec.head in (None, self.head) and spec.adapter in (None, self.adapter)

    def configuration(self, spec: Spec) -> str:
        """Configuration to train: the plan's only one, else that of the model's dimension."""
        if len(self.configurations) == 1:
            return self.configurations[0]
        model = spec.model or self.model
        if model is None:
            raise ShortFormError(
                f"the plans {self.name} name no model; plan with -pl {PLANNER_PREFIX}_<model>, or pin the model: "
                f"{TRAINER_PREFIX}_<model>",
                code="plan-model",
            )
        configuration = get_card(model).configuration
        if configuration not in self.configurations:
            raise ShortFormError(
                f"the plans {self.name} have no configuration {configuration}, which {model} needs",
                code="configuration-missing",
            )
        return configuration


def _find_plans(dataset: str) -> list[Plan]:
    """All plans of a dataset, sorted by name."""
    from nnunetv2.paths import nnUNet_preprocessed

    try:
        folder = Path(nnUNet_preprocessed) / dataset_name(dataset)
    except (RuntimeError, DatasetNameError) as error:
        raise ShortFormError(str(error), code=code_of(error, "dataset-missing")) from None
    files = sorted(path for path in folder.glob("[!.]*.json") if path.name not in NOT_PLANS)
    return [plan for plan in map(Plan.read, files) if plan is not None]


def _choose(plans: list[Plan], spec: Spec, chosen: str | None) -> list[Plan]:
    """Plan of ``-p``, else all our plans that fit; if some have exactly the right parts, only those."""
    if chosen is not None:
        return [plan for plan in plans if plan.name == chosen]
    prefix = f"{PLANS_PREFIX}_"
    ours = [plan for plan in plans if plan.method or plan.name == PLANS_PREFIX or plan.name.startswith(prefix)]
    fitting = [plan for plan in ours if plan.fits(spec)]
    return [plan for plan in fitting if plan.exactly(spec)] or fitting


def _none_found(dataset: str, name: str, spec: Spec, chosen: str | None, plans: list[Plan]) -> ShortFormError:
    if chosen is not None:
        there = ", ".join(plan.name for plan in plans) or "none"
        return ShortFormError(f"dataset {dataset} has no plans {chosen}; plans there: {there}", code="plans-missing")
    if spec.method is not None:
        return ShortFormError(
            f"dataset {dataset} has no plans that {name} can train; make them with: {MAKE[spec.method]}",
            code="plans-missing",
        )
    planner = plans_name(spec).replace(PLANS_PREFIX, PLANNER_PREFIX, 1) if spec.pinned else f"{PLANNER_PREFIX}_<model>"
    number = dataset_number(dataset_name(dataset))
    command = f"nnUNetv2_plan_and_preprocess -d {number} -pl {planner}"
    return ShortFormError(
        f"dataset {dataset} has no plans that {name} can train; make them with: {command}", code="plans-missing"
    )


def expand(arguments: list[str]) -> list[str]:
    """Expand a short form in the arguments of ``nnUNetv2_train``.

    Other arguments, and those that nnU-Net will refuse, are returned unchanged.

    Raises:
        ShortFormError: if no plan fits, several do, ``-tr`` is given as well, or the trainer's name is not legal.
    """
    try:
        parsed, unknown = parse(arguments)
    except argparse.ArgumentError:
        return arguments
    options = vars(parsed)
    dataset, name, fold = (options.pop(key) for key in ("dataset", "configuration", "fold"))
    if not name.startswith(TRAINER_PREFIX) and not resembles_ours(name):
        return arguments
    plans = _find_plans(dataset)
    if any(name in plan.configurations for plan in plans):
        return arguments
    if "-tr" in options:
        raise ShortFormError(
            f"{name} stands in the configuration's place, and -tr {options['-tr']} is given as well",
            code="option-conflict",
        )
    try:
        spec = grammar().trainer(name)
    except UnknownNameError as error:
        raise ShortFormError(str(error), code=error.code) from None
    chosen = options.pop("-p", None)
    candidates = _choose(plans, spec, chosen)
    if not candidates:
        raise _none_found(dataset, name, spec, chosen, plans)
    rest = [part for option, value in options.items() for part in ([option] if value is True else [option, value])]
    commands = [
        [dataset, plan.configuration(spec), fold, "-tr", name, "-p", plan.name, *rest, *unknown] for plan in candidates
    ]
    if len(commands) > 1:
        choices = "\n".join(f"  {shlex.join([COMMAND, *command])}" for command in commands)
        raise ShortFormError(
            f"dataset {dataset} has several plans that {name} can train; choose one:\n{choices}", code="plans-several"
        )
    return commands[0]


def run(entry: Callable[[], Any]) -> Any:
    """Expand and print the short form in ``sys.argv``, then call nnU-Net's training entry point.

    Exits with code 2 and the reason on stderr if it cannot be expanded.
    """
    given = sys.argv
    try:
        arguments = expand(given[1:])
    except ShortFormError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments != given[1:]:
        print(shlex.join([COMMAND, *arguments]), flush=True)
    sys.argv = [given[0], *arguments]
    try:
        return entry()
    finally:
        sys.argv = given
