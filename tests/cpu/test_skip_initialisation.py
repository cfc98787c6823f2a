"""Networks that are built without random weights."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_fm.cpu.skip_initialisation import WithoutRandomWeights


def build() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    nn.init.trunc_normal_(network[2].weight, std=0.02)
    return network


def test_no_random_number_is_drawn_and_all_can_be_loaded() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with WithoutRandomWeights():
        bare = build()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(bare[1].weight, torch.ones(4))  # what is no random number is as ever
    full = build()
    assert not torch.equal(torch.get_rng_state(), state)
    bare.load_state_dict(full.state_dict())
    x = torch.randn(1, 1, 4, 6)
    assert torch.equal(bare(x), full(x))
