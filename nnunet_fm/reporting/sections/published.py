"""Section: own numbers beside those of the same published study."""

from __future__ import annotations

from nnunet_fm.metrics.scores_table import DICE, VALUE
from nnunet_fm.reporting.published import STUDIES, beside
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table


def published_section(context: Context) -> Section:
    """Table of own and published Dice."""
    section = Section("published", "Published numbers")
    name = context.results.published
    if name is None:
        return section
    if name not in STUDIES:
        section.missing.append(
            f"Published numbers: there is no published study '{name}'; there are {', '.join(STUDIES)}."
        )
        return section
    if context.metric_name != DICE:
        section.missing.append("Published numbers are of Dice: make the report with `--metric Dice`.")
        return section
    study = STUDIES[name]
    table = beside(context.cells, name)
    if not len(table):
        section.missing.append(
            f"Published numbers of '{study.title}': none is of a model and datasets of this report. Datasets are known "
            "by their names, such as Dataset521_HCP_T1."
        )
        return section
    section.text(f"{study.title}. {study.citation}. {' '.join(study.notes)}")
    section.table(
        Table(
            "published",
            "Dice of ours, mean ± standard deviation over folds and seeds, and as published; difference: ours minus "
            "published.",
            table,
            [
                Column("label", "Model", wrap=True),
                Column("method", "Adapted by"),
                Column("source", "Trained on"),
                Column("target", "Tested on"),
                Column(VALUE, "Ours", ".3f", sd="sd"),
                Column("published", "Published", ".3f"),
                Column("difference", "Difference", "+.3f"),
            ],
            context.controls,
        )
    )
    return section
