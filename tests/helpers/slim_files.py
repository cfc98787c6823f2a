"""A small network and the official file that its frozen encoder comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnunet_fm.models.build import build_network
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.weights import cache
from nnunet_fm.weights.load import FileRules, load_checkpoint

ENTRY_OF_PLAN = {
    "network_class_name": "nnunet_fm.networks.stunet.STUNet",
    "arch_kwargs": {"dims": [8, 8, 8, 16, 16, 16], "depth": [1] * 6, "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5},
}
FILE = "tiny.model"
DROP = [r"seg_outputs\."]


def build(adapter: str = "freeze", channels: int = 1, seed: int = 0) -> FoundationNetwork:
    torch.manual_seed(seed)
    return build_network(ENTRY_OF_PLAN, channels, 3, adapter=adapter)


def write_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An official file in a weights folder of its own."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    torch.save({"state_dict": build("full", seed=1).state_dict(), "epoch": 3}, tmp_path / "weights" / FILE)
    return tmp_path / "weights" / FILE


def pretrained(base: Path, adapter: str = "freeze", channels: int = 1) -> FoundationNetwork:
    network = build(adapter, channels)
    load_checkpoint(
        network, base, FileRules(drop=DROP), containers=["state_dict"], files=[FILE, "other.model"], page="a page"
    )
    return network


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
