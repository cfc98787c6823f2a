"""Studies through Snakemake, with commands that do next to nothing: dry runs, failures, kills, interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from nnunet_fm.cli import study as command
from nnunet_fm.cli.app import app
from nnunet_fm.io.locks import Lock
from nnunet_fm.studies import run as running
from nnunet_fm.studies.job_context import absolute_folder, environment
from nnunet_fm.studies.job_markers import JobMarkers, write_json
from nnunet_fm.studies.jobs import Job
from tests.helpers.datasets import nnunet_folders, write_dataset
from tests.helpers.errors import assert_error, assert_refused, fails

REPOSITORY = Path(__file__).parents[2]

COMMANDS = '''
"""Stand-ins for the commands of a study: each notes that it was called, and leaves behind what the real one would."""
import json, os, shutil, sys, time, zipfile
from pathlib import Path

PRE, RES, RAW = (Path(os.environ[n]) for n in ("nnUNet_preprocessed", "nnUNet_results", "nnUNet_raw"))
HERE = Path(__file__).parent


def note(*words):
    with (HERE / "calls.txt").open("a") as stream:
        stream.write(" ".join(map(str, words)) + "\\n")


def value(option):
    return sys.argv[sys.argv.index(option) + 1]


def dataset(number):
    return next(RAW.glob(f"Dataset{int(number):03d}_*")).name


def fingerprint():
    folder = PRE / dataset(value("-d"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_fingerprint.json").write_text("{}")


def write_plan(folder, name):
    entry = {"data_identifier": "data", "preprocessor_name": "FMPreprocessor"}
    (folder / f"{name}.json").write_text(json.dumps({"configurations": {"3d_fullres": entry, "2d": entry}}))


def ours():
    if sys.argv[1] == "plan":
        if "--variant" in sys.argv and value("--variant") == "official":
            sys.exit("this model cannot take the data")
        write_plan(PRE / value("-d"), value("--name"))
    elif sys.argv[1] == "predict":
        output = Path(value("-o"))
        output.mkdir(parents=True)
        labels = Path(str(value("-i")).replace("images", "labels"))
        for case in sys.argv[sys.argv.index("--cases") + 1:]:
            shutil.copy(labels / f"{case}.nii.gz", output)
    elif sys.argv[1] == "report":
        report = Path(sys.argv[2]) / "report"
        report.mkdir(exist_ok=True)
        scored = [path.parent.parent.name for path in Path(sys.argv[2]).glob("runs/*/*/scores.csv")]
        (report / "index.html").write_text(",".join(scored))
    note(sys.argv[1])


def preprocess():
    note("preprocess")


def checkpoint(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", "x")


def train():
    data, configuration, fold = sys.argv[1:4]
    folder = RES / data / f"{value('-tr')}__{value('-p')}__{configuration}" / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    note("train", fold, "continued" if "--c" in sys.argv else "new")
    checkpoint(folder / "checkpoint_latest.pth")
    gate = HERE / "gate"
    while gate.exists():
        time.sleep(0.05)
    checkpoint(folder / "checkpoint_final.pth")
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation" / "summary.json").write_text("{}")
    note("trained", fold)
'''
ENTRY_POINTS = """[console_scripts]
nnunet-fm = study_commands:ours
nnUNetv2_extract_fingerprint = study_commands:fingerprint
nnUNetv2_preprocess = study_commands:preprocess
nnUNetv2_train = study_commands:train
"""


class Place:
    """A folder with a small dataset, a study of one model and two folds, and stand-ins for the commands."""

    def __init__(self, root: Path) -> None:
        self.root, self.output = root, root / "out"
        self.folders = nnunet_folders(root)
        write_dataset(self.folders["nnUNet_raw"], 7, shape=(6, 8, 8), cases=6, test_cases=0)
        self.commands = root / "commands"
        info = self.commands / "study_commands-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: study-commands\nVersion: 1\n")
        (info / "entry_points.txt").write_text(ENTRY_POINTS)
        (self.commands / "study_commands.py").write_text(COMMANDS)
        self.file = root / "study.yaml"
        self.write()

    def write(self, **changes: Any) -> None:
        content = {"name": "s", "output": str(self.output), "datasets": [7], "models": ["vanilla_unet3d"]}
        content |= {"controls": False, "folds": [0, 1], "resources": {"gpu": 0, "cores": 1}}
        content |= {"evaluate": {"metrics": ["Dice"]}, **changes}
        self.file.write_text(yaml.safe_dump(content))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            **self.folders,
            "PYTHONPATH": os.pathsep.join([str(self.commands), str(REPOSITORY)]),
        }
        code = "from nnunet_fm.cli.app import main; main()"
        words = [sys.executable, "-c", code, "study", str(self.file), "--cores", "2", *arguments]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    @property
    def calls(self) -> list[str]:
        file = self.commands / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []

    def close(self) -> None:
        """Trainings wait from now on."""
        (self.commands / "gate").touch()

    def open(self) -> None:
        (self.commands / "gate").unlink()

    def wait_for(self, *calls: str) -> None:
        deadline = time.monotonic() + 60
        while not set(calls) <= set(self.calls):
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.05)

    def living(self) -> list[psutil.Process]:
        """Processes that work for this study."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = " ".join(process.info["cmdline"] or [])
            ours = "nnunet_fm.studies.steps" in words or "snakemake" in words or "study_commands" in words
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE and self._is_here(process):
                found.append(process)
        return found

    def _is_here(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("nnUNet_raw") == self.folders["nnUNet_raw"]
        except psutil.Error:
            return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.living():
        process.kill()


# Fast: nothing is run


def invoke(place: Place, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    for name, folder in place.folders.items():
        monkeypatch.setenv(name, folder)
    return CliRunner().invoke(app, ["study", *arguments], catch_exceptions=True)


def test_dry_run_with_snakemake_itself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(controls=True, models=["sam_b_linear"], datasets=[7, "HCP_T1"])
    answer = invoke(place, monkeypatch, str(place.file), "--dry-run", "--json")
    assert answer.exit_code == 0, answer.output + str(answer.exception)
    summary = json.loads(answer.stdout)
    assert {rule: about["jobs"] for rule, about in summary["jobs"].items()} == {
        "plan": 6, "preprocess": 4, "train": 16, "predict": 16, "evaluate": 16, "report": 1,
    }  # fmt: skip
    assert summary["hours"] > 0 and summary["assumptions"] and set(summary["disk"]) == {
        "nnUNet_preprocessed", "nnUNet_results", "output",
    }  # fmt: skip
    assert summary["missing"] == {"HCP_T1": "nnunet-fm convert hcp SOURCE -d ID --domain t1"}
    assert summary["missing_weights"] == ["sam_vit_b_01ec64"]
    assert not place.output.exists() and not list(Path(place.folders["nnUNet_preprocessed"]).iterdir())
    answer = invoke(place, monkeypatch, str(place.file))
    assert answer.exit_code == 1
    assert_error(answer.exception, "dataset-missing", "HCP_T1: nnunet-fm convert hcp")


def test_what_a_study_needs_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(place, monkeypatch).exit_code == 2
    example = invoke(place, monkeypatch, "--example")
    assert example.exit_code == 0 and yaml.safe_load(example.stdout)["models"]
    with monkeypatch.context() as patched:
        patched.setattr(command, "find_spec", lambda name: None)
        answer = invoke(place, patched, str(place.file))
    assert answer.exit_code == 1
    assert_error(answer.exception, "snakemake-missing", 'pip install "nnunet-fm[study]"')
    monkeypatch.delenv("nnUNet_results")
    answer = CliRunner().invoke(app, ["study", str(place.file), "--dry-run"])
    assert answer.exit_code == 1
    assert_error(answer.exception, "variable-unset", "nnUNet_results")


def test_a_study_that_runs_is_refused(tmp_path: Path) -> None:
    lock = Lock(tmp_path / ".study.lock", "study s")
    assert lock.take() is None
    with lock, fails("study-running", os.getpid()):
        running._take(Lock(lock.path, "study s"), tmp_path, print)


SNAKEMAKE_LOG = """\
Job 3 has been submitted with SLURM jobid 13 (log: {slurm}/13.log).
[Mon Nov 30 12:00:00 2026]
Error in rule train:
    message: SLURM-job '13' failed, SLURM status is: 'TIMEOUT'. Reason: Unknown.
    jobid: 3
    input: jobs/preprocess/p.json (ancient)
    output: jobs/train/limited.json
    log: {slurm}/13.log (check log file(s) for error details)
    shell:
        python -m nnunet_fm.studies.steps jobs.json limited --threads 1
        (command exited with non-zero exit code)
    external_jobid: 13
Error in rule train:
    message: SLURM-job '14' failed, SLURM status is: 'CANCELLED'. Reason: Unknown.
    jobid: 4
    output: jobs/train/queued.json
    log: {slurm}/14.log (check log file(s) for error details)
Error in rule train:
    message: SLURM sbatch failed. The error message was 'invalid partition'.
    sbatch call:
        sbatch --parsable
    jobid: 5
    output: jobs/train/refused.json
Error in rule train:
    message: None
    jobid: 6
    output: jobs/train/crashed.json
Shutting down, this might take some time.
"""


def test_what_ended_a_job_is_told_with_its_log(tmp_path: Path) -> None:
    """Killed by a scheduler, cancelled before it began, refused, or gone without a word; only others' victims wait."""
    names = ("done", "limited", "queued", "refused", "crashed", "signalled", "failed", "never", "dependent", "older")
    needs = {"dependent": ("failed",), "done": ()}
    jobs = {name: Job(name, "train", f"train {name}", needs.get(name, ("done",)), {}) for name in names}
    markers, slurm = JobMarkers(tmp_path), tmp_path / "slurm"
    write_json(markers.done("train", "done"), {})
    write_json(markers.failed("train", "failed"), {"reason": "no such model"})
    slurm.mkdir()
    (slurm / "13.log").write_text("x\nslurmstepd: error: *** JOB 13 ON n1 CANCELLED AT 12:00 DUE TO TIME LIMIT ***\n")
    words = dict.fromkeys(("limited", "signalled"), "Epoch 1\n--- now interrupted by SIGTERM\n")
    words |= {"crashed": "Epoch 1\n", "older": "of the last run\n", "failed": "--- now failed\n"}
    for name, text in words.items():
        markers.log("train", name).parent.mkdir(parents=True, exist_ok=True)
        markers.log("train", name).write_text(text)
    (tmp_path / running.LOG).write_text(SNAKEMAKE_LOG.format(slurm=slurm))
    before = {"older": running._state(markers.log("train", "older"))}
    prepared: Any = SimpleNamespace(jobs=jobs)
    outcome = running._outcome(prepared, markers, False, before)
    told = {failure.job.id: failure for failure in outcome.failures}
    assert [job.id for job in outcome.waiting] == ["dependent"] and outcome.done == {"done"}
    expected: tuple[tuple[str, tuple[str, ...], Path], ...] = (
        ("limited", ("by the scheduler", "'TIMEOUT'", "TO TIME LIMIT", "13.log"), markers.log("train", "limited")),
        ("queued", ("never began", "'CANCELLED'"), tmp_path / running.LOG),
        ("refused", ("never began", "invalid partition"), tmp_path / running.LOG),
        ("crashed", ("ended without a word",), markers.log("train", "crashed")),
        ("signalled", ("was ended from outside by SIGTERM",), markers.log("train", "signalled")),
        ("failed", ("no such model",), markers.log("train", "failed")),
        ("never", ("never began",), tmp_path / running.LOG),
        ("older", ("never began",), tmp_path / running.LOG),
    )  # fmt: skip
    for name, parts, log in expected:
        failure = told.pop(name)
        assert all(part in failure.reason for part in parts), failure.reason
        assert failure.log == log, name
    assert not told
    everything = running._outcome(prepared, markers, True, before)
    assert {failure.job.id for failure in everything.failures} == {"failed"}, "the user ended the others"


def test_a_study_that_snakemake_refuses_has_no_jobs_that_failed(tmp_path: Path) -> None:
    jobs = {"a": Job("a", "train", "train a", (), {})}
    outcome = running._outcome(SimpleNamespace(jobs=jobs), JobMarkers(tmp_path), False, {})  # type: ignore[arg-type]
    assert not outcome.failures and [job.id for job in outcome.waiting] == ["a"]


def test_jobs_work_elsewhere_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in (("nnUNet_raw", "raw"), ("NNUNET_FM_WEIGHTS", "../weights"), ("nnUNet_n_proc_DA", "2")):
        monkeypatch.setenv(name, folder)
    found = environment()
    assert found["nnUNet_raw"] == str(tmp_path / "raw") == str(absolute_folder("nnUNet_raw"))
    assert Path(found["NNUNET_FM_WEIGHTS"]).is_absolute() and found["nnUNet_n_proc_DA"] == "2"
    assert os.environ["nnUNet_raw"] == "raw"


# Slow: Snakemake runs


def _again(place: Place, calls: list[str]) -> None:
    """Run again, and nothing is done."""
    code, _, err = place.run()
    assert code == 0, err
    assert place.calls == calls


@pytest.mark.slow
def test_finished_work_is_not_repeated(place: Place) -> None:
    code, out, err = place.run("--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["jobs"]["train"] == {"jobs": 2, "done": 2, "hours": 0.0} and result["failed"] == []
    assert Path(result["report"]).read_text().count(",") == 1
    assert sorted(place.calls) == sorted(
        ["plan", "preprocess", "train 0 new", "train 1 new", "trained 0", "trained 1", "predict", "predict", "report"]
    )
    before = place.calls
    shutil.rmtree(place.output / ".snakemake")  # as after a copy that keeps neither hidden files nor times
    for file in place.output.rglob("*"):
        if file.is_file():
            os.utime(file, (time.time(), 1e9 + hash(file.name) % 1000))
    _again(place, before)
    shutil.rmtree(place.output / "jobs")  # markers lost: products are recognised
    assert place.run()[0] == 0
    assert sorted(place.calls[len(before) :]) == ["plan", "preprocess", "report"]


@pytest.mark.slow
def test_a_changed_study_adds_and_leaves_out(place: Place) -> None:
    assert place.run()[0] == 0
    place.write(folds=[1, 2])
    before = len(place.calls)
    assert place.run()[0] == 0
    assert sorted(place.calls[before:]) == ["predict", "preprocess", "report", "train 2 new", "trained 2"] or sorted(
        place.calls[before:]
    ) == ["predict", "report", "train 2 new", "trained 2"]
    from nnunet_fm.studies.collect import collect

    assert sorted(collect(place.output).runs["fold"]) == ["1", "2"]
    assert len(list((place.output / "runs").iterdir())) == 3


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others(place: Place) -> None:
    place.write(models=["vanilla_unet3d", {"model": "stunet_s", "scratch": True, "variant": "official"}])
    code, out, err = place.run("--json")
    result = json.loads(out)
    assert code == 1 and result["jobs"]["evaluate"]["done"] == 2
    (failed,) = result["failed"]
    assert "this model cannot take the data" in failed["reason"] and Path(failed["log"]).is_file()
    assert "plan stunet_s_scratch_official" in err and failed["log"] in err
    assert Path(result["report"]).is_file() and len(result["waiting"]) == 8


@pytest.mark.slow
def test_jobs_that_are_ended_from_outside_are_told_with_their_logs(place: Place) -> None:
    place.close()
    process = place.start("--json")
    place.wait_for("train 0 new", "train 1 new")
    steps = [p for p in place.living() if {"nnunet_fm.studies.steps", "-m"} <= set(p.cmdline())]
    assert len(steps) == 2
    trainings = steps[1].children(recursive=True)
    steps[0].terminate()
    for killed in (steps[1], *trainings):
        killed.kill()
    out, err = process.communicate(timeout=120)
    failed = json.loads(out)["failed"]
    assert process.returncode == 1 and len(failed) == 2, err
    asked, gone = sorted(failed, key=lambda job: "without a word" in job["reason"])
    assert "was ended from outside by SIGTERM" in asked["reason"]
    assert gone["reason"] == "ended without a word, as when it is killed for its memory or time"
    assert all("/logs/train/" in job["log"] and Path(job["log"]).is_file() for job in failed)
    place.open()
    assert place.run()[0] == 0


@pytest.mark.slow
def test_a_killed_study_goes_on_and_waits_for_its_orphans(place: Place) -> None:
    place.close()
    first = place.start()
    place.wait_for("train 0 new", "train 1 new")
    refused = place.run()
    assert refused[0] == 1 and f"process {first.pid}" in refused[2]
    first.kill()  # Snakemake and both trainings live on
    first.communicate()
    second = place.start()
    deadline = time.monotonic() + 60
    log = place.output / "logs" / "train"
    while sum("waiting for process" in file.read_text() for file in log.glob("*.log")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    place.open()
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert sorted(call for call in place.calls if call.startswith("train")) == [
        "train 0 new", "train 1 new", "trained 0", "trained 1",
    ]  # fmt: skip


@pytest.mark.slow
def test_snakemake_alone_is_killed(place: Place) -> None:
    place.close()
    first = place.start()
    place.wait_for("train 0 new", "train 1 new")
    (snakemake,) = [child for child in psutil.Process(first.pid).children() if "snakemake" in child.cmdline()]
    snakemake.kill()
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert_refused(err, "snakemake-ended", "SIGKILL")
    place.open()
    code, _, err = place.run()
    assert code == 0, err
    assert place.calls.count("train 0 new") == place.calls.count("train 1 new") == 1


@pytest.mark.slow
def test_everything_killed_is_continued(place: Place) -> None:
    place.close()
    first = place.start()
    place.wait_for("train 0 new", "train 1 new")
    first.kill()
    first.communicate()
    for process in place.living():
        process.kill()
    place.open()
    code, _, err = place.run()
    assert code == 0, err
    assert {"train 0 continued", "train 1 continued"} <= set(place.calls) and place.calls.count("plan") == 1
    assert "The last run was killed" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_everything(place: Place, number: int) -> None:
    place.close()
    process = place.start()
    place.wait_for("train 0 new", "train 1 new")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in err
    assert place.living() == [] and not list((place.output / "failed").glob("*/*.json"))
    place.open()
    assert place.run()[0] == 0
