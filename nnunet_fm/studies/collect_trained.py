"""Collect everything a report shows of models trained by hand, whose validation cases are scored as in a study."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_fm.data.subjects import Subjects, read_subjects
from nnunet_fm.errors import MissingFileError
from nnunet_fm.io.dataset_names import nnunet_folder
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.models.names import PLANS_PREFIX, Spec, UnknownNameError
from nnunet_fm.models.registry import get_card, grammar
from nnunet_fm.planfile.schema import STOCK_KEY, PlanKey, StockKey
from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.reporting.results import FILE_COLUMNS, METHODS, RUN_COLUMNS, SCORE_COLUMNS, Results, Run
from nnunet_fm.studies.cases import dataset_json, label_names
from nnunet_fm.studies.datasets import find_dataset
from nnunet_fm.studies.job_names import digest, join, plain, with_cases
from nnunet_fm.studies.plans import PLANS

STOCK_TRAINERS = ("nnUNetTrainer", "fm_trainer_stock")


def collect_results(
    datasets: Sequence[str | int],
    *,
    title: str | None = None,
    trainers: Sequence[str] | None = None,
    plans: Sequence[str] | None = None,
    configurations: Sequence[str] | None = None,
    folds: Sequence[str | int] | None = None,
    processes: int = 1,
) -> Results:
    """Score the validation cases of every trained fold in ``nnUNet_results``.

    Fold ``all`` is left out unless named, because it was trained on its validation cases.

    Args:
        datasets: IDs or names.
        title: title of the report; by default the datasets' names.
        trainers, plans, configurations, folds: names to choose; by default all.
        processes: number of cases scored at the same time.

    Raises:
        FileNotFoundError: if nothing is found; the message names the searched folders.
        ValueError: if a name is ambiguous, or a file is damaged.
    """
    wanted = (trainers, plans, configurations, [str(fold) for fold in folds] if folds is not None else None)
    fold_folders = _fold_folders(datasets, wanted)
    results = _scored(_labelled([_run(fold) for fold in fold_folders]), fold_folders, processes)
    results.title = title or results.title
    return results


def _scored(runs: list[Run], fold_folders: Sequence[Path], processes: int) -> Results:
    """Score the validation cases of each run in its fold's folder."""
    from nnunet_fm.metrics.folder import evaluate_folder
    from nnunet_fm.metrics.size_groups import size_shares

    shares: dict[str, Mapping[str, float]] = {}
    subjects: dict[str, Mapping[str, str]] = {}
    classes: dict[str, Mapping[str, Any]] = {}
    scores, files, notes = [], [], []
    for run, fold in zip(runs, fold_folders, strict=True):
        content = dataset_json(fold.parent)
        references = nnunet_folder("nnUNet_preprocessed") / run.dataset / "gt_segmentations"
        labels, ending = content["labels"], content["file_ending"]
        if run.dataset not in shares:
            subjects[run.dataset] = read_subjects(*_folders_of(run.dataset))
            classes[run.dataset] = labels
            shares[run.dataset] = size_shares(references, labels, ending, processes=processes)
        cases, seen = _validation_cases(run, fold, ending)
        if seen:
            notes.append(trained_on(run.label, f"{run.dataset}, fold {run.fold}", seen))
        if not cases:
            continue
        frame = evaluate_folder(
            fold / "validation", references, labels, file_ending=ending, cases=cases, shares=shares[run.dataset],
            processes=processes,
        )  # fmt: skip
        scores.append(frame.assign(run=run.run, target=run.dataset))
        files += list(_files(run, fold, references, cases, ending))
    anatomies = _anatomies(classes, subjects)
    runs = [run.model_copy(update={"anatomy": anatomies[run.dataset]}) for run in runs]
    return Results(
        title=", ".join(dict.fromkeys(run.dataset for run in runs)),
        runs=pd.DataFrame([run.model_dump() for run in runs], columns=RUN_COLUMNS),
        scores=pd.concat(scores, ignore_index=True)[SCORE_COLUMNS] if scores else pd.DataFrame(columns=SCORE_COLUMNS),
        records=read_records(runs),
        files=pd.DataFrame(files, columns=FILE_COLUMNS),
        size_shares=shares,
        notes=notes,
        subjects=subjects,
    )


