"""Datasets by number or name in nnU-Net's three folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from nnunet_fm.errors import FMError, MissingFileError
from nnunet_fm.io.messages import listed

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""nnU-Net's variables, each with the path of a folder."""
_NAME = re.compile(r"Dataset(\d{3,})(?:_.*)?", re.DOTALL)
SHOWN = 5
"""Number of datasets that a message lists; it counts the others."""


class DatasetNameError(FMError, ValueError):
    """A number of no dataset or of several, or a word that is no dataset's name; the message lists all datasets."""


def nnunet_folder(variable: str) -> Path:
    """Folder that one of `VARIABLES` names.

    Raises:
        MissingFileError: if the variable is not set.
    """
    folder = os.environ.get(variable)
    if not folder:
        raise MissingFileError(
            f"the variable {variable} is not set: it names one of nnU-Net's three folders", code="variable-unset"
        )
    return Path(folder)


def dataset_number(name: str) -> int:
    """Number of a dataset's name, ``Dataset501_AortaSeg24``.

    Raises:
        DatasetNameError: for a name without a number.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise DatasetNameError(
            f"'{name}' is no name of a dataset: these are Dataset, three digits, _ and a word", code="dataset-name"
        )
    return int(found[1])


def short_name(name: str) -> str:
    """The word after the number, ``AortaSeg24`` of ``Dataset501_AortaSeg24``; other names stay as they are."""
    return name.split("_", 1)[1] if _NAME.fullmatch(name) and "_" in name else name


def find_datasets() -> dict[int, dict[str, list[str]]]:
    """All datasets by number, then by name, with the variables of the folders that have them."""
    found: dict[int, dict[str, list[str]]] = {}
    for variable in VARIABLES:
        folder = Path(os.environ.get(variable) or os.devnull)
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if (match := _NAME.fullmatch(name)) and (folder / name).is_dir():
                found.setdefault(int(match[1]), {}).setdefault(name, []).append(variable)
    return dict(sorted(found.items()))


def dataset_name(given: str | int) -> str:
    """Name of the dataset of a number; a name is returned unchanged.

    Raises:
        DatasetNameError: if there is no dataset of this number, or several, and for a word that is neither.
    """
    if isinstance(given, str) and given.startswith("Dataset"):
        dataset_number(given)
        return given
    if not str(given).strip().isdecimal():
        raise DatasetNameError(
            f"'{given}' is neither the number of a dataset nor its name, such as Dataset501_Liver", code="dataset-name"
        )
    there, number = find_datasets(), int(given)
    names = there.get(number, {})
    if len(names) == 1:
        return next(iter(names))
    if names:
        raise DatasetNameError(f"{several(number, names)}: rename one of them in all folders", code="dataset-ambiguous")
    unset = [variable for variable in VARIABLES if not os.environ.get(variable)]
    places = ", ".join(f"{name} ({os.environ[name]})" for name in VARIABLES if name not in unset)
    known = [name for names in there.values() for name in names]
    raise DatasetNameError(
        f"there is no dataset {number} in {places or 'any folder'}"
        + (f"; {' and '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set" if unset else "")
        + f". Datasets there: {listed(known, most=SHOWN) or 'none'}",
        code="dataset-missing",
    )


def several(number: int, names: Mapping[str, list[str]]) -> str:
    """Say that a number has several datasets, with their folders."""
    both = " and ".join(f"{name} (in {', '.join(variables)})" for name, variables in names.items())
    return f"dataset number {number} is that of {both}"
