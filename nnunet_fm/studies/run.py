"""Run a study with Snakemake, continue one that was killed, and collect the outcome."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from nnunet_fm.io.atomic_write import scratch_folder
from nnunet_fm.io.locks import Lock
from nnunet_fm.studies.job_context import environment
from nnunet_fm.studies.job_markers import INTERRUPTED_BY, JobMarkers, read_json_or_none
from nnunet_fm.studies.jobs import Job
from nnunet_fm.studies.prepare import Prepared, snakemake_arguments
from nnunet_fm.studies.process import program
from nnunet_fm.studies.schema import StudyError

LOG = Path("logs", "snakemake.log")
PAUSE = 0.5
"""Seconds between two searches for finished jobs."""
PATIENCE = 90.0
"""Seconds that running jobs have to end after an interruption."""
STEP_MODULE = "nnunet_fm.studies.steps"
KILLED = ("TIMEOUT", "TIME LIMIT", "CANCELLED", "OUT_OF_ME", "oom", "NODE_FAIL", "PREEMPTED", "DEADLINE", "BOOT_FAIL")
"""Words in SLURM's messages about jobs that it has ended."""

OnDone = Callable[[Job, bool], None]
"""Called with a job and whether it succeeded."""


@dataclass(frozen=True)
class Failure:
    """A failed job, the reason, and the file with its output."""

    job: Job
    reason: str
    log: Path


@dataclass(frozen=True)
class Outcome:
    """State of a study after a run.

    Attributes:
        done: ids of finished jobs.
        failures: jobs that failed.
        waiting: jobs that could not start because of these failures.
        interrupted: whether the user ended it.
        report: page of the report, None before it is written.
    """

    done: set[str]
    failures: Sequence[Failure]
    waiting: Sequence[Job]
    interrupted: bool
    report: Path | None


