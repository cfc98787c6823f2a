"""Section: classes, their shares of the labelled volume, and the scores by size group and class."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.metrics.scores_table import CLASS, JACCARD, METRIC, METRICS, SIZE_GROUP, VALUE
from nnunet_fm.reporting.figures.class_shares import class_shares_figure
from nnunet_fm.reporting.figures.size_groups import size_groups_figure
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table
from nnunet_fm.reporting.sections.numbers import metric_style

SHOWN_CLASSES = 45
"""Number of classes in the chart of shares; the table has all."""


def structures_section(context: Context) -> Section:
    """Shares, box plots and tables by class."""
    section = Section("structures", "Structures")
    _shares(context, section)
    scores = context.own_tests
    jaccard = scores[(scores[METRIC] == JACCARD) & scores[VALUE].notna()]
    sized = jaccard[jaccard[SIZE_GROUP].fillna("") != ""]
    if len(sized):
        labels = [label for label in context.labels if label in set(sized["label"])]
        section.heading("Jaccard by size group")
        section.figure(
            context.chart(
                size_groups_figure(sized, labels, context.controls, JACCARD), "box plots of Jaccard by size group"
            ),
            "One value per training, test case and class, on the dataset of the training. Size groups: mean share of "
            "the class in the labelled volume of the training cases. Box: quartiles; line: median; whiskers: 1.5 "
            "boxes.",
        )
    elif len(scores):
        section.missing.append(
            "Jaccard by size group: the scores have no Jaccard index or no size groups. `nnunet-fm evaluate` writes "
            "both."
        )
    if len(scores):
        section.heading("By class")
        section.table(class_table(context, scores))
        table = metrics_table(context, scores)
        section.tables.append(table)
        section.body.append(f"<details><summary>All metrics by class and model</summary>{table.html()}</details>")
    return section


def _shares(context: Context, section: Section) -> None:
    shares = {name: by_class for name, by_class in context.results.size_shares.items() if by_class}
    if not shares:
        section.missing.append(
            "Class shares of the labelled volume: not measured, because the label maps of the training cases "
            "(labelsTr) were "
            "not found. Set nnUNet_raw to the folder that has them."
        )
        return
    rows = [
        {"dataset": name, "class": label, "share %": 100 * share}
        for name, by_class in shares.items()
        for label, share in by_class.items()
    ]
    table = pd.DataFrame(rows)
    section.heading("Share of the labelled volume")
    largest = table.groupby("class")["share %"].max().nlargest(SHOWN_CLASSES).index
    drawn = {name: {c: share for c, share in by_class.items() if c in largest} for name, by_class in shares.items()}
    cut = (
        f" The {SHOWN_CLASSES} largest of {table['class'].nunique()} classes."
        if len(largest) < table["class"].nunique()
        else ""
    )
    section.figure(
        context.chart(class_shares_figure(drawn), "share of the labelled volume of each class"),
        f"Mean share of each class in the labelled volume of the training cases, on a logarithmic axis.{cut}",
    )
    section.tables.append(
        Table(
            "class_shares",
            "Mean share of each class in the labelled volume of the training cases, in percent.",
            table,
            [Column("class", "Class", wrap=True), Column("dataset", "Dataset"), Column("share %", "Share [%]", ".3g")],
        )
    )


def class_table(context: Context, scores: pd.DataFrame) -> Table:
    """Mean of the metric over cases, classes by models."""
    style = context.metric
    chosen = scores[scores[METRIC] == context.metric_name]
    by_case = chosen.groupby(["target", CLASS, "label", "case"], sort=False)[VALUE].mean()
    means = by_case.groupby(["target", CLASS, "label"], sort=False).mean().unstack("label")
    labels = [label for label in context.labels if label in means]
    groups = chosen.groupby(["target", CLASS], sort=False)[SIZE_GROUP].agg(_first_word)
    table = means[labels].reset_index().rename(columns={"target": "dataset"})
    table.insert(2, "size group", groups.reindex(means.index).to_numpy())
    columns = [Column(CLASS, "Class", wrap=True), Column("size group", "Size group", str)]
    if table["dataset"].nunique() > 1:
        columns.insert(1, Column("dataset", "Dataset"))
    columns += [Column(label, label, f".{style.digits}f") for label in labels]
    return Table(
        "classes",
        f"{style.axis} by class: mean over cases and trainings, on the dataset of the training.",
        table,
        columns,
        group="dataset" if table["dataset"].nunique() > 1 else None,
        choice="Dataset",
    )


def metrics_table(context: Context, scores: pd.DataFrame) -> Table:
    """Every metric by class and model."""
    by_case = scores.groupby(["target", CLASS, "label", METRIC, "case"], sort=False)[VALUE].mean()
    means = by_case.groupby(["target", CLASS, "label", METRIC], sort=False).mean().unstack(METRIC)
    metrics = [name for name in METRICS if name in means]
    table = means[metrics].reset_index().rename(columns={"target": "dataset"})
    order = {label: place for place, label in enumerate(context.labels)}
    table = table.assign(place=table["label"].map(order)).sort_values("place", kind="stable")
    first = {name: place for place, name in enumerate(dict.fromkeys(scores[CLASS]))}
    table = table.assign(first=table[CLASS].map(first)).sort_values(["first", "dataset", "place"], kind="stable")
    table = table.drop(columns=["place", "first"]).reset_index(drop=True)
    columns = [Column(CLASS, "Class", wrap=True), Column("label", "Model", wrap=True)]
    if table["dataset"].nunique() > 1:
        columns.append(Column("dataset", "Dataset"))
    for name in metrics:
        style = metric_style(name)
        columns.append(Column(name, style.axis.replace("_", " "), f".{style.digits}f"))
    return Table(
        "metrics",
        "Mean over cases and trainings on the dataset of the training; a case where a metric is undefined is left out.",
        table,
        columns,
        context.controls,
        group=CLASS,
        choice="Class",
    )


def _first_word(groups: pd.Series[str]) -> str | None:
    known = [group for group in groups.dropna() if group]
    return known[0] if known else None
