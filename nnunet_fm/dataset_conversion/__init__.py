"""Downloads of public datasets -> nnU-Net raw folders; `nnunet_fm.dataset_conversion.base` says how one is written."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from nnunet_fm.dataset_conversion.problems import UnknownConverterError

if TYPE_CHECKING:
    from nnunet_fm.dataset_conversion.base import Converter

CONVERTERS = {
    "aortaseg24": "AortaSeg24",
    "verse": "VerSe",
    "nci": "NCI",
    "usz": "USZ",
    "mrspineseg": "MRSpineSeg",
    "hanseg": "HaNSeg",
    "brats": "BraTS",
    "hcp": "HCP",
    "abide": "ABIDE",
}
"""Name of the dataset, which is that of its module -> class; imported when it is used."""

ALIASES = {"mrsegv": "mrspineseg"}
"""Further names that are typed -> name."""


def get_converter(name: str) -> Converter:
    """The converter of a dataset.

    Args:
        name: as in `CONVERTERS` or `ALIASES`, in any case.

    Raises:
        UnknownConverterError: if there is none; the message names what is known.
    """
    known = ALIASES.get(name.lower(), name.lower())
    if known not in CONVERTERS:
        near = difflib.get_close_matches(known, [*CONVERTERS, *ALIASES], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownConverterError(f"there is no converter for '{name}': {hint}known are {', '.join(CONVERTERS)}")
    converter: Converter = getattr(import_module(f"{__name__}.{known}"), CONVERTERS[known])()
    return converter
