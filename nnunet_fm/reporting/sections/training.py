"""Section: learning curves and iterations to convergence."""

from __future__ import annotations

import math

import pandas as pd

from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.reporting.figures.bars import grouped_bars_figure
from nnunet_fm.reporting.figures.learning_curves import Curve, learning_curves_figure
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table
from nnunet_fm.reporting.sections.numbers import count


def training_section(context: Context) -> Section:
    """Small multiples and bars."""
    section = Section("training", "Training")
    records = {run: record for run, record in context.results.records.items() if record.validations}
    trained = context.trained[context.trained["run"].isin(records)]
    if not len(trained):
        section.missing.append(
            "Learning curves: no training recorded a validation. Trainings with fm_trainer and fm_trainer_stock do."
        )
        return section
    volumes = all(any(v.per_volume is not None for v in records[run].validations) for run in trained["run"])
    curves: dict[str, dict[str, list[Curve]]] = {}
    for label in context.labels:
        for run, dataset in trained.loc[trained["label"] == label, ["run", "dataset"]].itertuples(index=False):
            curves.setdefault(label, {}).setdefault(dataset, []).append(_curve(records[run], volumes))
    baseline = baseline_label(context, list(curves))
    axis = "Dice of whole cases" if volumes else "Dice of patches"
    dotted = f" Dotted: {baseline}, the baseline, on the same dataset." if baseline and len(curves) > 1 else ""
    several = any(len(trainings) > 1 for by_dataset in curves.values() for trainings in by_dataset.values())
    section.figure(
        context.chart(learning_curves_figure(curves, baseline, axis), "learning curves, a panel per model"),
        f"{'Dice of whole validation cases' if volumes else 'Dice of random patches of validation cases'} during the "
        f"training.{' Thin: single trainings; thick: their mean.' if several else ''}{dotted}",
    )
    section.heading("Iterations to convergence")
    table = convergence_frame(context)
    names = [name for name in table.columns if name != "label"]
    if table[names].notna().any(axis=None):
        section.figure(
            context.chart(
                grouped_bars_figure(table.set_index("label"), "iterations", context.controls, count),
                "iterations to convergence of each model",
            ),
            "First validation after which the Dice, averaged with 0.9 of its past, never leaves a band of 1 % below "
            "its best; mean over folds and seeds that converged.",
        )
        columns = [Column("label", "Model", wrap=True), *(Column(name, name, ",.0f") for name in names)]
        section.tables.append(
            Table("convergence", "Iterations to convergence by dataset.", table, columns, context.controls)
        )
    else:
        section.text("No training converged: the last validation of each lies more than 1 % below its best.")
    return section


def convergence_frame(context: Context) -> pd.DataFrame:
    """Mean iterations to convergence, labels by datasets; NaN if no training converged."""
    rows = []
    for label in context.labels:
        runs = context.trained[context.trained["label"] == label]
        row: dict[str, object] = {"label": label}
        for dataset in context.datasets:
            found = [context.results.records.get(run) for run in runs.loc[runs["dataset"] == dataset, "run"]]
            numbers = [r.convergence_iteration for r in found if r is not None and r.convergence_iteration is not None]
            row[dataset] = sum(numbers) / len(numbers) if numbers else math.nan
        if any(run in context.results.records for run in runs["run"]):
            rows.append(row)
    table = pd.DataFrame(rows, columns=["label", *context.datasets])
    return table.dropna(axis=1, how="all") if len(context.datasets) > 1 else table


def baseline_label(context: Context, labels: list[str]) -> str | None:
    """Label of the baseline: stock nnU-Net, else a vanilla U-Net, else stock ResEnc."""
    runs = context.trained[context.trained["label"].isin(labels)]
    for chosen in (
        runs["control"] == "stock",
        runs["model"].fillna("").str.startswith("vanilla_unet"),
        runs["control"] == "resenc",
    ):
        if chosen.any():
            return str(runs.loc[chosen, "label"].iloc[0])
    return None


def _curve(record: TrainingRecord, volumes: bool) -> Curve:
    points = [
        (v.iteration, v.per_volume.dice if volumes and v.per_volume else v.dice_patches)
        for v in record.validations
        if v.per_volume is not None or not volumes
    ]
    return pd.DataFrame(points, columns=["iteration", "value"]).astype(float)
