"""``nnunet-fm plan``: plan a model with options for which the stock planning command has no flag."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from nnunet_fm.cli.completion import complete_adapters, complete_datasets, complete_heads, complete_models
from nnunet_fm.cli.console import Quiet, results_only

EPILOG = """
Examples:

  nnunet-fm plan -d 501 -m stunet_b

  nnunet-fm plan -d 501 -m stunet_s --variant quick --minutes 30

  nnunet-fm plan -d 501 -m dinov2_s --head linear --adapter full --slice-axis sagittal --epochs 50

  nnunet-fm plan -d 501 -m stunet_b --mirror z,y

  nnunet-fm plan -d 501 -m spadnet --set network.spad_patch_depth=auto

  nnunet-fm plan -d 501 -m stunet_b --train-cases 3 --seed 2 --eval-datasets 502 503 --name FMPlans_three

  nnunet-fm plan -d 501 --control resenc_m --iterations 20000 --train-cases 3 --seed 2

Then: nnUNetv2_preprocess -d 501 -plans_name FMPlans_stunet_b -c 3d_fullres

A control is trained with -tr fm_trainer_stock on the data that its stock plans have preprocessed.
"""

UNCOUNTED = 1_000_000
"""Iterations of a plan with ``--minutes``: more than the minutes have room for."""

CONTROL_FIELDS = ("iterations_per_epoch", "validation_iterations")
"""Recipe fields that a control has, too."""


def plan(
    dataset: Annotated[
        str, typer.Option("-d", "--dataset", help="Dataset ID or name.", autocompletion=complete_datasets)
    ],
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Model; without it, chosen from the data.", autocompletion=complete_models),
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="Decode head of a 2D model.", autocompletion=complete_heads)
    ] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Adapter.", autocompletion=complete_adapters)] = None,
    variant: Annotated[str, typer.Option("--variant", help="mission, official, thesis, nnunet or quick.")] = "mission",
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Optimiser steps, met exactly.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0.01, help="Train so long instead; the learning rate reaches zero at the end."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the training slices (2D models).")
    ] = None,
    spacing: Annotated[
        list[str] | None, typer.Option("--spacing", help="Z Y X in mm (2D: Y X), or 'native'.", metavar="Z Y X")
    ] = None,
    patch: Annotated[list[int] | None, typer.Option("--patch", help="Patch edges in voxels.", metavar="Z Y X")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Batch size.")] = None,
    slice_axis: Annotated[
        str | None,
        typer.Option("--slice-axis", help="Axis across 2D slices: z, y or x; axial, coronal or sagittal slices."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror",
            help="Axes to flip in training and prediction: all, none, or some of z, y, x, such as z,y. By default all "
            "that the augmentation flips, without left-right where labels tell left from right.",
        ),
    ] = None,
    gpu_memory_target: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-target", "-gpu_memory_target", min=0.1, help="GB to fit patch and batch into; 8.0 by default."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a recipe field or a network argument, e.g. recipe.loss=ce; repeatable."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Official file to start from, see `nnunet-fm weights list`.")
    ] = None,
    head_weights: Annotated[
        str | None,
        typer.Option(
            "--head-weights",
            help="sam or medsam: file that a head of the SAM family starts from, and its mask decoder where that fits.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the training and of --train-cases.")] = None,
    train_cases: Annotated[
        int | None, typer.Option("--train-cases", min=1, help="Train on so many cases of a fold, drawn by the seed.")
    ] = None,
    eval_datasets: Annotated[
        list[str] | None,
        typer.Option("--eval-datasets", help="Other datasets of the same labels to measure on.", metavar="ID ID …"),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option("--control", help="Instead of a model, stock nnU-Net: stock, resenc_m, resenc_l or resenc_xl."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-p", "-overwrite_plans_name", help="Plans name instead of FMPlans_<model>…"),
    ] = None,
    portable: Annotated[bool, typer.Option("--portable", help="Plans that nnU-Net can use without our hook.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace plans that have trained models.")] = False,
    processes: Annotated[int, typer.Option("-npfp", min=1, help="Processes for a fingerprint that is missing.")] = 2,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the path and the plan as JSON.")] = False,
) -> None:
    """Write nnU-Net plans for one model from the dataset's fingerprint and the model's card."""
    from pathlib import Path

    if control is not None:
        unfit = {
            "-m": model, "--head": head, "--adapter": adapter, "--epochs": epochs, "--minutes": minutes,
            "--spacing": spacing,
            "--patch": patch, "--batch": batch, "--slice-axis": slice_axis, "--mirror": mirror,
            "--weights": weights,
            "--head-weights": head_weights, "--eval-datasets": eval_datasets, "--portable": portable or None,
            "--variant": None if variant == "mission" else variant,
        }  # fmt: skip
        given = [flag for flag, value in unfit.items() if value]
        if given:
            raise typer.BadParameter(f"stock nnU-Net has no {', '.join(given)}", param_hint="--control")
        _control(
            control, gpu_memory_target, dataset, iterations, seed, train_cases, settings or [], name, force,
            as_json, quiet,
        )  # fmt: skip
        return

    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    from nnunet_fm.io.dataset_names import dataset_name
    from nnunet_fm.models.card import read_mirror
    from nnunet_fm.models.names import PLANNER_PREFIX, VARIANTS
    from nnunet_fm.plans.planner import Options, planner_class
    from nnunet_fm.plans.slices import AXES, PLANES
    from nnunet_fm.preprocessing.fingerprint import fingerprint
    from nnunet_fm.preprocessing.raw import check_cases, read_dataset_json

    if variant not in ("mission", *VARIANTS):
        raise typer.BadParameter(f"'{variant}' is not one of mission, {', '.join(VARIANTS)}", param_hint="--variant")
    if model is None and (head or adapter):
        raise typer.BadParameter("a head or an adapter needs a model: add -m MODEL")
    if slice_axis is not None and slice_axis.lower() not in {**AXES, **PLANES}:
        raise typer.BadParameter(
            f"'{slice_axis}' is not one of z, y, x, {', '.join(PLANES)}", param_hint="--slice-axis"
        )
    recipe = _changed("recipe", settings or []) | ({} if seed is None else {"seed": seed})
    if mirror is not None:
        if "mirror" in recipe:
            raise typer.BadParameter("--mirror and --set recipe.mirror say the same: give one", param_hint="--mirror")
        try:
            recipe["mirror"] = read_mirror(mirror)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--mirror") from None
    if iterations is not None and epochs is not None:
        raise typer.BadParameter("--iterations and --epochs say the same in two ways: give one", param_hint="--epochs")
    if minutes is not None and (iterations is not None or epochs is not None):
        raise typer.BadParameter("give --minutes, --iterations or --epochs, not two of them", param_hint="--minutes")
    suffix = None if variant == "mission" else variant
    planner = planner_class("_".join(p for p in (PLANNER_PREFIX, model, head, adapter, suffix) if p))
    if minutes is not None:
        iterations, recipe["max_minutes"] = UNCOUNTED, minutes
    options = Options(
        iterations=iterations,
        epochs=epochs,
        spacing=_spacing(spacing),
        patch=patch,
        batch=batch,
        slice_axis=slice_axis,
        recipe=recipe,
        network=_changed("network", settings or []),
        weights=weights,
        head_weights=head_weights,
        train_cases=train_cases,
        eval_datasets=[int(other) if other.isdigit() else other for other in eval_datasets or []],
        portable=portable,
        force=force,
    )
    with results_only(as_json=as_json, quiet=quiet):
        named = dataset_name(dataset)
        folder = Path(nnUNet_preprocessed, named)
        dataset_json = read_dataset_json(Path(nnUNet_raw, named))
        check_cases(Path(nnUNet_raw, named), dataset_json)
        fingerprint(named, dataset_json, processes)
        plans = planner(named, gpu_memory_target or 8.0, plans_name=name, options=options).plan_experiment()
    if as_json:
        print(json.dumps({"path": str(folder / f"{plans['plans_name']}.json"), "plans": plans}))


def _control(
    control: str,
    gpu_memory_target: float | None,
    dataset: str,
    iterations: int | None,
    seed: int | None,
    train_cases: int | None,
    settings: list[str],
    name: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the plans of a control row; what is not given is as in stock nnU-Net."""
    from nnunet_fm.io.dataset_names import dataset_name
    from nnunet_fm.plans.stock import BASES, base_plans, write_stock_plans

    if control not in BASES:
        raise typer.BadParameter(f"'{control}' is not one of {', '.join(BASES)}", param_hint="--control")
    changed = _changed("recipe", settings)
    unfit = [*(set(changed) - set(CONTROL_FIELDS)), *_changed("network", settings)]
    wrong = [key for key in CONTROL_FIELDS if key in changed and not (type(changed[key]) is int and changed[key] > 0)]
    if unfit or wrong:
        legal = ", ".join(f"recipe.{field}=<whole number>" for field in CONTROL_FIELDS)
        raise typer.BadParameter(f"of stock nnU-Net only {legal} can be set", param_hint="--set")
    file = write_stock_plans(
        dataset_name(dataset),
        base_plans(control, gpu_memory_target),
        name,
        train_cases=train_cases,
        force=force,
        **({} if iterations is None else {"iterations": iterations}),
        **({} if seed is None else {"seed": seed}),
        **changed,
    )
    if as_json:
        print(json.dumps({"path": str(file), "plans": json.loads(file.read_text(encoding="utf-8"))}))
    elif not quiet:
        print(f"Plans were saved to {file}; train them with -tr fm_trainer_stock -p {file.stem}")


def _spacing(words: list[str] | None) -> list[float] | str | None:
    if not words:
        return None
    if words == ["native"]:
        return "native"
    try:
        return [float(w) for w in words]
    except ValueError:
        raise typer.BadParameter(
            f"'{' '.join(words)}' is neither numbers in mm nor 'native'", param_hint="--spacing"
        ) from None


def _changed(part: str, settings: list[str]) -> dict[str, Any]:
    """``recipe.max_minutes=30`` -> ``{"max_minutes": 30}`` for one part; values are read as JSON if they are."""
    changed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        owner, dot, name = key.partition(".")
        if not equals or not dot or owner not in ("recipe", "network"):
            raise typer.BadParameter(
                f"'{setting}' is not of the form recipe.<field>=<value> or network.<argument>=<value>",
                param_hint="--set",
            )
        if owner == part:
            try:
                changed[name] = json.loads(text)
            except json.JSONDecodeError:
                changed[name] = text
    return changed
