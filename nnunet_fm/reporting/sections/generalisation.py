"""Section: models on datasets that they were not trained on, as matrices and as DS, DG and OV."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.metrics.scores_table import VALUE
from nnunet_fm.reporting.figures.heatmap import heatmap_figure
from nnunet_fm.reporting.generalisation import DG, DS, OV, missing_cells, summarise
from nnunet_fm.reporting.ranking import DIFFERENCE, ranking
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table
from nnunet_fm.reporting.sections.numbers import plural, signed


def generalisation_section(context: Context) -> Section:
    """Summary table and heat maps."""
    section = Section("generalisation", "Generalisation")
    cells = context.cells[context.cells["method"] == ""]
    if not (cells["source"] != cells["target"]).any():
        section.missing.append(
            "Generalisation: every model was tested on the dataset of its training only. Give a study several "
            "datasets of one "
            "anatomy, and each model is tested on all of them."
        )
        return section
    style = context.metric
    summary = summarise(context.cells, ["label"], context.pool)
    table = ranking(summary, OV, lower_is_better=not style.higher)
    columns = [Column("label", "Model", wrap=True), Column("rank", "Rank", ".0f")]
    for name in (OV, DS, DG):
        columns.append(Column(name, name, f".{style.digits}f", best=style.best))
        columns.append(Column(name + DIFFERENCE, "to the best [%]", signed))
    columns.append(Column("cells", "Cells", ".0f"))
    section.table(
        Table(
            "generalisation",
            f"{style.axis}. DS: mean over tests on the dataset of the training; DG: over tests on other datasets of "
            f"the anatomy; OV: over all. {_pooled(context)}",
            table,
            columns,
            context.controls,
        )
    )
    lacking = missing_cells(context.cells)
    if len(lacking):
        labels = ", ".join(lacking["label"].unique())
        section.warn(
            f"Not all models have the same tests ({plural(len(lacking), 'test')} lacking: {labels}); means do not "
            "compare exactly."
        )
    for anatomy, part in cells.groupby("anatomy", sort=False):
        if not (part["source"] != part["target"]).any():
            continue
        order = [label for label in table["label"] if label in set(part["label"])]
        matrices = {label: _matrix(part, label) for label in order}
        several = cells["anatomy"].nunique() > 1
        caption = f"{style.axis} of models trained on the dataset of the row and tested on that of the column"
        section.figure(
            context.chart(
                heatmap_figure(matrices, style.text, higher=style.higher), f"{style.name} by source and target"
            ),
            f"{str(anatomy).replace('_', ' ') + ': ' if several else ''}{caption}; framed: the training's own dataset. "
            "The stronger the colour, the better.",
        )
    section.tables.append(_cells_table(context))
    section.body.append(f"<details><summary>All tests</summary>{_cells_table(context).html()}</details>")
    return section


def _matrix(cells: pd.DataFrame, label: str) -> pd.DataFrame:
    """Matrix of sources by targets of one model, in the order of the anatomy's datasets."""
    names = list(dict.fromkeys([*cells["source"], *cells["target"]]))
    rows = [name for name in names if name in set(cells["source"])]
    columns = [name for name in names if name in set(cells["target"])]
    own = cells[cells["label"] == label]
    return own.pivot_table(index="source", columns="target", values=VALUE).reindex(index=rows, columns=columns)


def _pooled(context: Context) -> str:
    if context.cells["anatomy"].nunique() < 2:
        return ""
    if context.pool == "anatomies":
        return "Means within each anatomy first, then over anatomies."
    return "Means over the tests of all anatomies at once."


def _cells_table(context: Context) -> Table:
    style = context.metric
    return Table(
        "cells",
        f"{style.axis} of every model on every dataset it was tested on: mean ± standard deviation over folds and "
        "seeds.",
        context.cells,
        [
            Column("label", "Model", wrap=True),
            Column("method", "Adapted by"),
            Column("anatomy", "Anatomy"),
            Column("source", "Trained on"),
            Column("target", "Tested on"),
            Column(VALUE, style.axis, f".{style.digits}f", sd="sd"),
            Column("runs", "Runs", ".0f"),
        ],
        context.controls,
    )
