"""Steps before a training: plans, adaptations of trained models, preprocessed data shared between plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_fm.data.folds import read_folds
from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.studies.cases import image_names, label_names
from nnunet_fm.studies.marks import read_json, write_json
from nnunet_fm.studies.process import StepError
from nnunet_fm.studies.workplace import Workplace


def plan(place: Workplace) -> None:
    """Write a plan, and what it needs: the dataset's fingerprint, nnU-Net's own plan under a control's, the split."""
    what, dataset = place.what, place.what["dataset"]
    preprocessed = place.preprocessed(dataset)
    number = dataset_number(dataset)
    place.variables["nnUNet_n_proc_DA"] = "1"  # nnU-Net's planner sets its threads by this number, and 0 are refused
    if not (preprocessed / "dataset_fingerprint.json").is_file():
        place.run("nnUNetv2_extract_fingerprint", "-d", number, "-np", place.threads)
    if "base" in what and not (preprocessed / f"{what['base']}.json").is_file():
        target = what["gpu_memory_target"]
        fitted = [] if target is None else ["-gpu_memory_target", target, "-overwrite_plans_name", what["base"]]
        place.run("nnUNetv2_plan_experiment", "-d", number, "-pl", what["planner"], *fitted)
    if "options" in what:
        place.run("nnunet-fm", "plan", "-d", dataset, "--name", what["name"], *_words(what))
    _keep_split(place.raw(dataset), preprocessed)


def adapt(place: Workplace) -> None:
    """Write the plan by which a trained model is adapted to another dataset."""
    what, dataset = place.what, place.what["dataset"]
    model = ("--source", what["source"], "--source-fold", what["fold"], "-chk", what["checkpoint"])
    faithful = ["--faithful"] if what["faithful"] else []
    method = ("--target", dataset, "--method", what["method"], "--name", what["name"])
    place.run("nnunet-fm", "adapt", *model, *method, *_words(what), *faithful)
    _keep_split(place.raw(dataset), place.preprocessed(dataset))


def preprocess(place: Workplace) -> None:
    """Preprocess a dataset once for each kind of data that the plans name, which mostly is one."""
    what, dataset = place.what, place.what["dataset"]
    configuration = what["configuration"]
    kinds: dict[str, tuple[str, bool]] = {}
    for name in what["plans"]:
        entry = _configuration(place.preprocessed(dataset) / f"{name}.json", configuration)
        kinds.setdefault(entry["data_identifier"], (name, entry["preprocessor_name"] == "FMPreprocessor"))
    number = dataset_number(dataset)
    for identifier, (name, ours) in kinds.items():
        words = ("-d", number, "-plans_name", name, "-c", configuration, "-np", place.threads, "--no_pbar")
        if ours:  # it knows itself what is up to date
            place.run("nnUNetv2_preprocess", *words)
            continue
        folder, unfinished = _stock_data(place, identifier)
        if folder is None:
            continue
        unfinished.touch()
        place.run("nnUNetv2_preprocess", *words)
        unfinished.unlink()


def _words(what: Mapping[str, Any]) -> Iterator[str]:
    for option, value in what["options"].items():
        yield from (option, str(value))
    for name, value in what["set"].items():
        yield from ("--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}")


def _configuration(plan: Path, name: str) -> dict[str, Any]:
    content = read_json(plan)
    if content is None:
        raise StepError(f"{plan} is missing or damaged")
    known: dict[str, dict[str, Any]] = content["configurations"]
    if name not in known:
        raise StepError(f"{plan.name} plans {' and '.join(known)} for {plan.parent.name}, but not {name}")
    return known[name]


def _stock_data(place: Workplace, identifier: str) -> tuple[Path | None, Path]:
    """The folder to fill, None if it is complete, and a file that is there as long as it is not.

    nnU-Net deletes the folder before it fills it, under a training that reads it; so what is complete is left alone.
    """
    dataset = place.what["dataset"]
    folder = place.preprocessed(dataset) / identifier
    unfinished = folder.with_name(f"{identifier}.unfinished")
    raw = place.raw(dataset)
    ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    cases = image_names(raw / "imagesTr", ending)
    there = {file.stem for file in folder.glob("[!.]*.pkl")} if folder.is_dir() else set()
    if cases and cases <= there and not unfinished.exists():
        print(f"{len(cases)} preprocessed cases in {folder} are kept.", flush=True)
        return None, unfinished
    return folder, unfinished


def _keep_split(raw: Path, preprocessed: Path) -> None:
    """Write the split before several trainings of a dataset do so at once."""
    file = preprocessed / "splits_final.json"
    ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    cases = sorted(label_names(raw / "labelsTr", ending))
    if not file.is_file() and (folds := read_folds(cases, raw)):
        write_json(file, folds)
