"""Options of a converter, and the table of converters."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_fm import dataset_conversion
from nnunet_fm.dataset_conversion import CONVERTERS, get_converter
from nnunet_fm.dataset_conversion.base import (
    ConversionOptions,
)
from nnunet_fm.dataset_conversion.problems import UsageError
from tests.helpers.toy_converter import Toy


def test_legal_values_of_a_dataset_that_knows_everything(tmp_path: Path) -> None:
    toys = Toy()
    assert toys.options() == ConversionOptions(labels="all")
    assert toys.options(thesis=True) == ConversionOptions(labels="all", thesis=True, n4=True, skull_strip="labels")
    for options, message in (
        ({"domain": "z"}, "'z' is not a value of --domain: x, y"),
        ({"labels": "c"}, "'c' is not a value of --labels: all, b"),
        ({"split": "thesis"}, "'thesis' is not a value of --split: official, a file that exists"),
        ({"skull_strip": "maybe"}, "'maybe' is not a value of --skull-strip: labels, no"),
        ({"outside": "ignore"}, r"toy has no option --outside; it takes --split official\|FILE; --domain x\|y; .*--n4"),
    ):
        with pytest.raises(UsageError, match=message):
            toys.options(**options)  # type: ignore[arg-type]


def test_every_name_has_its_converter() -> None:
    for name in (*CONVERTERS, *dataset_conversion.ALIASES):
        converter = get_converter(name.upper())
        assert converter.name == dataset_conversion.ALIASES.get(name, name)
        assert set(converter.splits) <= {"official", "thesis"} and converter.default_split in (None, *converter.splits)
    with pytest.raises(LookupError, match="known are aortaseg24"):
        get_converter("nothing")
