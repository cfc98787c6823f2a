"""Ranking tables: models from best to worst, with differences to the best in per cent."""

from __future__ import annotations

import pandas as pd

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.reporting.generalisation import DG, DS, OV

DIFFERENCE = " diff %"
"""Suffix of the column with a value's difference."""


def ranking(summary: pd.DataFrame, by: str = OV, lower_is_better: bool = False) -> pd.DataFrame:
    """Rank the rows of a summary.

    Args:
        summary: summary from `nnunet_fm.reporting.generalisation.summarise`: columns DS, DG, OV, and names of rows.
        by: column to rank by. Rows of equal value share a rank; rows without a value come last, without a rank.
        lower_is_better: whether lower values are better, as for distances.

    Returns:
        Columns ``rank``, names of rows, then ``by`` and the other two values, each followed by its difference to the
        best of that column, 100 · (value - best) / best (NaN if the best is 0).

    Raises:
        ValueError: if ``by`` is none of DS, DG and OV.
    """
    values = [OV, DS, DG]
    if by not in values:
        raise InvalidValueError(
            f"there is nothing to rank by in '{by}'; it is one of {', '.join(values)}", code="metric-unknown"
        )
    values.sort(key=lambda column: column != by)
    table = summary[[column for column in summary.columns if column not in values]].copy()
    table.insert(0, "rank", summary[by].rank(method="min", ascending=lower_is_better).astype("Int64"))
    for column in values:
        best = summary[column].min() if lower_is_better else summary[column].max()
        table[column] = summary[column]
        table[column + DIFFERENCE] = 100 * (summary[column] - best) / best if best else float("nan")
    return table.sort_values("rank", kind="stable", na_position="last").reset_index(drop=True)
