"""Official files of the cards: names and networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_fm.models import official


def test_file_names_tell_checkpoints_apart() -> None:
    """A file in the weights folder is found by its name."""
    owner: dict[str, str] = {}
    for one in official.officials():
        for file in one.checkpoint.files:
            assert owner.setdefault(file, one.checkpoint.name) == one.checkpoint.name


@pytest.mark.parametrize("name", [one.checkpoint.name for one in official.officials()])
def test_every_card_has_a_network_to_check_with(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError):
        official.check(official.get_official(name), tmp_path / "a.pth")
