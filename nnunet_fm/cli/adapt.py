"""``nnunet-fm adapt``: plan the adaptation of a trained model to another dataset."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from nnunet_fm.cli.completion import complete_datasets
from nnunet_fm.cli.console import Quiet, results_only, working

EPILOG = """
Examples:

  nnunet-fm adapt --source nnUNet_results/Dataset501_MR/fm_trainer__FMPlans_sam_b__2d --target 502 --method selftraining

  nnunet-fm adapt --source MODEL_FOLDER --target 502 --method selftraining --labelled-cases case_03 case_17 --epochs 10

  nnunet-fm adapt --source MODEL_FOLDER --target 502 --method entropymin --set recipe.learning_rate=1e-5

Then: nnUNetv2_preprocess and nnUNetv2_train as printed, or in short nnUNetv2_train 502 fm_trainer_selftraining 0
"""


class Method(str, Enum):
    """How a model is adapted."""

    selftraining = "selftraining"
    entropymin = "entropymin"


class Part(str, Enum):
    """What is trained."""

    head = "head"
    adapter = "adapter"
    all = "all"


def adapt(
    source: Annotated[
        Path, typer.Option("--source", help="Trained model: nnU-Net's folder <trainer>__<plans>__<configuration>.")
    ],
    target: Annotated[
        str,
        typer.Option("--target", "-d", help="ID or name of the dataset to adapt to.", autocompletion=complete_datasets),
    ],
    method: Annotated[Method, typer.Option("--method", help="How.")],
    fold: Annotated[str, typer.Option("--source-fold", "-f", help="Fold of the trained model, or 'all'.")] = "0",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "-chk", "--checkpoint", help="Its checkpoint; without it checkpoint_best.pth, or checkpoint_final.pth."
        ),
    ] = None,
    labelled: Annotated[
        int | None,
        typer.Option("--labelled", min=0, help="Training cases whose labels are used (selftraining; 3)."),
    ] = None,
    labelled_cases: Annotated[
        list[str] | None, typer.Option("--labelled-cases", help="These cases instead.", metavar="CASE …")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0, max=1, help="Probability from which a pseudo-label counts.")
    ] = 0.9,
    update_every: Annotated[
        int, typer.Option("--update-every", min=1, help="Iterations between two updates of the teacher.")
    ] = 1,
    teacher_momentum: Annotated[
        float | None,
        typer.Option("--teacher-momentum", min=0, max=1, help="Average the teacher over time, e.g. with 0.99."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the target (selftraining 20, entropymin 2).")
    ] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Optimiser steps instead.")] = None,
    train: Annotated[
        Part, typer.Option("--train", help="The head alone, what the source trained (adapter), or all.")
    ] = Part.head,
    faithful: Annotated[bool, typer.Option("--faithful", help="The procedure of the 2D thesis's code.")] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", "-p", "-overwrite_plans_name", help="Plans name instead of FMPlans_<model>…_from_…"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed; without it the source's.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a recipe field, e.g. recipe.learning_rate=1e-5.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace plans that have trained models.")] = False,
    processes: Annotated[int, typer.Option("-npfp", min=1, help="Processes for a fingerprint that is missing.")] = 2,
    quiet: Quiet = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print path, plan, trainer and configuration as JSON.")
    ] = False,
) -> None:
    """Write nnU-Net plans that adapt a trained model to another dataset of the same labels."""
    from nnunet_fm.cli.plan import _changed
    from nnunet_fm.plans.adapt import AdaptOptions, plan_adaptation

    if iterations is not None and epochs is not None:
        raise typer.BadParameter("--iterations and --epochs say the same in two ways: give one", param_hint="--epochs")
    if labelled is not None and labelled_cases:
        raise typer.BadParameter("--labelled and --labelled-cases exclude each other", param_hint="--labelled")
    if _changed("network", settings or []):
        raise typer.BadParameter("the network is the source's: only recipe.<field> can change", param_hint="--set")
    options = AdaptOptions(
        method=method.value,
        fold=fold,
        checkpoint=checkpoint,
        labelled=labelled,
        labelled_cases=labelled_cases or [],
        confidence=confidence,
        update_every=update_every,
        teacher_momentum=teacher_momentum,
        epochs=epochs,
        iterations=iterations,
        train=train.value,
        faithful=faithful,
        name=name,
        seed=seed,
        recipe=_changed("recipe", settings or []),
        force=force,
        processes=processes,
    )
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
