"""Section: seconds per case of a prediction, by step."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.reporting.figures.bars import stacked_bars_figure
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table

STEPS = ("reading", "preprocessing", "inference", "export")


def prediction_time_section(context: Context) -> Section:
    """Stacked bars and their numbers."""
    section = Section("time", "Seconds per case")
    times = context.results.times.merge(context.results.runs[["run", "label"]], on="run")
    if not len(times):
        section.missing.append(
            "Seconds per case: no prediction was timed. `nnunet-fm predict` writes prediction_times.json beside its "
            "output."
        )
        return section
    table = seconds_frame(context, times)
    steps = [name for name in table.columns if name not in ("label", "total", "cases")]
    section.figure(
        context.chart(
            stacked_bars_figure(table.set_index("label")[steps], "seconds per case", context.controls),
            "seconds per case of each model, by step",
        ),
        f"Mean over predicted cases. Processor: {'; '.join(times['processor'].dropna().unique()) or 'not recorded'}.",
    )
    if times["processor"].nunique() > 1:
        section.warn("The predictions ran on different processors, so that their times do not compare.")
    section.table(
        Table(
            "seconds",
            "Seconds per case, mean over predicted cases of all runs.",
            table,
            [
                Column("label", "Model", wrap=True),
                *(Column(step, step.capitalize(), ".2f") for step in steps),
                Column("total", "Total", ".2f", best="min"),
                Column("cases", "Predictions", ".0f"),
            ],
            context.controls,
        )
    )
    return section


def seconds_frame(context: Context, times: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds, labels by steps, with ``total`` and number of predicted ``cases``."""
    means = times.astype({"seconds": float}).groupby(["label", "step"], sort=False)["seconds"].mean().unstack("step")
    steps = [step for step in STEPS if step in means] + [step for step in means if step not in STEPS]
    known = [label for label in context.labels if label in means.index]
    order = known + [label for label in means.index if label not in known]
    table = means.loc[order, steps].rename_axis(columns=None)
    table["total"] = table.sum(axis=1)
    counts = times[["label", "run", "target", "case"]].drop_duplicates().groupby("label").size()
    return table.assign(cases=counts).reset_index()
