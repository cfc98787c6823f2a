"""Steps after a training: predictions, scores, the report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nnunet_fm.io.atomic_write import PARTIAL
from nnunet_fm.studies.cases import CaseSet, choose_cases, dataset_json, label_names, without_seen
from nnunet_fm.studies.job_context import JobContext
from nnunet_fm.studies.job_markers import read_json_or_none, write_json
from nnunet_fm.studies.process import StepError

TESTED = "tested.json"
"""File in a target's folder with the predicted cases and the checkpoint."""
LEFT_OUT = "left_out"
"""Key in that file for cases that the model was trained on."""
PREDICTIONS, SCORES = "predictions", "scores.csv"


def predict(context: JobContext) -> None:
    """Predict the test cases of a dataset with a trained fold, in one process, so that times are undisturbed.

    Raises:
        StepError: if the command fails or the checkpoint is missing.
    """
    what = context.what
    target, folder = what["target"], context.folder / what["folder"]
    raw = context.raw(target)
    chosen = choose_cases(raw, context.preprocessed(target), what["fold"], what["test"], own=target == what["dataset"])
    checkpoint = context.fold() / what["checkpoint"]
    if not checkpoint.is_file():
        raise StepError(f"{context.fold()} has no {what['checkpoint']}", code="model-incomplete")
    chosen, seen = without_seen(chosen, raw, context.fold(), what["dataset"])
    if seen:
        print(f"Left out, because the model was trained on them: {', '.join(seen)}", flush=True)
    if not chosen.cases:
        raise StepError(
            f"{context.fold()} was trained on all {len(seen)} cases of {target} that it would be tested on, such as "
            f"{seen[0]}: bring the split back that it was trained with, or train it anew",
            code="cases-seen",
        )
    left_out = {LEFT_OUT: seen} if seen else {}
    stamp = {**chosen.as_json(), **left_out, "checkpoint": [what["checkpoint"], *_version(checkpoint)]}
    predictions, ending = folder / PREDICTIONS, dataset_json(raw)["file_ending"]
    if read_json_or_none(folder / TESTED) == stamp and set(chosen.cases) <= label_names(predictions, ending):
        from nnunet_fm.io.image_files import fault_of_result

        found = (
            fault_of_result(predictions / f"{case}{ending}", raw / chosen.images / f"{case}_0000{ending}")
            for case in chosen.cases
        )
        fault = next(filter(None, found), None)
        if fault is None:
            print(f"{len(chosen.cases)} predictions in {predictions} are kept.", flush=True)
            return
        print(f"{fault}: all cases are predicted again.", flush=True)
    partial = folder / f"{PREDICTIONS}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    (folder / TESTED).unlink(missing_ok=True)
    model = ("-m", context.model(), "-f", what["fold"], "-chk", what["checkpoint"], "-device", context.device)
    context.run(
        "nnunet-fm", "predict", "-i", raw / chosen.images, "-o", partial, *model, "-npp", 0, "-nps", 0,
        "--disable_progress_bar", "--cases", *chosen.cases,
    )  # fmt: skip
    shutil.rmtree(predictions, ignore_errors=True)
    os.replace(partial, predictions)
    write_json(folder / TESTED, stamp)


def evaluate(context: JobContext) -> None:
    """Score the predictions of a target.

    Raises:
        StepError: if there are no predictions.
    """
    from nnunet_fm.metrics.folder import evaluate_folder
    from nnunet_fm.metrics.scores_table import write_scores

    what, raw = context.what, context.raw(context.what["target"])
    folder = context.folder / what["folder"]
    stamp, content = read_json_or_none(folder / TESTED), dataset_json(raw)
    if stamp is None:
        raise StepError(f"{folder} holds no predictions", code="predictions-missing")
    tested = CaseSet(stamp["images"], stamp["labels"], stamp["cases"])
    scores = evaluate_folder(
        folder / PREDICTIONS,
        raw / tested.labels,
        content["labels"],
        file_ending=content["file_ending"],
        cases=tested.cases,
        shares=class_shares(context.folder, raw, context.threads),
        processes=context.threads,
        **what["options"],
    )
    write_scores(scores, folder / SCORES)


def report(context: JobContext) -> None:
    """Write the report of the study as far as it has run."""
    context.run("nnunet-fm", "report", context.folder)


def class_shares(folder: Path, raw: Path, processes: int) -> dict[str, float] | None:
    """Share of each class in the labelled volume of a dataset's training cases, cached in the study's folder.

    None if the dataset has no training cases.
    """
    from nnunet_fm.metrics.size_groups import size_shares

    file = folder / "size_shares" / f"{raw.name}.json"
    known = read_json_or_none(file)
    if known is not None:
        return known
    content = dataset_json(raw)
    try:
        shares = size_shares(raw / "labelsTr", content["labels"], content["file_ending"], processes=processes)
    except FileNotFoundError:
        return None
    write_json(file, shares)
    return shares


def _version(file: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns."""
    about = file.stat()
    return about.st_size, about.st_mtime_ns
