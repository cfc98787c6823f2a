"""Published quirks: each acts in the module that the table names, and idle layers are those of their modules."""

from __future__ import annotations

from importlib import import_module
from inspect import getsource

import pytest

from nnunet_fm.published_quirks import IDLE_LAYERS, QUIRKS


@pytest.mark.parametrize("module", sorted({quirk.module for quirk in QUIRKS}))
def test_quirks_act_where_the_table_says(module: str) -> None:
    source = getsource(import_module(f"nnunet_fm.{module}"))
    assert "published_quirks" in source or "faithful" in source


@pytest.mark.parametrize("module", sorted(IDLE_LAYERS))
def test_idle_layers_are_attributes_of_their_modules(module: str) -> None:
    source = getsource(import_module(f"nnunet_fm.{module}"))
    for layer in IDLE_LAYERS[module]:
        assert layer.split(".")[0].split()[0].rstrip("*_") in source
