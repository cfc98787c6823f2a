"""Expand a study into its runs: every training with its plan and the datasets that it is tested on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_fm.errors import code_of
from nnunet_fm.models.card import ModelCard
from nnunet_fm.planfile.schema import STOCK_ITERATIONS
from nnunet_fm.reporting.results import METHODS, Run
from nnunet_fm.studies.datasets import Dataset, find_dataset
from nnunet_fm.studies.job_names import digest, join, plain, with_cases
from nnunet_fm.studies.plans import StudyPlan, adapted_plan, model_plan, stock_plan
from nnunet_fm.studies.rows import rows
from nnunet_fm.studies.schema import DEFAULT_SEED, Study, StudyError


@dataclass(frozen=True)
class Training:
    """A run with its plan and its test datasets.

    Attributes:
        targets: names of the test datasets; the training's own is the first.
        card: card of the model; None for stock controls.
        iterations: iterations of the budget; None if the plan counts them.
        skipped: names of datasets that the model is neither trained nor tested on.
        start: the run that an adaptation starts from.
    """

    run: Run
    plan: StudyPlan
    targets: tuple[str, ...]
    card: ModelCard | None = None
    iterations: int | None = None
    skipped: frozenset[str] = frozenset()
    start: str | None = None


@dataclass
class Expansion:
    """All runs of a study.

    Attributes:
        datasets: datasets by nnU-Net's name, or by the study's name for a missing one.
        trainings: trainings by the run's id; an adaptation follows the run that it starts from.
    """

    study: Study
    datasets: Mapping[str, Dataset]
    trainings: dict[str, Training] = field(default_factory=dict)

    @property
    def missing(self) -> list[Dataset]:
        """Datasets that are not in ``nnUNet_raw``."""
        return [dataset for dataset in self.datasets.values() if dataset.folder is None]

    def add(self, training: Training) -> None:
        """Add a training.

        Raises:
            StudyError: if it exists already, under any label.
        """
        there = self.trainings.setdefault(training.run.run, training)
        if there is not training:
            raise StudyError(
                f"'{training.run.label}' and '{there.run.label}' are the same training on {training.run.dataset}: "
                "leave one out",
                code="training-twice",
            )


def expand(study: Study, raw: Path, results: Path) -> Expansion:
    """List all runs of a study; its datasets may be missing.

    Args:
        study: the study.
        raw, results: nnU-Net's folders.

    Raises:
        StudyError: if parts of the study do not fit one another or the datasets.
    """
    return _Expander(study, raw, results).expand()


class _Expander:
    def __init__(self, study: Study, raw: Path, results: Path) -> None:
        self.study, self.results = study, results
        groups = {anatomy: [find_dataset(d, raw) for d in given] for anatomy, given in study.groups.items()}
        # Without anatomies, each dataset is one, under the name that the study uses.
        self.groups = groups if study.anatomies else {group[0].name: group for group in groups.values()}
        names = [dataset.name for group in groups.values() for dataset in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise StudyError(f"datasets that stand in the study twice: {', '.join(twice)}", code="dataset-twice")
        self.datasets = {dataset.name: dataset for group in self.groups.values() for dataset in group}
        self.sources = self._named(study.sources, "sources") or frozenset(self.datasets)
        self.rows = rows(study)
        self.skipped = {row.label: self._named(row.entry.skip, "skip") for row in self.rows}
        if study.generalise or study.adapt:
            self._check_domains()

    def expand(self) -> Expansion:
        expansion = Expansion(self.study, self.datasets)
        for anatomy, group in self.groups.items():
            for source in (dataset for dataset in group if dataset.name in self.sources):
                for training in (*self._models(anatomy, source), *self._stock(anatomy, source)):
                    expansion.add(training)
        if not expansion.trainings:
            raise StudyError("nothing is left to train: every model skips every dataset", code="trainings-none")
        for training in [t for t in expansion.trainings.values() if t.run.control is None]:
            for adapted in self._adapted(training):
                expansion.add(adapted)
        return expansion

    def _named(self, given: Sequence[str], key: str) -> frozenset[str]:
        """Datasets of the study that a list names by number, full name or name without the number."""
        found = set()
        for word in given:
            fitting = [d.name for d in self.datasets.values() if d.is_called(word)]
            if len(fitting) != 1:
                raise StudyError(
                    f"{key}: '{word}' is none of the study's datasets, {', '.join(self.datasets)}",
                    code="dataset-missing",
                )
            found.add(fitting[0])
        return frozenset(found)

    def _check_domains(self) -> None:
        from nnunet_fm.reporting.generalisation import check_label_sets

        for group in self.groups.values():
            try:
                check_label_sets({d.name: d.json for d in group if d.folder is not None})
            except ValueError as error:
                raise StudyError(str(error), code=code_of(error, "labels-differ")) from None

    def _models(self, anatomy: str, source: Dataset) -> Iterator[Training]:
        """Trainings of the models under study and of their twins on a dataset."""
        study = self.study
        for row in self.rows:
            skipped = self.skipped[row.label]
            if source.name in skipped:
                continue
            about = {"model": row.card.name, "head": row.head, "adapter": row.adapter, "control": row.control}
            slug = join(
                row.card.name, row.entry.head, row.entry.adapter, "scratch" if row.trainer != "fm_trainer" else None
            )
            for cases in study.train_cases:
                for seed in study.seeds:
                    plan = model_plan(study, row, source, seed, cases)
                    for fold in study.folds:
                        run = self._run(slug, row.label, row.trainer, plan, anatomy, fold, seed, cases, about)
                        targets = self._targets(anatomy, source, skipped)
                        yield Training(run, plan, targets, row.card, study.budget.iterations, skipped)

    def _stock(self, anatomy: str, source: Dataset) -> Iterator[Training]:
        """Trainings of stock nnU-Net, plain and with residual encoder, in the configurations of the models."""
        study = self.study
        chosen = study.controls.configurations
        several = len(chosen or {row.card.configuration for row in self.rows}) > 1
        here = {row.card.configuration for row in self.rows if source.name not in self.skipped[row.label]}
        here = set(chosen) if chosen and here else here
        sizes = [None] * study.controls.stock + [size for size in [study.controls.resenc] if size]
        limit = study.controls.iterations or study.budget.iterations
        plain_nnunet = limit is None and study.seeds == [DEFAULT_SEED] and study.train_cases == [None]
        trainer = "nnUNetTrainer" if plain_nnunet else "fm_trainer_stock"
        for size in sizes:
            about: dict[str, Any] = {"control": "resenc" if size else "stock"}
            for configuration in sorted(here):
                label = join("nnU-Net", f"ResEnc {size}" if size else None, configuration if several else None, sep=" ")
                slug = join("nnunet", f"resenc_{size.lower()}" if size else None, configuration)
                for cases in study.train_cases:
                    for seed in [None] if plain_nnunet else study.seeds:
                        plan = stock_plan(study, source, size, configuration, seed, cases)
                        for fold in study.folds:
                            run = self._run(slug, label, trainer, plan, anatomy, fold, seed, cases, about)
                            targets = self._targets(anatomy, source, frozenset())
                            yield Training(run, plan, targets, iterations=limit or STOCK_ITERATIONS)

    def _adapted(self, training: Training) -> Iterator[Training]:
        """Adaptations of a training's model to every other domain that it does not skip."""
        start = training.run
        about = start.model_dump(include={"model", "head", "adapter"}) | {"source": start.dataset}
        for adapt in self.study.adapt:
            label = f"{start.label}, {adapt.label or METHODS[adapt.method]}"
            slug = join(start.model, start.head, adapt.method, "from", self.datasets[start.dataset].short)
            for target in self.groups[start.anatomy]:
                if target.name == start.dataset or target.name in training.skipped:
                    continue
                plan = adapted_plan(self.study, start, training.plan, adapt, target)
                trainer, method = f"fm_trainer_{adapt.method}", {"method": adapt.method}
                where = (trainer, plan, start.anatomy, start.fold, start.seed, start.train_cases)
                run = self._run(slug, label, *where, about | method)
                yield Training(run, plan, (target.name,), training.card, adapt.iterations, start=start.run)

    def _targets(self, anatomy: str, source: Dataset, skipped: frozenset[str]) -> tuple[str, ...]:
        """Datasets that a model is tested on: its own and, with ``generalise``, the other domains."""
        others = [d.name for d in self.groups[anatomy] if d.name != source.name and d.name not in skipped]
        return (source.name, *others) if self.study.generalise else (source.name,)

    def _run(
        self,
        slug: str,
        label: str,
        trainer: str,
        plan: StudyPlan,
        anatomy: str,
        fold: str,
        seed: int | None,
        cases: int | None,
        about: Mapping[str, Any],
    ) -> Run:
        what = [trainer, plan.name, plan.configuration, plan.dataset, fold, self.study.checkpoint, self.study.test]
        place = [self.datasets[plan.dataset].short, f"f{fold}"]
        several = [f"s{seed}" if len(self.study.seeds) > 1 else None, f"n{cases}" if cases else None]
        return Run(
            run=f"{plain(join(slug, *place, *several))[:150]}_{digest(what, 6)}",
            label=label if "source" in about else with_cases(label, cases),
            trainer=trainer,
            plans=plan.name,
            configuration=plan.configuration,
            dataset=plan.dataset,
            anatomy=anatomy,
            fold=fold,
            seed=seed,
            train_cases=cases,
            model_folder=str(self.results / plan.dataset / f"{trainer}__{plan.name}__{plan.configuration}"),
            **about,
        )
