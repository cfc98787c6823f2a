"""Options of a converter, and the table of converters."""

from __future__ import annotations

from pathlib import Path

from nnunet_fm import dataset_conversion
from nnunet_fm.dataset_conversion import CONVERTERS, get_converter
from nnunet_fm.dataset_conversion.base import (
    ConversionOptions,
)
from tests.helpers.errors import fails
from tests.helpers.toy_converter import Toy


def test_legal_values_of_a_dataset_that_knows_everything(tmp_path: Path) -> None:
    toys = Toy()
    assert toys.options() == ConversionOptions(labels="all")
    assert toys.options(thesis=True) == ConversionOptions(labels="all", thesis=True, n4=True, skull_strip="labels")
    for options, expected in (
        ({"domain": "z"}, ("option-value", "z", "--domain")),
        ({"labels": "c"}, ("option-value", "c", "--labels")),
        ({"split": "thesis"}, ("option-value", "thesis", "--split")),
        ({"skull_strip": "maybe"}, ("option-value", "maybe", "--skull-strip")),
        ({"outside": "ignore"}, ("option-unknown", "--outside", "--split", "FILE", "--domain", "--n")),
    ):
        with fails(*expected):
            toys.options(**options)  # type: ignore[arg-type]


def test_every_name_has_its_converter() -> None:
    for name in (*CONVERTERS, *dataset_conversion.ALIASES):
        converter = get_converter(name.upper())
        assert converter.name == dataset_conversion.ALIASES.get(name, name)
        assert set(converter.splits) <= {"official", "thesis"} and converter.default_split in (None, *converter.splits)
    with fails("converter-unknown", "aortaseg24"):
        get_converter("nothing")
