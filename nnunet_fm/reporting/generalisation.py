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
"""Columns of cells. Text is empty where there is none, ``train_cases`` NaN where all were used; ``trained`` is the
label of an adapted model before its adaptation, the label itself of all others."""

DS, DG, OV = "DS", "DG", "OV"
SHIFT, LOSS = "shift", "loss %"

_TEXT = ["label", "trained", *MODEL, "control", "method", "anatomy", "source", "target"]


def cells(results: Results, metric: str = DICE) -> pd.DataFrame:
    """One row for each label, source dataset and target dataset that it was tested on; columns `CELL_COLUMNS`.

    ``value`` is the mean over classes within a case, then over the cases of a run, then over the runs (folds and seeds)
    of the label; ``sd`` is the standard deviation over the runs. Undefined values (NaN) are left out of each mean, a
    case or run without any value altogether. Of adapted models, ``source`` is the dataset of the model they started
    from and ``target`` the dataset they were adapted to.

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
    """Label -> label of the model before its adaptation.

    That is the label of the same model, head, adapter and number of cases; if there are several, as with other plans,
    the one that the adapted label begins with; its own, if there is none.
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
    """DS, DG and OV of the models as they were trained; cells of adapted models are left out.

    Args:
        cells: of `cells` or `nnunet_fm.reporting.published.published_cells`.
        by: columns that make a row; with ``anatomy`` among them, one row for each anatomy.
        pool: how several anatomies are joined. ``anatomies``: mean of the anatomies' values, each of the same weight.
            ``datasets``: mean over all cells at once, so that an anatomy with more datasets weighs more.
        over: columns that are averaged last, each value with the same weight, as backbones in a comparison of heads.

    Returns:
        Columns ``by``, DS, DG, OV, and the numbers of ``anatomies`` and ``cells`` behind them. A value that no cell
        stands behind is NaN; it is left out of means over anatomies and over ``over``.
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
    """Columns to group by, one list for each mean that is taken in turn."""
    finest = [*by, *(column for column in over if column not in by)]
    levels = [finest, list(by)] if over else [finest]
    return levels if pool == "datasets" or "anatomy" in finest else [[*finest, "anatomy"], *levels]


def missing_cells(cells: pd.DataFrame, by: Sequence[str] = ("label",)) -> pd.DataFrame:
    """Cells that other rows of a summary have and this one lacks, so that their values do not compare.

    Args:
        cells: of `cells`.
        by: columns that name a row.

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
    """What adapting to a target domain brings: Dice under domain shift, and its loss against the source domain.

    Args:
        cells: of adapted models and of those they started from (``trained``).
        by: columns of the adapted models that make a row, with ``anatomy`` for one row for each anatomy.
        pool: as for `summarise`.

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
    """Check that the datasets of an anatomy have the same classes, so that a model of one can be tested on the others.

    Class names and their labels must be equal, and with regions their order (``regions_class_order``). The ignore label
    is no class and may differ.

    Args:
        datasets: name of each dataset -> content of its ``dataset.json``.

    Raises:
        ValueError: where they differ; the message names the first dataset that does, and how.
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
    """Class name -> its labels, and the order of regions, of a ``dataset.json``."""
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
