"""Section: the models in order, with intervals, corrected p-values and the critical-difference diagram."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.reporting.figures.critical_difference import critical_difference_figure
from nnunet_fm.reporting.figures.ranking import ranking_figure
from nnunet_fm.reporting.generalisation import DS, summarise
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Column, Section, Table
from nnunet_fm.reporting.sections.numbers import p_value, plural, signed
from nnunet_fm.reporting.sections.summary import ALPHA
from nnunet_fm.reporting.statistics import FEWEST, pairwise, ranks


def ranking_section(context: Context) -> Section:
    """Ranking by the mean over patients."""
    section = Section("ranking", "Ranking")
    table = context.table.dropna(subset="mean")
    if not len(table):
        section.missing.append(
            f"Ranking: there are no scores of {context.metric.name}. Predict and score the trained models: a study "
            "does so as its next step, `nnunet-fm report -d DATASET` with the validation cases of the folds."
        )
        return section
    style = context.metric
    dots = _run_dots(context)
    several = any(len(values) > 1 for values in dots.values())
    section.figure(
        context.chart(ranking_figure(table, dots, style.axis), f"{style.name} of each model with interval"),
        f"Mean {style.name} {context.domain}. Bar: 95 % bootstrap interval over patients; large dot: their mean, "
        f"hollow for controls{'; small dots: single trainings (fold and seed)' if several else ''}.",
    )
    section.table(ranking_table(context))
    if table["cases"].nunique() > 1:
        section.warn(
            "The models were not tested on the same cases, so that their means do not compare exactly; each p-value "
            "is of the cases that both models of a pair have."
        )
    if context.by_dataset["dataset"].nunique() > 1:
        section.heading("By dataset")
        section.table(dataset_table(context))
    _critical_difference(context, section)
    return section


def _own_tests(context: Context) -> pd.DataFrame:
    """Scores of plain trainings in the tests of the ranking."""
    values = context.run_values[context.run_values["method"].isna()]
    own = values["source"] == values["target"]
    return values[own] if own.any() else values


def _run_dots(context: Context) -> dict[str, list[float]]:
    """Scores of single runs by label; empty with several datasets, which dominate the differences."""
    values = _own_tests(context)
    if values["target"].nunique() > 1:
        return {}
    return {str(label): list(group["value"]) for label, group in values.groupby("label")}


def ranking_table(context: Context) -> Table:
    """Rank, mean with interval, spread over runs, difference to the best and the p-value against it."""
    table = context.table.copy()
    best = table["label"].iloc[0]
    top = table["mean"].iloc[0]
    table["difference %"] = 100 * (table["mean"] - top) / top if top else float("nan")
    tests = pairwise(context.matrix, ALPHA)
    against = {
        b if a == best else a: p
        for a, b, p in zip(tests["a"], tests["b"], tests["p_holm"], strict=True)
        if best in (a, b)
    }
    table["p (Holm) against the best"] = table["label"].map(against).astype(float)
    own = _own_tests(context)
    table["runs"] = table["label"].map(own.groupby("label")["run"].nunique()).fillna(0).astype(int)
    table["interval"] = [
        "–" if pd.isna(low) else f"{context.metric.text(low)} – {context.metric.text(high)}"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    columns = [
        Column("label", "Model", wrap=True),
        Column("rank", "Rank", ".0f"),
        Column("mean", context.metric.axis, f".{context.metric.digits}f", best=context.metric.best),
        Column("interval", "95 % interval", str),
    ]
    if own["target"].nunique() == 1:
        table["sd over runs"] = table["label"].map(own.groupby("label")["value"].std())
        columns.append(Column("sd over runs", "sd over runs", f".{context.metric.digits}f"))
    columns += [
        Column("difference %", "to the best [%]", signed),
        Column("p (Holm) against the best", "p against the best", p_value),
        Column("patients", "Patients", ".0f"),
        Column("cases", "Cases", ".0f"),
        Column("runs", "Runs", ".0f"),
    ]
    return Table(
        "ranking",
        f"Mean {context.metric.name} over patients {context.domain}: of each case the mean over its classes, then over "
        "folds and seeds; of each patient the mean over the cases. Bias-corrected bootstrap intervals over "
        "patients; p-values of paired Wilcoxon signed-rank tests over patients, Holm-corrected over all pairs of "
        "models.",
        table,
        columns,
        context.controls,
    )


def dataset_table(context: Context) -> Table:
    """Mean ± sd over runs by dataset, and the mean over datasets or anatomies."""
    frame = context.by_dataset
    names = [name for name in context.datasets if name in set(frame["dataset"])]
    wide = frame.pivot(index="label", columns="dataset", values=["mean", "sd"])
    order = [label for label in context.labels if label in wide.index]
    table = pd.DataFrame({"label": order})
    style = context.metric
    columns = [Column("label", "Model", wrap=True)]
    for name in names:
        table[name] = wide["mean"].loc[order, name].to_numpy()
        table[f"{name} sd"] = wide["sd"].loc[order, name].to_numpy()
        columns.append(Column(name, name, f".{style.digits}f", sd=f"{name} sd", best=style.best))
    pooled = summarise(context.cells, ["label"], context.pool).set_index("label")[DS]
    table["mean"] = table["label"].map(pooled)
    mean = f"Mean of {context.pool}" if context.cells["anatomy"].nunique() > 1 else "Mean"
    columns.append(Column("mean", mean, f".{style.digits}f", best=style.best))
    return Table(
        "by_dataset",
        f"{style.axis}: mean ± standard deviation over folds and seeds of the models trained and tested on each "
        "dataset.",
        table,
        columns,
        context.controls,
    )


def _critical_difference(context: Context, section: Section) -> None:
    order = ranks(context.matrix, lower_is_better=not context.metric.higher)
    if len(order.average) < 3 or order.patients < FEWEST or order.average.isna().any():
        section.missing.append(
            f"Critical-difference diagram: needs three models and {FEWEST} patients that all were tested on; here "
            f"are {plural(len(order.average), 'model')} and {plural(order.patients, 'common patient')}."
        )
        return
    friedman = (
        "" if order.friedman is None else f" Friedman's test that all models are alike: p {_with_sign(order.friedman)}."
    )
    section.heading("Critical differences")
    section.figure(
        context.chart(
            critical_difference_figure(order.average, order.p, context.controls, ALPHA),
            "average rank of each model: " + ", ".join(f"{name} {rank:.2f}" for name, rank in order.average.items()),
        ),
        f"Average rank over {plural(order.patients, 'patient')}, 1 is best. A bar joins models that do not differ (p ≥ "
        f"{ALPHA}, Wilcoxon with Holm's correction).{friedman}",
    )


def _with_sign(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"
