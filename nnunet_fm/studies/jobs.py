"""Jobs of a study and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_fm.studies.expand import Expansion, Training
from nnunet_fm.studies.job_names import job_id
from nnunet_fm.studies.plans import StudyPlan

RULES = ("plan", "preprocess", "train", "adapt", "predict", "evaluate", "report")
"""Kinds of jobs; ``adapt`` plans the adaptation of a trained model."""


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        id: unique legal file name, equal for equal work.
        rule: one of `RULES`.
        title: title for messages.
        needs: ids of jobs that must be done before.
        what: arguments of the step (`nnunet_fm.studies.steps`).
        run: id of the run that the job belongs to, if it is one.
    """

    id: str
    rule: str
    title: str
    needs: tuple[str, ...]
    what: Mapping[str, Any]
    run: str | None = None


def make_jobs(expansion: Expansion) -> dict[str, Job]:
    """All jobs by id; each follows the jobs that it needs."""
    jobs: dict[str, Job] = {}
    plans: dict[str, str] = {}
    shared: dict[tuple[str, ...], list[Training]] = {}
    for training in expansion.trainings.values():
        job = _plan(training)
        plans[training.run.run] = job.id
        jobs.setdefault(job.id, job)
        shared.setdefault((training.plan.dataset, *training.plan.data), []).append(training)
    prepared: dict[str, str] = {}
    for key, trainings in shared.items():
        job = _preprocess(key, [t.plan for t in trainings], [plans[t.run.run] for t in trainings])
        prepared |= {t.run.run: job.id for t in trainings}
        jobs[job.id] = job
    evaluations: list[str] = []
    for training in expansion.trainings.values():
        found = _train_and_test(expansion, training, prepared[training.run.run])
        evaluations += [job.id for job in found if job.rule == "evaluate"]
        jobs |= {job.id: job for job in found}
    report = Job(job_id("report", "report", sorted(evaluations)), "report", "report", tuple(evaluations), {})
    jobs[report.id] = report
    return _sorted(jobs)


def _sorted(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Sort jobs so that each follows the jobs that it needs."""
    done: dict[str, Job] = {}

    def put(job: Job) -> None:
        if job.id not in done:
            for needed in job.needs:
                put(jobs[needed])
            done[job.id] = job

    for job in jobs.values():
        put(job)
    return done


def _train_id(run: str) -> str:
    return job_id("train", run, run)


def _plan(training: Training) -> Job:
    plan, start = training.plan, training.start
    rule = "adapt" if start else "plan"
    title = f"{rule} {training.run.label}, {plan.dataset}"
    needs = (_train_id(start),) if start else ()
    return Job(job_id(rule, plan.name, [plan.dataset, plan.name]), rule, title, needs, plan.what)


def _preprocess(key: tuple[str, ...], plans: Sequence[StudyPlan], needs: Sequence[str]) -> Job:
    """Make one job for all plans of a dataset that share preprocessed data."""
    dataset, kind = key[:2]
    names = list(dict.fromkeys(plan.name for plan in plans))
    what = {"dataset": dataset, "configuration": plans[0].configuration, "plans": names}
    identifier = job_id("preprocess", f"{dataset}-{kind}-{plans[0].configuration}", [*key, sorted(names)])
    title = f"preprocess {dataset}, {plans[0].configuration} of {kind} plans"
    return Job(identifier, "preprocess", title, tuple(dict.fromkeys(needs)), what)


def _train_and_test(expansion: Expansion, training: Training, prepared: str) -> list[Job]:
    """Make the training, prediction and evaluation jobs of a run."""
    run, study = training.run, expansion.study
    model = run.model_dump(include={"dataset", "configuration", "fold", "trainer", "plans"})
    about = f"{run.label}, {run.dataset}, fold {run.fold}"
    about += f", seed {run.seed}" if len(study.seeds) > 1 else ""
    jobs = [Job(_train_id(run.run), "train", f"train {about}", (prepared,), model, run.run)]
    for target in training.targets:
        folder, name = f"runs/{run.run}/{target}", f"{run.run}-{target}"
        what = {
            **model,
            "target": target,
            "folder": folder,
            "test": study.test,
            "checkpoint": f"checkpoint_{study.checkpoint}.pth",
        }
        on = about if target == run.dataset else f"{about}, on {target}"
        predict = Job(job_id("predict", name, what), "predict", f"predict {on}", (jobs[0].id,), what, run.run)
        what = {"folder": folder, "target": target, "options": study.evaluate.model_dump(exclude_defaults=True)}
        evaluate = Job(job_id("evaluate", name, what), "evaluate", f"evaluate {on}", (predict.id,), what, run.run)
        jobs += [predict, evaluate]
    return jobs
