"""``nnunet-fm plan``: plan a model, with more options than the stock planning command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_fm.cli.completion import complete_adapters, complete_datasets, complete_heads, complete_models
from nnunet_fm.cli.console import results_only
from nnunet_fm.cli.option_error import OptionError
from nnunet_fm.cli.options import Force, Processes, Quiet, read_settings

if TYPE_CHECKING:
    from nnunet_fm.plans.planner import Options

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
"""Iterations of a plan with ``--minutes``, more than a training reaches."""

CONTROL_FIELDS = ("iterations_per_epoch", "validation_iterations")
"""Recipe fields of a control."""

MODEL_ONLY = {
    "-m": "model", "--head": "head", "--adapter": "adapter", "--epochs": "epochs", "--minutes": "minutes",
    "--spacing": "spacing", "--patch": "patch", "--batch": "batch", "--slice-axis": "slice_axis",
    "--mirror": "mirror", "--weights": "weights", "--head-weights": "head_weights",
    "--eval-datasets": "eval_datasets", "--portable": "portable",
}  # fmt: skip
"""Options that a control does not have."""

Dataset = Annotated[str, typer.Option("-d", "--dataset", help="Dataset ID or name.", autocompletion=complete_datasets)]
Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Model; without it, chosen from the data.", autocompletion=complete_models),
]
Head = Annotated[str | None, typer.Option("--head", help="Decode head of a 2D model.", autocompletion=complete_heads)]
Adapter = Annotated[str | None, typer.Option("--adapter", help="Adapter.", autocompletion=complete_adapters)]
Variant = Annotated[str, typer.Option("--variant", help="mission, official, thesis, nnunet or quick.")]
Iterations = Annotated[int | None, typer.Option("--iterations", min=1, help="Exact number of optimiser steps.")]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.01,
        help="Minutes of training, instead of --iterations; the learning rate reaches zero at the end.",
    ),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training slices (2D models).")]
Spacing = Annotated[
    list[str] | None, typer.Option("--spacing", help="Spacing Z Y X in mm (2D: Y X), or 'native'.", metavar="Z Y X")
]
Patch = Annotated[list[int] | None, typer.Option("--patch", help="Patch size in voxels.", metavar="Z Y X")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="Batch size.")]
SliceAxis = Annotated[
    str | None,
    typer.Option("--slice-axis", help="Axis across 2D slices: z, y or x; axial, coronal or sagittal slices."),
]
Mirror = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        help="Axes to flip in training and prediction: all, none, or some of z, y, x, such as z,y. By default all "
        "that the augmentation flips, without left-right where labels distinguish left and right.",
    ),
]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory-target",
        "-gpu_memory_target",
        min=0.1,
        help="GPU memory in GB that patch and batch must fit into.  [default: 8.0]",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a recipe field or a network argument, e.g. recipe.loss=ce; repeatable."),
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Official file to start from, see `nnunet-fm weights list`.")
]
HeadWeights = Annotated[
    str | None,
    typer.Option(
        "--head-weights",
        help="sam or medsam: file that a head of the SAM family starts from, and its mask decoder where that fits.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the training and of --train-cases.")]
TrainCases = Annotated[
    int | None, typer.Option("--train-cases", min=1, help="Train on so many cases of a fold, drawn by the seed.")
]
EvalDatasets = Annotated[
    list[str] | None,
    typer.Option("--eval-datasets", help="Other datasets of the same labels to measure on.", metavar="ID ID …"),
]
Control = Annotated[
    str | None,
    typer.Option("--control", help="Instead of a model, stock nnU-Net: stock, resenc_m, resenc_l or resenc_xl."),
]
Name = Annotated[
    str | None, typer.Option("--name", "-p", "-overwrite_plans_name", help="Plans name instead of FMPlans_<model>…")
]
Portable = Annotated[bool, typer.Option("--portable", help="Plans that nnU-Net can use without our hook.")]
Json = Annotated[bool, typer.Option("--json", help="Print the path and the plan as JSON.")]


def plan(
    dataset: Dataset,
    model: Model = None,
    head: Head = None,
    adapter: Adapter = None,
    variant: Variant = "mission",
    iterations: Iterations = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    spacing: Spacing = None,
    patch: Patch = None,
    batch: Batch = None,
    slice_axis: SliceAxis = None,
    mirror: Mirror = None,
    gpu_memory_target: GpuMemory = None,
    settings: Settings = None,
    weights: Weights = None,
    head_weights: HeadWeights = None,
    seed: Seed = None,
    train_cases: TrainCases = None,
    eval_datasets: EvalDatasets = None,
    control: Control = None,
    name: Name = None,
    portable: Portable = False,
    force: Force = False,
    processes: Processes = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write nnU-Net plans for one model from the dataset's fingerprint and the model's card."""
    given = SimpleNamespace(**locals())
    write = _write_model if control is None else _write_control
    with results_only(as_json=as_json, quiet=quiet):
        file, plans = write(given)
    if as_json:
        print(json.dumps({"path": str(file), "plans": plans}))
    elif control is not None and not quiet:
        print(f"Plans were saved to {file}; train them with -tr fm_trainer_stock -p {file.stem}")


