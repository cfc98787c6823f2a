"""Head of the page: best model, compared models and data, and whether a claim is allowed."""

from __future__ import annotations

from html import escape

from nnunet_fm.io.messages import listed
from nnunet_fm.metrics.scores_table import CASE
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import definitions
from nnunet_fm.reporting.sections.numbers import plural
from nnunet_fm.reporting.statistics import can_claim, pairwise, ranks

ALPHA = 0.05


def summary(context: Context) -> str:
    """HTML of the head."""
    facts = {"Compared": compared(context), "Tested": tested(context), "Runs": runs(context)}
    number = ""
    if context.models and len(context.table):
        best = context.table.loc[context.table["mean"].notna(), ["label", "mean", "low", "high"]].iloc[0]
        style = context.metric
        bounds = ""
        if best["low"] == best["low"]:
            bounds = f"<small> {style.text(best['low'])} – {style.text(best['high'])}</small>"
        unit = f"<small> {style.unit}</small>" if style.unit else ""
        number = (
            f'<div><div class="number">{style.text(best["mean"])}{unit}{bounds}</div>'
            f'<div class="soft">{escape(style.name)} of {escape(best["label"])}, the '
            f"{'highest' if style.higher else 'lowest'} mean over "
            f"patients{' (95 % interval)' if bounds else ''}</div></div>"
        )
    words, made = claim(context)
    kind = "claim made" if made else "claim"
    return (
        f'<div class="card top">{number}<div>{definitions(facts)}</div></div>'
        f'<div class="card {kind}" role="note"><p>{escape(words)}</p></div>'
    )


def compared(context: Context) -> str:
    """Models and controls."""
    labels = context.trained["label"].unique()
    controls = sum(label in context.controls for label in labels)
    words = plural(len(labels) - controls, "model")
    if controls:
        words += f" and {plural(controls, 'control')}"
    return f"{words}, {context.metric.axis}, {'higher' if context.metric.higher else 'lower'} is better"


def tested(context: Context) -> str:
    """Patients, cases, classes and datasets."""
    scores = context.results.scores
    if not len(scores):
        return "nothing yet"
    cases = scores.merge(context.results.runs[["run", "anatomy"]], on="run")[["anatomy", "target", CASE]]
    cases = cases.drop_duplicates()
    patients = {(anatomy, context.results.patient(*of)) for anatomy, *of in cases.itertuples(index=False)}
    number = plural(len(cases), "case") + (
        f" of {plural(len(patients), 'patient')}" if len(patients) < len(cases) else ""
    )
    targets = list(scores["target"].unique())
    names = ", ".join(targets) if len(targets) <= 4 else plural(len(targets), "dataset")
    return f"{number}, {plural(scores['class'].nunique(), 'foreground class')} of {names}"


def runs(context: Context) -> str:
    """Number of trainings, folds and seeds."""
    table = context.results.runs
    seeds = max(1, table["seed"].nunique())
    words = f"{plural(len(table), 'training')}: {plural(table['fold'].nunique(), 'fold')}, {plural(seeds, 'seed')}"
    done = table["run"].isin(context.results.scores["run"]).sum()
    return words if done == len(table) else f"{words}; {done} of them have scores so far"


def claim(context: Context) -> tuple[str, bool]:
    """Statement on the best model by the statistics, and whether it is a claim."""
    if not len(context.table):
        return "No claim can be made: there are no scores yet.", False
    compared_runs = context.trained[context.trained["label"].isin(context.matrix.columns)]
    order = ranks(context.matrix, lower_is_better=not context.metric.higher)
    reason = can_claim(compared_runs, order.patients)
    if reason:
        return reason, False
    best = context.table["label"].iloc[0]
    tests = pairwise(context.matrix, ALPHA)
    others = [
        (b if a == best else a)
        for a, b, significant in zip(tests["a"], tests["b"], tests["significant"], strict=True)
        if best in (a, b) and not significant
    ]
    tests_were = "paired Wilcoxon signed-rank tests over patients"
    if not others:
        return f"{best} is better than each of the others: {tests_were}, p < {ALPHA} after Holm's correction.", True
    return (
        f"{best} has the best mean, but no claim can be made that it is better than {listed(others, most=6)}: "
        f"{tests_were} give p ≥ {ALPHA} after Holm's correction."
    ), False
