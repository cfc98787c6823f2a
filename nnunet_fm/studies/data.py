"""Steps before a training: plans, adaptations of trained models, preprocessed data shared between plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_fm.data.folds import read_folds
from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.studies.cases import dataset_json, image_names, label_names
from nnunet_fm.studies.job_context import JobContext
from nnunet_fm.studies.job_markers import read_json_or_none, write_json
from nnunet_fm.studies.process import StepError


def plan(context: JobContext) -> None:
    """Write a plan and its prerequisites: the dataset's fingerprint, the stock plan of a control, the split."""
    what, dataset = context.what, context.what["dataset"]
    preprocessed = context.preprocessed(dataset)
    number = dataset_number(dataset)
    context.variables["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planner takes its threads from this variable, and refuses 0
    if not (preprocessed / "dataset_fingerprint.json").is_file():
        context.run("nnUNetv2_extract_fingerprint", "-d", number, "-np", context.threads)
    if "base" in what and not (preprocessed / f"{what['base']}.json").is_file():
        target = what["gpu_memory_target"]
        fitted = [] if target is None else ["-gpu_memory_target", target, "-overwrite_plans_name", what["base"]]
        context.run("nnUNetv2_plan_experiment", "-d", number, "-pl", what["planner"], *fitted)
    if "options" in what:
        context.run("nnunet-fm", "plan", "-d", dataset, "--name", what["name"], *_words(what))
    _keep_split(context.raw(dataset), preprocessed)


def adapt(context: JobContext) -> None:
    """Plan the adaptation of a trained model to another dataset."""
    what, dataset = context.what, context.what["dataset"]
    model = ("--source", what["source"], "--source-fold", what["fold"], "-chk", what["checkpoint"])
    faithful = ["--faithful"] if what["faithful"] else []
    method = ("--target", dataset, "--method", what["method"], "--name", what["name"])
    context.run("nnunet-fm", "adapt", *model, *method, *_words(what), *faithful)
    _keep_split(context.raw(dataset), context.preprocessed(dataset))


def preprocess(context: JobContext) -> None:
    """Preprocess a dataset once for each data identifier of the plans, usually one."""
    what, dataset = context.what, context.what["dataset"]
    configuration = what["configuration"]
    kinds: dict[str, tuple[str, bool]] = {}
    for name in what["plans"]:
        entry = _configuration(context.preprocessed(dataset) / f"{name}.json", configuration)
        kinds.setdefault(entry["data_identifier"], (name, entry["preprocessor_name"] == "FMPreprocessor"))
    number = dataset_number(dataset)
    for identifier, (name, ours) in kinds.items():
        words = ("-d", number, "-plans_name", name, "-c", configuration, "-np", context.threads, "--no_pbar")
        if ours:  # our preprocessor checks itself whether the data are current
            context.run("nnUNetv2_preprocess", *words)
            continue
        folder, unfinished = _stock_data(context, identifier)
        if folder is None:
            continue
        unfinished.touch()
        context.run("nnUNetv2_preprocess", *words)
        unfinished.unlink()


def _words(what: Mapping[str, Any]) -> Iterator[str]:
    for option, value in what["options"].items():
        yield from (option, str(value))
    for name, value in what["set"].items():
        yield from ("--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}")


def _configuration(plan: Path, name: str) -> dict[str, Any]:
    content = read_json_or_none(plan)
    if content is None:
        raise StepError(f"{plan} is missing or damaged", code="plans-missing")
    known: dict[str, dict[str, Any]] = content["configurations"]
    if name not in known:
        raise StepError(
            f"{plan.name} plans {' and '.join(known)} for {plan.parent.name}, but not {name}", code="plan-differs"
        )
    return known[name]


def _stock_data(context: JobContext, identifier: str) -> tuple[Path | None, Path]:
    """Folder to fill (None if it is complete), and the path of a file that exists while it is incomplete.

    A complete folder is kept: nnU-Net would delete it first, even while a training reads it.
    """
    dataset = context.what["dataset"]
    folder = context.preprocessed(dataset) / identifier
    unfinished = folder.with_name(f"{identifier}.unfinished")
    raw = context.raw(dataset)
    ending = dataset_json(raw)["file_ending"]
    cases = image_names(raw / "imagesTr", ending)
    there = {file.stem for file in folder.glob("[!.]*.pkl")} if folder.is_dir() else set()
    if cases and cases <= there and not unfinished.exists():
        print(f"{len(cases)} preprocessed cases in {folder} are kept.", flush=True)
        return None, unfinished
    return folder, unfinished


def _keep_split(raw: Path, preprocessed: Path) -> None:
    """Write the split, before several trainings of the dataset write it at the same time."""
    file = preprocessed / "splits_final.json"
    ending = dataset_json(raw)["file_ending"]
    cases = sorted(label_names(raw / "labelsTr", ending))
    if not file.is_file() and (folds := read_folds(cases, raw)):
        write_json(file, folds)