def _fold_folders(
    datasets: Sequence[str | int],
    wanted: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None, Sequence[str] | None],
) -> list[Path]:
    """Find the folders of trained folds; raises a FileNotFoundError if there are none."""
    folders = [_trained(str(dataset)) for dataset in datasets]
    found = [fold for folder in folders for fold in _folds(folder, *wanted)]
    if not found:
        places = ", ".join(str(folder) for folder in folders)
        raise MissingFileError(
            f"no trained and validated fold in {places}: the names given choose none, or none is there",
            code="trainings-none",
        )
    return found


def _validation_cases(run: Run, fold: Path, ending: str) -> tuple[list[str], list[str]]:
    """Split the validated cases of a fold into cases to score and cases of its training."""
    there = sorted(label_names(fold / "validation", ending))
    seen = set() if run.fold == "all" else _seen(fold)
    return [case for case in there if case not in seen], [case for case in there if case in seen]


def _folders_of(dataset: str) -> list[Path]:
    """Folders with a dataset's table of patients; raw data may be gone after the training."""
    found = [os.environ.get(name) for name in ("nnUNet_raw", "nnUNet_preprocessed")]
    return [Path(folder, dataset) for folder in found if folder]


def _anatomies(classes: Mapping[str, Mapping[str, Any]], subjects: Subjects) -> dict[str, str]:
    """Map each dataset to the first one of the same patients and classes, such as another MR sequence, or to itself."""
    first: dict[str, str] = {}
    for dataset, labels in classes.items():
        people = set(subjects[dataset].values())
        alike = (other for other in first if classes[other] == labels and people.intersection(subjects[other].values()))
        first[dataset] = first[other] if (other := next(alike, None)) else dataset
    return first


def trained_on(label: str, where: str, cases: Sequence[str]) -> str:
    """Write a sentence on cases that a model was trained on."""
    return f"Cases of {where} that {label} was trained on: {', '.join(cases)}"


def _seen(fold: Path) -> set[str]:
    """Cases of its own dataset that a fold was trained on, from its record."""
    record = TrainingRecord.read(fold)
    return set() if record is None else set(record.seen[record.dataset])


def read_records(runs: Iterable[Run]) -> dict[str, TrainingRecord]:
    """Training records by run, of the runs that have one."""
    found = {run.run: TrainingRecord.read(Path(run.model_folder) / f"fold_{run.fold}") for run in runs}
    return {run: record for run, record in found.items() if record is not None}


def _trained(given: str) -> Path:
    """A dataset's folder in ``nnUNet_results``; its raw data need not exist."""
    results = nnunet_folder("nnUNet_results")
    dataset = find_dataset(given, results)
    if dataset.folder is None:
        raise MissingFileError(f"no trained models of dataset {given} in {results}", code="model-missing")
    return dataset.folder


def _folds(
    dataset: Path,
    trainers: Sequence[str] | None,
    plans: Sequence[str] | None,
    configurations: Sequence[str] | None,
    folds: Sequence[str] | None,
) -> Iterator[Path]:
    """Folders of a dataset's validated folds with the given names."""
    for model in sorted(path for path in dataset.glob("*__*__*") if path.is_dir()):
        names = model.name.split("__")
        if len(names) != 3 or any(
            wanted is not None and name not in wanted
            for name, wanted in zip(names, (trainers, plans, configurations), strict=True)
        ):
            continue
        for fold in sorted(model.glob("fold_*")):
            name = fold.name.removeprefix("fold_")
            chosen = name != "all" if folds is None else name in folds
            if chosen and (fold / "validation" / "summary.json").is_file():
                yield fold


