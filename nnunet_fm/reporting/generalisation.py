"""Domain generalisation: scores of each model, trained on each domain and tested on all, as DS, DG and OV.

Within an anatomy, whose datasets are domains of one another:

* DS, domain-specific: mean of the diagonal of the source × target matrix;
* DG, domain generalisation: mean off the diagonal;
* OV, overall: mean of all its cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.metrics.scores_table import DICE, VALUE
from nnunet_fm.reporting.results import Results
from nnunet_fm.reporting.statistics import mean_over_runs, run_values

Pool = Literal["anatomies", "datasets"]

MODEL = ["model", "head", "adapter"]
CELL_COLUMNS = ["label", "trained", *MODEL, "control", "method", "train_cases", "anatomy", "source", "target"]
CELL_COLUMNS += [VALUE, "sd", "runs"]
"""Columns of cells. Missing text is empty; ``train_cases`` is NaN for all cases; ``trained`` is the label of an adapted
model before its adaptation, and the own label of all others."""

DS, DG, OV = "DS", "DG", "OV"
SHIFT, LOSS = "shift", "loss %"

_TEXT = ["label", "trained", *MODEL, "control", "method", "anatomy", "source", "target"]


def cells(results: Results, metric: str = DICE) -> pd.DataFrame:
    """Make one row for each label, source dataset and target dataset; columns `CELL_COLUMNS`.

    ``value`` is the mean over classes within a case, then over the cases of a run, then over the runs (folds and seeds)
    of the label; ``sd`` is the standard deviation over the runs. Means leave out undefined values (NaN), and cases and
    runs without any value. For adapted models, ``source`` is the dataset of the model they started from, and ``target``
    the dataset they were adapted to.

    Args:
        results: runs and scores.
        metric: any of `nnunet_fm.metrics.scores_table.METRICS`.

    Raises:
        ValueError: for an unknown metric.
    """
    values = run_values(results, metric)
    values["trained"] = values["label"].map(_trained_labels(results.runs))
    means = mean_over_runs(values, by=CELL_COLUMNS[: CELL_COLUMNS.index(VALUE)])
    table = means.rename(columns={"mean": VALUE})
    table[_TEXT] = table[_TEXT].astype(object).where(table[_TEXT].notna(), "")
    return table[CELL_COLUMNS]


def _trained_labels(runs: pd.DataFrame) -> dict[str, str]:
    """Map each label to the label of the model before its adaptation.

    That is the label of the same model, head, adapter and number of cases. Of several (other plans), it is the one that
    the adapted label starts with; without any, it is the own label.
    """
    same = [*MODEL, "train_cases"]
    plain = runs[runs["method"].isna() & runs["control"].isna()]
    found = {label: label for label in runs["label"]}
    for _, run in runs[runs["method"].notna()].drop_duplicates("label").iterrows():
        alike = (plain[same].eq(run[same]) | (plain[same].isna() & run[same].isna())).all(axis=1)
        labels = list(plain.loc[alike, "label"].unique())
        if len(labels) > 1:
            labels = sorted((label for label in labels if run["label"].startswith(label)), key=len)
        found[run["label"]] = labels[-1] if labels else run["label"]
    return found


def summarise(
    cells: pd.DataFrame, by: Sequence[str] = ("label",), pool: Pool = "anatomies", over: Sequence[str] = ()
) -> pd.DataFrame:
    """Compute DS, DG and OV of trained models, without cells of adapted ones.

    Args:
        cells: cells from `cells` or `nnunet_fm.reporting.published.published_cells`.
        by: columns that define a row; with ``anatomy`` among them, one row for each anatomy.
        pool: average over several anatomies. ``anatomies``: mean of the anatomies' values, with equal weights.
            ``datasets``: mean over all cells, so that an anatomy with more datasets weighs more.
        over: columns to average over last, with equal weights, such as backbones in a comparison of heads.

    Returns:
        Columns ``by``, DS, DG, OV, and their numbers of ``anatomies`` and ``cells``. A value without a cell is NaN and
        left out of means over anatomies and over ``over``.
    """
    trained = cells[cells["method"] == ""]
    inside = (trained["source"] == trained["target"]).to_numpy()
    value = trained[VALUE]
    parts = trained.assign(**{DS: value.where(inside), DG: value.where(~inside), OV: value})
    for keys in _levels(by, over, pool):
        parts = parts.groupby(keys, sort=False)[[DS, DG, OV]].mean().reset_index()
    behind = trained.groupby(list(by), sort=False)
    counts = behind.agg(anatomies=("anatomy", "nunique"), cells=(VALUE, "count")).reset_index()
    return parts.merge(counts, on=list(by))


def _levels(by: Sequence[str], over: Sequence[str], pool: Pool) -> list[list[str]]:
    """Columns to group by, one list for each of the successive means."""
    finest = [*by, *(column for column in over if column not in by)]
    levels = [finest, list(by)] if over else [finest]
    return levels if pool == "datasets" or "anatomy" in finest else [[*finest, "anatomy"], *levels]


def missing_cells(cells: pd.DataFrame, by: Sequence[str] = ("label",)) -> pd.DataFrame:
    """Find cells that some rows of a summary lack, so that their values cannot be compared.

    Args:
        cells: cells from `cells`.
        by: columns that define a row.

    Returns:
        Columns ``by``, ``anatomy``, ``source``, ``target``; empty where all rows have the same cells.
    """
    names, where = list(by), ["anatomy", "source", "target"]
    keys = [*names, *where]
    known = cells.loc[(cells["method"] == "") & cells[VALUE].notna(), keys].drop_duplicates()
    wanted = known[names].drop_duplicates().merge(known[where].drop_duplicates(), how="cross")
    found = wanted.merge(known, on=keys, how="left", indicator=True)
    return found.loc[found["_merge"] == "left_only", keys].reset_index(drop=True)


def adaptation(cells: pd.DataFrame, by: Sequence[str] = ("label", "anatomy"), pool: Pool = "anatomies") -> pd.DataFrame:
    """Compute the effect of adaptation: Dice under domain shift, and its loss against the source domain.

    Args:
        cells: cells of adapted models and of the models they started from (``trained``).
        by: columns of the adapted models that define a row; with ``anatomy``, one row for each anatomy.
        pool: average over several anatomies, see `summarise`.

    Returns:
        Columns ``by``, ``method``; DS of the models that were adapted, on their own source; DG of these models before
        adaptation on the pairs they were adapted to; ``shift``, the mean over the pairs after adaptation; and
        ``loss %`` = 100 · (shift - DS) / DS.
    """
    columns = list(dict.fromkeys([*by, "method"]))
    adapted = cells[(cells["method"] != "") & (cells["source"] != cells["target"])].rename(columns={VALUE: SHIFT})
    plain = cells.loc[cells["method"] == "", ["label", "anatomy", "source", "target", VALUE]]
    plain = plain.rename(columns={"label": "trained"})
    own = plain[plain["source"] == plain["target"]].drop(columns="target").rename(columns={VALUE: DS})
    pairs = adapted.merge(plain.rename(columns={VALUE: DG}), on=["trained", "anatomy", "source", "target"], how="left")
    sources = adapted.drop_duplicates([*columns, "trained", "anatomy", "source"])
    sources = sources.merge(own, on=["trained", "anatomy", "source"], how="left")
    for keys in _levels(columns, (), pool):
        sources = sources.groupby(keys, sort=False)[[DS]].mean().reset_index()
        pairs = pairs.groupby(keys, sort=False)[[DG, SHIFT]].mean().reset_index()
    table = sources.merge(pairs, on=columns)
    table[LOSS] = 100 * (table[SHIFT] - table[DS]) / table[DS]
    return table


def check_label_sets(datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the datasets of an anatomy have equal classes, so that a model of one can be tested on the others.

    Class names and their labels must be equal, and with regions their order (``regions_class_order``). The ignore label
    may differ.

    Args:
        datasets: content of ``dataset.json`` by name of the dataset.

    Raises:
        ValueError: if they differ; the message names the first such dataset and the difference.
    """
    reference = None
    for name, content in datasets.items():
        classes, order = _classes(name, content)
        if reference is None:
            reference = name, classes, order
            continue
        first, expected, expected_order = reference
        faults = [f"has no '{key}'" for key in expected if key not in classes]
        faults += [f"has '{key}', which the other lacks" for key in classes if key not in expected]
        faults += [
            f"'{key}' is {_label(classes[key])} rather than {_label(value)}"
            for key, value in expected.items()
            if key in classes and classes[key] != value
        ]
        if not faults and order != expected_order:
            faults = [f"regions_class_order is {list(order)} rather than {list(expected_order)}"]
        if faults:
            raise InvalidValueError(
                f"{name} and {first} cannot be domains of one anatomy, because their labels in dataset.json differ: "
                f"{name}: {'; '.join(faults)}. Convert them with one label table, or give them different anatomies",
                code="labels-differ",
            )


def _classes(name: str, content: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Labels by class name, and the order of regions, of a ``dataset.json``."""
    labels = content.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        raise InvalidValueError(
            f"the dataset.json of {name} has no 'labels', a table of class names and their labels", code="labels-table"
        )
    classes = {}
    for key, value in labels.items():
        try:
            parts = value if isinstance(value, (list, tuple)) else [value]
            classes[str(key)] = tuple(sorted(int(part) for part in parts))
        except (TypeError, ValueError):
            raise InvalidValueError(
                f"the dataset.json of {name} gives the class '{key}' the label {value!r}; nnU-Net v2 wants a number, "
                "or a list of numbers",
                code="labels-table",
            ) from None
    classes.pop("ignore", None)
    regions = any(len(value) > 1 for value in classes.values())
    order = tuple(int(value) for value in content.get("regions_class_order") or ()) if regions else ()
    return classes, order


def _label(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else str(list(values))