def check_with_snakemake(prepared: Prepared, profile: str | None, further: Sequence[str]) -> None:
    """Let Snakemake check the study, without running or writing anything.

    Raises:
        StudyError: with Snakemake's message if it refuses the study.
    """
    folder = prepared.study.folder
    with scratch_folder() as temporary:
        # In another folder, so that a running study is not disturbed; a link shows the finished jobs.
        prepared.write(Path(temporary), folder)
        if (folder / "jobs").is_dir():
            Path(temporary, "jobs").symlink_to(folder / "jobs")
        command = _snakemake("--directory", temporary, "--dry-run", "--quiet", "all")
        done = subprocess.run(
            [*command, *snakemake_arguments(prepared, profile, further)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StudyError(
                f"Snakemake refuses the study: {_last_words(done.stdout + done.stderr)}", code="snakemake-refused"
            )


def run(
    prepared: Prepared, profile: str | None, further: Sequence[str], on_done: OnDone, say: Callable[[str], None]
) -> Outcome:
    """Run all unfinished jobs, until none can start.

    Args:
        prepared: the study.
        profile: profile of Snakemake for another machine.
        further: additional arguments of Snakemake.
        on_done: called for each job that ends.
        say: called with sentences for the user.

    Raises:
        StudyError: if the study is running already, or Snakemake does not start.
    """
    folder = prepared.study.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / ".study.lock", f"study {prepared.study.name}")
    _take(lock, folder, say)
    with lock:
        prepared.write_study()
        prepared.write(folder, folder)
        markers = JobMarkers(folder)
        markers.clear_failed()
        if lock.left_behind is not None and _is_locked(folder):
            say(f"The last run was killed ({lock.left_behind}); going on from where it was.")
            _unlock(prepared, profile, further)
        logs = {job.id: _state(markers.log(job.rule, job.id)) for job in prepared.jobs.values()}
        words = _snakemake("--directory", str(folder)) + snakemake_arguments(prepared, profile, further)
        code, interrupted = _supervise(words, lock, markers, prepared.jobs, on_done, say)
        if code < 0:
            _unlock(prepared, profile, further)  # it was killed before it could do so
        if code < 0 and not interrupted:
            ended = signal.Signals(-code).name
            raise StudyError(
                f"Snakemake was ended by {ended}. Jobs that it had started go on alone; the same command waits for "
                "them",
                code="snakemake-ended",
            )
        outcome = _outcome(prepared, markers, interrupted, logs)
        if code != 0 and not interrupted and not outcome.failures:
            raise StudyError(
                f"Snakemake ended with exit code {code}: {_last_words((folder / LOG).read_text(errors='replace'))} "
                f"(see {folder / LOG})",
                code="snakemake-ended",
            )
        return outcome


def _state(log: Path) -> tuple[int, int]:
    """Modification time in ns and size of a log, to notice additions without comparing clocks."""
    try:
        about = log.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


def _take(lock: Lock, folder: Path, say: Callable[[str], None]) -> None:
    """Take a study's lock, after ending a Snakemake whose parent was killed.

    Raises:
        StudyError: if another process holds the lock; the message names it.
    """
    holder = lock.take()
    if holder is not None and (pid := holder.abandoned) is not None:
        say(f"Ending Snakemake (process {pid}), which the last run left behind; its jobs go on and are waited for.")
        process = psutil.Process(pid)
        process.kill()
        process.wait(10)
        holder = lock.take()
    if holder is not None:
        raise StudyError(f"{folder} is in use: the study is running already, as {holder}", code="study-running")


def _unlock(prepared: Prepared, profile: str | None, further: Sequence[str]) -> None:
    """Remove the locks of a Snakemake that has ended."""
    words = _snakemake("--directory", str(prepared.study.folder), "--unlock")
    words += snakemake_arguments(prepared, profile, further)
    subprocess.run(words, env=environment(), capture_output=True, check=True)


def _is_locked(folder: Path) -> bool:
    return any((folder / ".snakemake" / "locks").glob("*"))


def _snakemake(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", *arguments]


def _supervise(
    words: Sequence[str],
    lock: Lock,
    markers: JobMarkers,
    jobs: Mapping[str, Job],
    on_done: OnDone,
    say: Callable[[str], None],
) -> tuple[int, bool]:
    """Run Snakemake to its end; returns its exit code and whether the user interrupted it."""
    log = markers.folder / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    ended = markers.finished(jobs.values())
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupted = False
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                words,
                env=environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the others in order
            )
        lock.add(process.pid)
        try:
            while process.poll() is None:
                ended |= _report_ended(markers, jobs, ended, on_done)
                try:
                    process.wait(PAUSE)
                except subprocess.TimeoutExpired:
                    continue
        except KeyboardInterrupt:
            interrupted = True
            say("Interrupted: running jobs are being ended; the same command goes on from here.")
            _end(process)
        _report_ended(markers, jobs, ended, on_done)
        return process.wait(), interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _report_ended(markers: JobMarkers, jobs: Mapping[str, Job], known: set[str], on_done: OnDone) -> set[str]:
    """Report jobs that have ended since the last call; returns their ids."""
    done = markers.finished(jobs.values()) - known
    failed = markers.unsuccessful(jobs.values()) - known - done
    for job in jobs.values():
        if job.id in done | failed:
            on_done(job, job.id in done)
    return done | failed


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Snakemake and its steps on this machine; further signals are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    steps = [child for child in _children(process.pid) if STEP_MODULE in child.cmdline()]
    process.send_signal(signal.SIGINT)  # it starts no more jobs and cancels those in a cluster's queue
    for step in steps:
        step.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for child in [*_children(process.pid)]:
            child.kill()
        process.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return [c for c in psutil.Process(pid).children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def _outcome(
    prepared: Prepared, markers: JobMarkers, interrupted: bool, logs: Mapping[str, tuple[int, int]]
) -> Outcome:
    """Collect the outcome of a run; ``logs`` are the states of the jobs' logs before it."""
    jobs = prepared.jobs
    done = markers.finished(jobs.values())
    failures: list[Failure] = []
    unbegun: list[Job] = []
    waiting: list[Job] = []
    errors = read_errors(markers.folder / LOG)
    for job in (job for job in jobs.values() if job.id not in done):
        log = markers.log(job.rule, job.id)
        mark, began = read_json_or_none(markers.failed(job.rule, job.id)), _state(log) != logs.get(job.id, (0, 0))
        if mark is not None:
            failures.append(Failure(job, mark["reason"], log))
        elif interrupted or not set(job.needs) <= done:
            waiting.append(job)
        elif began:
            failures.append(Failure(job, _how_it_ended(log, errors.get(job.id)), log))
        elif job.id in errors:
            told = errors[job.id].log
            log = told if told is not None and told.is_file() else markers.folder / LOG
            failures.append(Failure(job, f"never began{errors[job.id]}", log))
        else:
            unbegun.append(job)
    if failures:  # else the whole run failed, which Snakemake's message explains
        failures += [Failure(job, "never began: Snakemake ended before", markers.folder / LOG) for job in unbegun]
    else:
        waiting += unbegun
    page = markers.folder / "report" / "index.html"
    return Outcome(done, failures, waiting, interrupted, page if page.is_file() else None)


@dataclass(frozen=True)
class SchedulerError:
    """Snakemake's words about a failed job.

    Attributes:
        message: message of the scheduler; empty without a scheduler.
        log: log of the scheduler; None without one.
    """

    message: str = ""
    log: Path | None = None

    def __str__(self) -> str:
        last = self._killer()
        told = ": ".join(filter(None, (self.message, last)))
        return f": {told}" if told else ""

    def _killer(self) -> str:
        """SLURM's own line about a job that it has ended; empty without one."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace") if self.log else ""
        except OSError:
            return ""
        found = [line.strip() for line in text.splitlines() if "slurmstepd: error:" in line]
        return found[-1].partition("slurmstepd: error:")[2].strip()[:300] if found else ""


def read_errors(log: Path) -> dict[str, SchedulerError]:
    """Failed jobs by id from Snakemake's log, with the words of the scheduler."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, SchedulerError] = {}
    fields: dict[str, str] = {}
    for line in [*lines, "end"]:
        name, colon, value = line.strip().partition(": ")
        if line.startswith("Error in rule ") or not line.startswith(" "):
            if match := re.search(r"jobs/[a-z]+/([A-Za-z0-9._-]+)\.json", fields.get("output", "")):
                message = " ".join(fields.get("message", "").split()).removesuffix("None")
                place = fields.get("log", "").partition(" (check log file")[0].split(", ")[-1]
                found[match[1]] = SchedulerError(message[:500], Path(place) if place else None)
            fields = {"rule": line} if line.startswith("Error in rule ") else {}
        elif fields and colon:
            fields.setdefault(name, value)
    return found


def _how_it_ended(log: Path, error: SchedulerError | None) -> str:
    """Reason of a job that started and failed without a message of its own."""
    last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    told = str(error or "") + (f" (its log: {error.log})" if error is not None and error.log is not None else "")
    if INTERRUPTED_BY in last and not told:
        number = last.rpartition(INTERRUPTED_BY)[2]
        return f"was ended from outside by {number}, as schedulers do when time is over or a job is cancelled"
    if INTERRUPTED_BY in last or any(word in told for word in KILLED):
        return f"was ended by the scheduler{told}"
    return f"ended without a word, as when it is killed for its memory or time{told}"


def _last_words(text: str) -> str:
    """Last lines of a program's output, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-6:])[-600:] or "it said nothing"


def write_partial_report(prepared: Prepared, outcome: Outcome) -> Path | None:
    """Write a report although some jobs failed; returns its page, None without any scores."""
    folder = prepared.study.folder
    if not any(job.rule == "evaluate" and job.id in outcome.done for job in prepared.jobs.values()):
        return None
    log = folder / "logs" / "report" / "partial.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        words = program("nnunet-fm", ["report", str(folder)])
        subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    page = folder / "report" / "index.html"
    return page if page.is_file() else None


def free_space(path: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


__all__ = ["Failure", "Outcome", "check_with_snakemake", "free_space", "run", "write_partial_report"]