def _run(fold: Path) -> Run:
    """Describe a trained fold from its folder's name and its plan."""
    model = fold.parent
    trainer, plans_name, configuration = model.name.split("__")
    plans = read_object(model / "plans.json")
    key = PlanKey.read(plans)
    try:
        spec = grammar().trainer(trainer)
    except UnknownNameError:
        spec = Spec()
    about: dict[str, Any] = {}
    name = spec.model or (key.model if key else None)
    if name is not None:
        card = get_card(name)
        adapter = spec.adapter or (key.adapter if key and not spec.scratch else None)
        about = {
            "model": card.name,
            "head": spec.head or (key.head if key else None) or card.default_head,
            "adapter": adapter or (("full" if spec.scratch else card.default_adapter) if card.adapters else None),
            "control": "scratch" if spec.scratch and card.checkpoint else None,
            "seed": key.recipe.seed if key else None,
            "train_cases": key.train_cases if key else None,
        }
        if key is not None and key.adaptation is not None:
            about |= {"method": key.adaptation.method, "source": key.adaptation.source}
    else:
        stock = StockKey.read(plans) if STOCK_KEY in plans else None
        if trainer in STOCK_TRAINERS:
            about["control"] = "resenc" if "resenc" in plans_name.lower() else "stock"
        about |= {"seed": stock.seed, "train_cases": stock.train_cases} if stock else {}
    dataset, number = model.parent.name, fold.name.removeprefix("fold_")
    label = _label(trainer, plans_name, spec, about)
    return Run(
        run=f"{plain(f'{label}_{dataset}_f{number}')[:150]}_{digest([model.name, dataset, number], 6)}",
        label=label,
        trainer=trainer,
        plans=plans_name,
        configuration=configuration,
        dataset=dataset,
        anatomy=dataset,
        fold=number,
        model_folder=str(model),
        **about,
    )


def _label(trainer: str, plans: str, spec: Spec, about: Mapping[str, Any]) -> str:
    """Label of a model in tables and figures."""
    if about.get("model") is None:
        size = plans.removeprefix("nnUNetResEncUNet").removesuffix("Plans")
        known = {"stock": "nnU-Net", "resenc": f"nnU-Net ResEnc {size}" if len(size) <= 2 else "nnU-Net ResEnc"}
        return known.get(about.get("control", ""), f"{trainer} {plans}")
    words = plans.removeprefix(f"{PLANS_PREFIX}_") if plans.startswith(PLANS_PREFIX) else ""
    if plans.startswith(PLANS) or not words:
        words = join(about["model"], about["head"], about["adapter"])
    parts = [
        words,
        join(spec.head, spec.adapter) if spec.model is None else None,
        "from scratch" if spec.scratch else None,
    ]
    label = with_cases(" ".join(part for part in parts if part), about.get("train_cases"))
    return f"{label}, {METHODS[about['method']]}" if about.get("method") else label


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """Label models that would share a label by trainer, plans and configuration."""
    models = {(run.dataset, run.label, run.trainer, run.plans, run.configuration) for run in runs}
    shared = Counter((dataset, label) for dataset, label, *_ in models)
    ambiguous = {label for (_, label), count in shared.items() if count > 1}
    return [
        run.model_copy(update={"label": f"{run.trainer} {run.plans} {run.configuration}"})
        if run.label in ambiguous
        else run
        for run in runs
    ]


def _files(run: Run, fold: Path, references: Path, cases: Sequence[str], ending: str) -> Iterator[dict[str, str]]:
    images = Path(os.environ.get("nnUNet_raw", "nnUNet_raw"), run.dataset, "imagesTr")
    for case in cases:
        image = images / f"{case}_0000{ending}"
        if image.is_file():
            yield {
                "run": run.run,
                "target": run.dataset,
                "case": case,
                "image": str(image),
                "reference": str(references / f"{case}{ending}"),
                "prediction": str(fold / "validation" / f"{case}{ending}"),
            }