def _write_model(given: SimpleNamespace) -> tuple[Path, dict[str, Any]]:
    """Plan a model by the options; returns the file and its content."""
    from nnunet_fm.models.names import VARIANTS
    from nnunet_fm.planfile.write import plan_file
    from nnunet_fm.plans.planner import plan as plan_model

    if given.variant not in ("mission", *VARIANTS):
        legal = ", ".join(("mission", *VARIANTS))
        raise OptionError(f"'{given.variant}' is not one of {legal}", param_hint="--variant", code="option-value")
    if given.model is None and (given.head or given.adapter):
        raise OptionError("a head or an adapter needs a model: add -m MODEL", code="option-incomplete")
    plans = plan_model(
        given.dataset, given.model, head=given.head, adapter=given.adapter,
        variant=None if given.variant == "mission" else given.variant, name=given.name,
        gpu_memory_gb=given.gpu_memory_target or 8.0, processes=given.processes, **vars(_options(given)),
    )  # fmt: skip
    return plan_file(plans), plans


def _options(given: SimpleNamespace) -> Options:
    """Options of the planner from the command line."""
    from nnunet_fm.plans.geometry import AXES, PLANES
    from nnunet_fm.plans.planner import Options

    if given.slice_axis is not None and given.slice_axis.lower() not in {**AXES, **PLANES}:
        legal = f"z, y, x, {', '.join(PLANES)}"
        raise OptionError(f"'{given.slice_axis}' is not one of {legal}", param_hint="--slice-axis", code="option-value")
    changed = read_settings(given.settings)
    recipe = _recipe(given, changed.recipe)
    if given.iterations is not None and given.epochs is not None:
        raise OptionError(
            "--iterations and --epochs say the same in two ways: give one",
            param_hint="--epochs",
            code="option-conflict",
        )
    if given.minutes is not None and (given.iterations is not None or given.epochs is not None):
        raise OptionError(
            "give --minutes, --iterations or --epochs, not two of them", param_hint="--minutes", code="option-conflict"
        )
    return Options(
        iterations=given.iterations if given.minutes is None else UNCOUNTED,
        epochs=given.epochs,
        spacing=_spacing(given.spacing),
        patch=given.patch,
        batch=given.batch,
        slice_axis=given.slice_axis,
        recipe=recipe,
        network=changed.network,
        weights=given.weights,
        head_weights=given.head_weights,
        train_cases=given.train_cases,
        eval_datasets=[int(other) if other.isdigit() else other for other in given.eval_datasets or []],
        portable=given.portable,
        force=given.force,
    )


def _recipe(given: SimpleNamespace, changed: dict[str, Any]) -> dict[str, Any]:
    """Recipe fields that the options change."""
    from nnunet_fm.models.card import read_mirror

    recipe = changed | ({} if given.seed is None else {"seed": given.seed})
    if given.mirror is not None:
        if "mirror" in recipe:
            raise OptionError(
                "--mirror and --set recipe.mirror say the same: give one", param_hint="--mirror", code="option-conflict"
            )
        try:
            recipe["mirror"] = read_mirror(given.mirror)
        except ValueError as error:
            raise OptionError(str(error), param_hint="--mirror", code="mirror-axes") from None
    return recipe if given.minutes is None else recipe | {"max_minutes": given.minutes}


def _write_control(given: SimpleNamespace) -> tuple[Path, dict[str, Any]]:
    """Write the plans of a control; options that are not given are those of stock nnU-Net."""
    from nnunet_fm.io.dataset_names import dataset_name
    from nnunet_fm.plans.stock import BASES, base_plans, write_stock_plans

    unfit = [flag for flag, option in MODEL_ONLY.items() if getattr(given, option)]
    if unfit or given.variant != "mission":
        flags = ", ".join([*unfit, *(["--variant"] if given.variant != "mission" else [])])
        raise OptionError(f"stock nnU-Net has no {flags}", param_hint="--control", code="option-conflict")
    if given.control not in BASES:
        raise OptionError(
            f"'{given.control}' is not one of {', '.join(BASES)}", param_hint="--control", code="option-value"
        )
    changed, network = read_settings(given.settings)
    wrong = [name for name, value in changed.items() if not (type(value) is int and value > 0)]
    if set(changed) - set(CONTROL_FIELDS) or network or wrong:
        legal = ", ".join(f"recipe.{field}=<whole number>" for field in CONTROL_FIELDS)
        raise OptionError(f"of stock nnU-Net only {legal} can be set", param_hint="--set", code="option-fixed")
    file = write_stock_plans(
        dataset_name(given.dataset),
        base_plans(given.control, given.gpu_memory_target),
        given.name,
        train_cases=given.train_cases,
        force=given.force,
        **({} if given.iterations is None else {"iterations": given.iterations}),
        **({} if given.seed is None else {"seed": given.seed}),
        **changed,
    )
    return file, json.loads(file.read_text(encoding="utf-8"))


def _spacing(words: list[str] | None) -> list[float] | str | None:
    if not words:
        return None
    if words == ["native"]:
        return "native"
    try:
        return [float(w) for w in words]
    except ValueError:
        raise OptionError(
            f"'{' '.join(words)}' is neither numbers in mm nor 'native'", param_hint="--spacing", code="option-value"
        ) from None
