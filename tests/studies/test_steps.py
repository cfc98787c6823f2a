"""Steps of a study: test cases, going on with a training, preprocessed data that are kept, markers and logs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_fm.io.locks import Lock
from nnunet_fm.metrics import folder
from nnunet_fm.metrics.find_labels import trained_on
from nnunet_fm.metrics.scores_table import COLUMNS, read_scores, write_scores
from nnunet_fm.reporting.results import Run
from nnunet_fm.studies import data, gpus, steps, testing, training
from nnunet_fm.studies.cases import CaseSet, choose_cases, without_seen
from nnunet_fm.studies.collect import collect, collect_results
from nnunet_fm.studies.job_context import JobContext
from nnunet_fm.studies.process import StepError, run_command, thread_variables
from tests.helpers.datasets import nnunet_folders, write_dataset, write_image
from tests.helpers.errors import fails
from tests.helpers.results_maker import write_record

DATASET = "Dataset007_Blobs"


class Recorder(JobContext):
    """Notes commands instead of running them."""

    def run(self, *words: object) -> None:
        self.commands = [*getattr(self, "commands", []), [str(word) for word in words]]
        self.effect([str(word) for word in words])

    def effect(self, words: list[str]) -> None:
        """What a command leaves behind."""


def place(root: Path, what: Mapping[str, Any], kind: type[Recorder] = Recorder) -> Recorder:
    return kind(root / "study", what, Lock(root / "lock", "x"), 1, "cpu")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nnunet_folders(tmp_path, monkeypatch)
    return tmp_path


def blobs(root: Path, **changes: Any) -> Path:
    return write_dataset(root / "nnUNet_raw", 7, shape=(6, 8, 8), **changes)


def label_the_tests(raw: Path) -> None:
    (raw / "labelsTs").mkdir()
    for file in (raw / "imagesTs").iterdir():
        write_image(raw / "labelsTs" / file.name.replace("_0000", ""), np.ones((6, 8, 8), np.uint8), (1, 1, 1))


# Test cases


def test_test_set_or_validation_cases(folders: Path) -> None:
    raw, preprocessed = blobs(folders, cases=10, test_cases=2), folders / "nnUNet_preprocessed" / DATASET
    made = [choose_cases(raw, preprocessed, str(fold), "auto", own=True) for fold in range(5)]
    assert {chosen.images for chosen in made} == {"imagesTr"}
    assert sorted(case for chosen in made for case in chosen.cases) == [f"case_{i:02d}" for i in range(10)]
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["case_01"], "val": ["case_02", "case_00"]}]))
    assert choose_cases(raw, preprocessed, "0", "auto", own=True).cases == ["case_00", "case_02"]
    with fails("test-cases-missing", "1", "3"):
        choose_cases(raw, preprocessed, "3", "auto", own=True)
    with fails("test-cases-missing", "Dataset007_Blobs"):
        choose_cases(raw, preprocessed, "all", "auto", own=True)
    assert len(choose_cases(raw, preprocessed, "all", "auto", own=False).cases) == 10
    with fails("test-cases-missing"):
        choose_cases(raw, preprocessed, "0", "test", own=True)
    label_the_tests(raw)
    for fold in ("0", "all"):
        chosen = choose_cases(raw, preprocessed, fold, "auto", own=True)
        assert (chosen.images, chosen.labels, chosen.cases) == ("imagesTs", "labelsTs", ["case_10", "case_11"])
    assert choose_cases(raw, preprocessed, "0", "validation", own=True).images == "imagesTr"


def test_cases_that_the_model_was_trained_on_are_left_out(folders: Path) -> None:
    """The split was drawn anew after the training; another dataset has the same patients under other names."""
    raw, fold = blobs(folders, cases=6), folders / "fold_0"
    tested = CaseSet("imagesTr", "labelsTr", ["case_00", "case_01", "case_05"])
    write_record(fold, DATASET, ["case_01", "case_02"])
    assert without_seen(tested, raw, fold, DATASET) == (replace(tested, cases=["case_00", "case_05"]), ["case_01"])
    assert trained_on(fold / "validation", tested.cases) == ["case_01"] and trained_on(fold, tested.cases) == []
    # a test image of the same name is another patient, a case of another dataset, too
    assert without_seen(replace(tested, images="imagesTs"), raw, fold, DATASET)[1] == []
    other = write_dataset(folders / "nnUNet_raw", 8, name="Other", shape=(6, 8, 8), cases=1)
    assert without_seen(tested, other, fold, DATASET)[1] == []
    for at, subjects in ((raw, {"case_01": "anna"}), (other, {"case_00": "anna", "case_05": "otto"})):
        cases = {case: {"subject": subject} for case, subject in subjects.items()}
        (at / "conversion.json").write_text(json.dumps({"dataset": "hcp", "cases": cases}))
    assert without_seen(tested, other, fold, DATASET)[1] == ["case_00"]
    assert without_seen(replace(tested, images="imagesTs"), other, fold, DATASET)[1] == ["case_00"]
    # what an adaptation started from has seen, the adapted model has seen, too
    write_record(fold, "Dataset008_Other", [], source_cases={DATASET: ["case_05"]})
    assert without_seen(tested, raw, fold, "Dataset008_Other")[1] == ["case_05"]
    # stock nnU-Net leaves no record, but predictions of the cases that it was validated on
    stock = folders / "stock"
    (stock / "validation").mkdir(parents=True)
    for name in ("case_00.nii.gz", "case_05.nii.gz", "summary.json"):
        (stock / "validation" / name).touch()
    assert without_seen(tested, raw, stock, DATASET)[1] == ["case_01"]
    (stock / "validation" / "case_00.nii.gz").unlink()
    (stock / "validation" / "case_05.nii.gz").unlink()
    assert without_seen(tested, raw, stock, DATASET)[1] == []


# Training


def fold_folder(folders: Path) -> Path:
    folder = folders / "nnUNet_results" / DATASET / "tr__p__2d" / "fold_0"
    folder.mkdir(parents=True)
    return folder


def checkpoint(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", "x")


class Trainer(Recorder):
    """Finishes a training."""

    def effect(self, words: list[str]) -> None:
        checkpoint(self.fold() / "checkpoint_final.pth")
        (self.fold() / "validation").mkdir()
        (self.fold() / "validation" / "summary.json").write_text("{}")


TRAIN = {"dataset": DATASET, "configuration": "2d", "fold": "0", "trainer": "tr", "plans": "p"}


@pytest.mark.parametrize(
    ("there", "cut", "flags"),
    [
        ([], [], []),
        (["best"], [], ["--c"]),
        (["best", "latest"], ["latest"], ["--c"]),
        (["latest"], ["latest"], []),
        (["best", "final"], [], ["--val"]),
        (["best", "final"], ["final"], ["--c"]),
    ],
)
def test_a_training_goes_on_from_what_is_whole(
    folders: Path, there: list[str], cut: list[str], flags: list[str]
) -> None:
    fold = fold_folder(folders)
    for name in there:
        file = fold / f"checkpoint_{name}.pth"
        checkpoint(file)
        if name in cut:
            file.write_bytes(file.read_bytes()[:-8])
    step = place(folders, TRAIN, Trainer)
    training.train(step)
    (words,) = step.commands
    assert words == ["nnUNetv2_train", DATASET, "2d", "0", "-tr", "tr", "-p", "p", "-device", "cpu", *flags]
    training.train(step)
    assert len(step.commands) == 1, "a finished training is not started again"


def test_a_training_that_ends_unfinished_fails(folders: Path) -> None:
    fold_folder(folders)
    with fails("validation-missing", "checkpoint_final"):
        training.train(place(folders, TRAIN))


# Plans and data


def test_plan_makes_what_it_needs_once(folders: Path) -> None:
    blobs(folders)
    preprocessed = folders / "nnUNet_preprocessed" / DATASET
    what = {
        "dataset": DATASET, "name": "StudyPlans_x", "base": "nnUNetPlans", "planner": "ExperimentPlanner",
        "gpu_memory_target": None, "options": {"--control": "stock", "--seed": 3},
        "set": {"recipe.iterations_per_epoch": 5},
    }  # fmt: skip

    class Planner(Recorder):
        def effect(self, words: list[str]) -> None:
            files = {
                "nnUNetv2_extract_fingerprint": "dataset_fingerprint.json",
                "nnUNetv2_plan_experiment": "nnUNetPlans.json",
            }
            if words[0] in files:
                preprocessed.mkdir(parents=True, exist_ok=True)
                (preprocessed / files[words[0]]).write_text("{}")

    step = place(folders, what, Planner)
    data.plan(step)
    data.plan(step)
    plan = ["nnunet-fm", "plan", "-d", DATASET, "--name", "StudyPlans_x", "--control", "stock", "--seed", "3"]
    plan += ["--set", "recipe.iterations_per_epoch=5"]
    first = [
        ["nnUNetv2_extract_fingerprint", "-d", "7", "-np", "1"],
        ["nnUNetv2_plan_experiment", "-d", "7", "-pl", "ExperimentPlanner"],
    ]
    assert step.commands == [*first, plan, plan]
    fitted = place(folders, {**what, "base": "nnUNetPlans_2.5GB", "gpu_memory_target": 2.5})
    data.plan(fitted)
    assert fitted.commands[0][4:] == [
        "ExperimentPlanner", "-gpu_memory_target", "2.5", "-overwrite_plans_name", "nnUNetPlans_2.5GB"
    ]  # fmt: skip
    assert step.variables["nnUNet_n_proc_DA"] != "0", "nnU-Net's planner fails without loader processes"
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert len(splits) == 5 and sorted(case for fold in splits for case in fold["val"]) == [
        f"case_{i:02d}" for i in range(6)
    ]


def test_stock_data_are_kept_if_whole_and_redone_if_not(folders: Path) -> None:
    blobs(folders)
    base = folders / "nnUNet_preprocessed" / DATASET
    base.mkdir()
    entry = {"2d": {"data_identifier": "shared", "preprocessor_name": "DefaultPreprocessor"}}
    for name in ("a", "b"):
        (base / f"{name}.json").write_text(json.dumps({"configurations": entry}))

    class Preprocessor(Recorder):
        def effect(self, words: list[str]) -> None:
            (base / "shared").mkdir(exist_ok=True)
            for case in range(6):
                (base / "shared" / f"case_{case:02d}.pkl").touch()

    step = place(folders, {"dataset": DATASET, "configuration": "2d", "plans": ["a", "b"]}, Preprocessor)
    data.preprocess(step)
    assert step.commands == [
        ["nnUNetv2_preprocess", "-d", "7", "-plans_name", "a", "-c", "2d", "-np", "1", "--no_pbar"]
    ]
    data.preprocess(step)
    assert len(step.commands) == 1
    (base / "shared.unfinished").touch()  # as after a kill
    data.preprocess(step)
    (base / "shared" / "case_03.pkl").unlink()
    data.preprocess(step)
    assert len(step.commands) == 3
    with fails("plan-differs", "Dataset007_Blobs", "3d_fullres"):
        data.preprocess(place(folders, {"dataset": DATASET, "configuration": "3d_fullres", "plans": ["a"]}))


# Predictions and scores


def test_predict_and_evaluate(folders: Path) -> None:
    raw = blobs(folders, cases=6, test_cases=2)
    label_the_tests(raw)
    checkpoint(fold_folder(folders) / "checkpoint_best.pth")

    class Predictor(Recorder):
        def effect(self, words: list[str]) -> None:
            output = Path(words[words.index("-o") + 1])
            output.mkdir(parents=True)
            for case in words[words.index("--cases") + 1 :]:
                os.link(raw / "labelsTs" / f"{case}.nii.gz", output / f"{case}.nii.gz")

    what = {
        **TRAIN,
        "target": DATASET,
        "folder": f"runs/r/{DATASET}",
        "test": "auto",
        "checkpoint": "checkpoint_best.pth",
    }
    step = place(folders, what, Predictor)
    testing.predict(step)
    testing.predict(step)
    (words,) = step.commands
    assert words[words.index("-m") + 1] == str(step.model()) and words[-2:] == ["case_06", "case_07"]
    assert words[words.index("-npp") : words.index("-npp") + 4] == ["-npp", "0", "-nps", "0"]
    testing.evaluate(place(folders, {"folder": what["folder"], "target": DATASET, "options": {"metrics": ["Dice"]}}))
    scores = read_scores(folders / "study" / what["folder"] / "scores.csv")
    assert set(scores["case"]) == {"case_06", "case_07"} and (scores[scores["class"] == "one"]["value"] == 1).all()
    assert json.loads((folders / "study" / "size_shares" / f"{DATASET}.json").read_text()).keys() == {"one", "two"}

    checkpoint(step.fold() / "checkpoint_best.pth")  # trained anew
    os.utime(step.fold() / "checkpoint_best.pth", (1, 1))
    testing.predict(step)
    assert len(step.commands) == 2
    prediction = folders / "study" / what["folder"] / "predictions" / "case_07.nii.gz"
    content = prediction.read_bytes()
    prediction.unlink()  # a link to the reference
    prediction.write_bytes(content[:-9])
    testing.predict(step)
    assert len(step.commands) == 3 and prediction.read_bytes() == content
    with fails("model-incomplete", "checkpoint_final"):
        testing.predict(place(folders, {**what, "checkpoint": "checkpoint_final.pth"}))


# The process of a step


@pytest.fixture
def jobs(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(steps, "_log_to", lambda path: path.parent.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(steps, "interrupt_on_signals", lambda: None)
    file = folders / "study" / "jobs.json"
    file.parent.mkdir()
    job = {"rule": "report", "title": "the report", "what": {}, "device": "cpu"}
    file.write_text(json.dumps({"folder": str(file.parent), "jobs": {"report-1": job}}))
    return file


def test_a_finished_step_leaves_its_mark_last(jobs: Path) -> None:
    mark = jobs.parent / "jobs" / "report" / "report-1.json"

    def work(context: JobContext) -> None:
        assert context.lock.path.is_file() and not mark.exists() and context.threads == 3

    assert steps.main([str(jobs), "report-1", "--threads", "3"], {"report": work}) == 0
    assert json.loads(mark.read_text())["title"] == "the report"
    assert not list((jobs.parent / ".locks").glob("*.lock"))


def test_a_failed_step_says_why(jobs: Path) -> None:
    def work(context: JobContext) -> None:
        raise StepError("no\n  luck", code="some-code")

    assert steps.main([str(jobs), "report-1"], {"report": work}) == 1
    reason = json.loads((jobs.parent / "failed" / "report" / "report-1.json").read_text())["reason"]
    assert reason == "no luck [some-code]"
    assert not (jobs.parent / "jobs").exists()

    def interrupted(context: JobContext) -> None:
        raise KeyboardInterrupt

    (jobs.parent / "failed" / "report" / "report-1.json").unlink()
    assert steps.main([str(jobs), "report-1"], {"report": interrupted}) == steps.INTERRUPTED
    assert not list((jobs.parent / "failed").glob("*/*"))


def test_commands_hold_the_lock_and_fail_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(tmp_path / "lock", "x")
    assert lock.take() is None
    with fails("command-missing", "no_such_command"):
        run_command(["no_such_command"], lock, {})
    with fails("command-failed", "2"):
        run_command(["nnunet-fm", "no_such_thing"], lock, {})
    assert len(json.loads(lock.path.read_text())["processes"]) == 2
    lock.release()


def test_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_variables(4, gpu=False)["OMP_NUM_THREADS"] == "4"
    assert thread_variables(4, gpu=False)["nnUNet_n_proc_DA"] == "0"
    assert thread_variables(4, gpu=True)["nnUNet_n_proc_DA"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setattr(gpus.getpass, "getuser", lambda: f"test{os.getpid()}")
    for variable in gpus.SCHEDULERS:
        monkeypatch.delenv(variable, raising=False)
    with gpus.one_of_several(print) as first, gpus.one_of_several(print) as second:
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"2", "5"}
    with gpus.one_of_several(print, wanted=False) as none:
        assert none == {}
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with gpus.one_of_several(print) as none:
        assert none == {}


# Gathering


def write_run(folder: Path, name: str, **changes: Any) -> Run:
    content = {
        "run": name, "label": name, "trainer": "fm_trainer", "plans": "p", "configuration": "2d", "dataset": DATASET,
        "anatomy": "a", "fold": "0", "model_folder": str(folder / "none"), **changes,
    }  # fmt: skip
    run = Run(**content)
    (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / name / "run.json").write_text(run.model_dump_json())
    return run


def test_collect_takes_the_current_runs_and_what_they_have(folders: Path) -> None:
    study = folders / "study"
    raw = blobs(folders)
    with fails("study-folder"):
        collect(study)
    for name in ("scored", "waiting", "removed"):
        write_run(study, name)
    target = study / "runs" / "scored" / DATASET
    (target / "predictions").mkdir(parents=True)
    values = pd.DataFrame([["case_00", "one", "≥15 %", "Dice", 0.5]], columns=COLUMNS)
    write_scores(values, target / "scores.csv")
    os.link(raw / "labelsTr" / "case_00.nii.gz", target / "predictions" / "case_00.nii.gz")
    times = {"processor": "P", "device": "cpu", "threads": 1, "cases": {"case_00": {"reading": 1.0, "export": 2.0}}}
    (target / "predictions" / "prediction_times.json").write_text(json.dumps(times))
    (study / "study.yaml").write_text("name: s\ntitle: A title\npublished: thesis_a\n")
    results = collect(study)
    assert set(results.runs["run"]) == {"scored", "waiting", "removed"}, "a folder without a list of jobs has all runs"
    content = {"runs": {"scored": [DATASET], "waiting": [DATASET]}, "raw": str(raw.parent)}
    (study / "jobs.json").write_text(json.dumps(content))
    results = collect(study)
    assert (results.title, results.published, list(results.runs["run"])) == (
        "A title",
        "thesis_a",
        ["scored", "waiting"],
    )
    assert results.scores[["run", "target", "value"]].values.tolist() == [["scored", DATASET, 0.5]]
    assert results.times[["step", "seconds"]].values.tolist() == [["reading", 1.0], ["export", 2.0]]
    (row,) = results.files.to_dict("records")
    assert row["image"].endswith("imagesTr/case_00_0000.nii.gz") and row["reference"].endswith(
        "labelsTr/case_00.nii.gz"
    )


def write_model(folders: Path, name: str, plans: dict[str, Any], fold: str = "0") -> None:
    model = folders / "nnUNet_results" / DATASET / name
    raw = folders / "nnUNet_raw" / DATASET
    (model / f"fold_{fold}" / "validation").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps({"plans_name": name.split("__")[1], **plans}))
    (model / "dataset.json").write_text((raw / "dataset.json").read_text())
    (model / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
    os.link(raw / "labelsTr" / "case_01.nii.gz", model / f"fold_{fold}" / "validation" / "case_01.nii.gz")


def test_collect_models_trained_by_hand(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "evaluate_folder", partial(folder.evaluate_folder, metrics=["Dice"]))  # faster
    raw = blobs(folders)
    preprocessed = folders / "nnUNet_preprocessed" / DATASET
    preprocessed.mkdir()
    (preprocessed / "gt_segmentations").symlink_to(raw / "labelsTr")
    with fails("model-missing", "7"):
        collect_results([7])
    recipe = {"seed": 5}
    ours = {
        "nnunet_fm": {
            "version": 1,
            "model": "stunet_s",
            "adapter": "full",
            "recipe": recipe,
            "iterations": 3,
            "train_cases": 2,
        }
    }
    write_model(folders, "fm_trainer__FMPlans_stunet_s__3d_fullres", ours)
    write_model(folders, "fm_trainer_scratch__FMPlans_stunet_s__3d_fullres", ours)
    write_model(folders, "nnUNetTrainer__nnUNetPlans__3d_fullres", {})
    write_model(folders, "nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres", {})
    write_model(folders, "nnUNetTrainerX__nnUNetPlans__3d_fullres", {}, fold="all")
    results = collect_results(["Blobs"], title="By hand")
    runs = results.runs.set_index("label")
    assert list(runs.index) == [
        "stunet_s, 2 cases", "stunet_s from scratch, 2 cases", "nnU-Net", "nnU-Net ResEnc M",
    ]  # fmt: skip
    assert [None if pd.isna(control) else control for control in runs["control"]] == [
        None,
        "scratch",
        "stock",
        "resenc",
    ]
    assert runs["seed"].iloc[0] == 5 and runs["model"].iloc[0] == "stunet_s" and results.title == "By hand"
    dice = results.scores[results.scores["metric"] == "Dice"]
    assert len(dice) == 8 and (dice["value"] == 1).all() and set(results.size_shares) == {DATASET}
    assert len(results.files) == 4 and results.files["image"].str.endswith("case_01_0000.nii.gz").all()
    assert list(collect_results([7], folds=["all"]).runs["trainer"]) == ["nnUNetTrainerX"]
    with fails("trainings-none"):
        collect_results([7], trainers=["other"])
    fold = folders / "nnUNet_results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    write_record(fold, DATASET, ["case_01"])
    results = collect_results([7], trainers=["nnUNetTrainer"])
    assert set(results.scores["run"].map(results.runs.set_index("run")["label"])) == {"nnU-Net ResEnc M"}
    assert results.notes == [f"Cases of {DATASET}, fold 0 that nnU-Net was trained on: case_01"]
