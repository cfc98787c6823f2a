"""Section: effect of adapting models to another dataset."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.reporting.generalisation import DG, DS, LOSS, SHIFT, adaptation
from nnunet_fm.reporting.results import METHODS
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table
from nnunet_fm.reporting.sections.numbers import signed


def adaptation_section(context: Context) -> Section:
    """Table of adapted models."""
    section = Section("adaptation", "Domain adaptation")
    if not (context.cells["method"] != "").any():
        section.missing.append(
            "Domain adaptation: no adapted model has scores. `nnunet-fm adapt` plans one; in a study, ask for "
            "adaptation."
        )
        return section
    frame = adaptation_frame(context)
    style = context.metric
    columns = [Column("model", "Model", wrap=True), Column("method", "Method")]
    if context.cells["anatomy"].nunique() > 1:
        columns.append(Column("anatomy", "Anatomy"))
    columns += [
        Column(DS, "Source (DS)", f".{style.digits}f"),
        Column(DG, "Target, unadapted (DG)", f".{style.digits}f"),
        Column(SHIFT, "Target, adapted", f".{style.digits}f", best=style.best),
        Column(LOSS, "Loss [%]", signed),
    ]
    section.table(
        Table(
            "adaptation",
            f"{style.axis} of models on the dataset of their training (DS), on another one before adaptation to it "
            "(DG) and after it. Loss: 100 · (adapted − DS) / DS.",
            frame,
            columns,
        )
    )
    return section


def adaptation_frame(context: Context) -> pd.DataFrame:
    """Rows of `nnunet_fm.reporting.generalisation.adaptation` by anatomy."""
    table = adaptation(context.cells, ("label", "anatomy"), context.pool).rename(columns={"label": "model"})
    return table.assign(method=table["method"].replace(METHODS))
