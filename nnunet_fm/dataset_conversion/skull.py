"""Masks of the brain: from labels, or from files of the user."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_fm.dataset_conversion.problems import Invalid
from nnunet_fm.dataset_conversion.readers import read_volume
from nnunet_fm.io.untrusted import read_json, read_text
from nnunet_fm.io.volume import Grid, Volume, resample

ENDINGS = (".nii.gz", ".nii", ".mgz", ".nrrd", ".mha")


def mask_file(where: Path, case: str) -> Path:
    """The mask of a case.

    Args:
        where: a folder with one mask per case, named as the case; or a table, JSON ``{case: file}`` or CSV of case and
            file, whose files are relative to it.
        case: its name.

    Raises:
        Invalid: if there is none, or the table cannot be read.
    """
    if where.is_dir():
        found = [file for ending in ENDINGS if (file := where / f"{case}{ending}").is_file()]
        if len(found) != 1:
            raise Invalid(
                where.name,
                f"has {len(found)} masks named {case}{{{','.join(ENDINGS)}}}, one is needed",
                code="mask-several",
            )
        return found[0]
    try:
        if where.suffix.lower() == ".json":
            rows = dict(read_json(where))
        else:
            rows = dict(csv.reader(read_text(where).splitlines()))
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        raise Invalid(where.name, f"is no table of cases and masks ({error})", code="mask-table") from None
    if case not in rows:
        raise Invalid(where.name, f"has no mask for {case}", code="mask-missing")
    if not isinstance(rows[case], str) or "\0" in rows[case]:
        raise Invalid(where.name, f"names no file for {case}", code="mask-missing")
    return where.parent / rows[case]


def read_mask(file: Path, grid: Grid) -> NDArray[np.bool_]:
    """A mask (z, y, x) on the image's grid.

    Raises:
        Invalid: if there is no such file, or it is damaged.
    """
    if not file.is_file():
        raise Invalid(file.name, "there is no such mask", code="mask-missing")
    mask = read_volume(file, file.name)
    inside = Volume((mask.array > 0).astype(np.uint8), mask.grid)
    if mask.grid.difference(grid) is not None:
        inside = resample(inside, grid, label=True)
    if not inside.array.any():
        raise Invalid(file.name, "the mask is empty on the image's grid", code="mask-empty")
    return inside.array.astype(bool)
