"""``nnunet-fm adapt``: plan the adaptation of a trained model to another dataset."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_fm.cli.completion import complete_datasets
from nnunet_fm.cli.console import results_only, working
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import Force, Processes, Quiet, read_settings

if TYPE_CHECKING:
    from nnunet_fm.plans.adapt import AdaptOptions

EPILOG = """
Examples:

  nnunet-fm adapt --source nnUNet_results/Dataset501_MR/fm_trainer__FMPlans_sam_b__2d --target 502 --method selftraining

  nnunet-fm adapt --source MODEL_FOLDER --target 502 --method selftraining --labelled-cases case_03 case_17 --epochs 10

  nnunet-fm adapt --source MODEL_FOLDER --target 502 --method entropymin --set recipe.learning_rate=1e-5

Then: nnUNetv2_preprocess and nnUNetv2_train as printed, or in short nnUNetv2_train 502 fm_trainer_selftraining 0
"""


class Method(str, Enum):
    """Methods of adaptation."""

    selftraining = "selftraining"
    entropymin = "entropymin"


class Trained(str, Enum):
    """The part of the network that is trained."""

    head = "head"
    adapter = "adapter"
    all = "all"


Source = Annotated[
    Path, typer.Option("--source", help="Trained model: nnU-Net's folder <trainer>__<plans>__<configuration>.")
]
Target = Annotated[
    str,
    typer.Option("--target", "-d", help="ID or name of the dataset to adapt to.", autocompletion=complete_datasets),
]
How = Annotated[Method, typer.Option("--method", help="Method of adaptation.")]
Fold = Annotated[str, typer.Option("--source-fold", "-f", help="Fold of the trained model, or 'all'.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "-chk",
        "--checkpoint",
        help="Checkpoint of the model.  [default: checkpoint_best.pth, else checkpoint_final.pth]",
    ),
]
Labelled = Annotated[
    int | None, typer.Option("--labelled", min=0, help="Training cases whose labels are used (selftraining; 3).")
]
LabelledCases = Annotated[
    list[str] | None,
    typer.Option("--labelled-cases", help="Names of labelled training cases, instead of --labelled.", metavar="CASE …"),
]
Confidence = Annotated[
    float, typer.Option("--confidence", min=0, max=1, help="Probability from which a pseudo-label counts.")
]
UpdateEvery = Annotated[
    int, typer.Option("--update-every", min=1, help="Iterations between two updates of the teacher.")
]
TeacherMomentum = Annotated[
    float | None,
    typer.Option(
        "--teacher-momentum", min=0, max=1, help="Momentum of a teacher that is averaged over time, e.g. 0.99."
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Passes over the target (selftraining 20, entropymin 2).")
]
Iterations = Annotated[int | None, typer.Option("--iterations", min=1, help="Optimiser steps, instead of --epochs.")]
Train = Annotated[
    Trained, typer.Option("--train", help="Trained part: the head alone, what the source trained (adapter), or all.")
]
Faithful = Annotated[bool, typer.Option("--faithful", help="Follow the procedure of the 2D thesis's code.")]
Name = Annotated[
    str | None,
    typer.Option("--name", "-p", "-overwrite_plans_name", help="Plans name instead of FMPlans_<model>…_from_…"),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed.  [default: the source's]")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a recipe field, e.g. recipe.learning_rate=1e-5.")
]
Json = Annotated[bool, typer.Option("--json", help="Print path, plan, trainer and configuration as JSON.")]


def adapt(
    source: Source,
    target: Target,
    method: How,
    fold: Fold = "0",
    checkpoint: Checkpoint = None,
    labelled: Labelled = None,
    labelled_cases: LabelledCases = None,
    confidence: Confidence = 0.9,
    update_every: UpdateEvery = 1,
    teacher_momentum: TeacherMomentum = None,
    epochs: Epochs = None,
    iterations: Iterations = None,
    train: Train = Trained.head,
    faithful: Faithful = False,
    name: Name = None,
    seed: Seed = None,
    settings: Changes = None,
    force: Force = False,
    processes: Processes = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write nnU-Net plans that adapt a trained model to another dataset of the same labels."""
    given = SimpleNamespace(**locals())
    from nnunet_fm.plans.adapt import plan_adaptation

    options = _options(given)
    with results_only(as_json=as_json, quiet=quiet), working("reading source and target", quiet=quiet):
        adapted = plan_adaptation(source, int(target) if target.isdigit() else target, options)
    if as_json:
        answer = {"plans": adapted.plans, "trainer": adapted.trainer, "configuration": adapted.configuration}
        print(json.dumps({"path": str(adapted.path), **answer}))
    elif not quiet:
        print(f"Plans were saved to {adapted.path}")
        for subject, reason in adapted.plans["nnunet_fm"]["reasons"].items():
            print(f"  {subject}: {reason}")
        print("\nThen:", *adapted.commands, sep="\n  ")


def _options(given: SimpleNamespace) -> AdaptOptions:
    """Options of the adaptation from the command line."""
    from nnunet_fm.plans.adapt import AdaptOptions

    if given.iterations is not None and given.epochs is not None:
        raise OptionError(
            "--iterations and --epochs say the same in two ways: give one",
            param_hint="--epochs",
            code="option-conflict",
        )
    if given.labelled is not None and given.labelled_cases:
        raise OptionError(
            "--labelled and --labelled-cases exclude each other", param_hint="--labelled", code="option-conflict"
        )
    changed = read_settings(given.settings)
    if changed.network:
        raise OptionError(
            "the network is the source's: only recipe.<field> can change", param_hint="--set", code="option-fixed"
        )
    return AdaptOptions(
        method=given.method.value,
        fold=given.fold,
        checkpoint=given.checkpoint,
        labelled=given.labelled,
        labelled_cases=given.labelled_cases or [],
        confidence=given.confidence,
        update_every=given.update_every,
        teacher_momentum=given.teacher_momentum,
        epochs=given.epochs,
        iterations=given.iterations,
        train=given.train.value,
        faithful=given.faithful,
        name=given.name,
        seed=given.seed,
        recipe=changed.recipe,
        force=given.force,
        processes=given.processes,
    )
