"""The tidy table of scores from which all results are grouped: columns, metrics, writing and reading."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.atomic_write import replacing

CASE, CLASS, SIZE_GROUP, METRIC, VALUE, SLICE = "case", "class", "size_group", "metric", "value", "slice"

COLUMNS = [CASE, CLASS, SIZE_GROUP, METRIC, VALUE]
"""Columns of the scores of a folder of predictions; with slices also `SLICE`, which is missing in rows of cases."""

DICE, JACCARD, HD95, NSD = "Dice", "Jaccard", "HD95", "NSD"
VOLUME_REFERENCE, VOLUME_PREDICTION = "volume_reference", "volume_prediction"
METRICS = (DICE, JACCARD, HD95, NSD, VOLUME_REFERENCE, VOLUME_PREDICTION)
"""Dice, Jaccard and NSD lie in [0, 1], HD95 is in mm, the volumes are in ml. Undefined numbers are NaN."""

SIZE_GROUPS = ("<1 %", "1–5 %", "5–15 %", "≥15 %")
"""Groups of classes by their share of the labelled volume: [0, 1), [1, 5), [5, 15) and [15, ∞) %.

The background has no group: its rows have an empty text."""


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write scores as CSV with every digit; raises as `replacing`."""
    with replacing(path) as partial:
        scores.to_csv(partial, index=False)


def read_scores(path: Path) -> pd.DataFrame:
    """Read scores of `write_scores`; names of cases and classes stay text, even if they look like numbers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table with these columns and numbers.
    """
    try:
        scores = pd.read_csv(
            path,
            dtype={CASE: "str", CLASS: "str", SIZE_GROUP: "str", SLICE: "Int64"},
            keep_default_na=False,
            na_values={VALUE: [""], SLICE: [""]},
        )
        missing = [column for column in COLUMNS if column not in scores]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        scores[VALUE] = scores[VALUE].astype(float)
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise InvalidValueError(
            f"{path} holds no scores: {' '.join(str(error).split())}", code="scores-table"
        ) from None
    return scores
