"""The optimiser of a recipe: what is trained, at which rate, with which decay."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from nnunet_fm.models.card import Recipe
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.trainers.optimizer import build_optimizer
from nnunet_fm.trainers.schedule import ProgressSchedule
from tests.helpers.errors import fails


class Plain(nn.Module):
    """A stem, two blocks and a head; positions are a parameter of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 2))
        self.stem = nn.Conv1d(1, 4, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(2))
        self.head = nn.Linear(2, 3)

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Layered(Plain):
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem|position", "blocks": r"^blocks\.(\d+)"}


STEM, BLOCKS, HEAD = ("position", "stem"), ("blocks.0", "blocks.1"), ("head",)
NO_DECAY = {"position", "stem.bias", "head.bias"} | {
    f"blocks.{i}.{n}" for i in "01" for n in ("0.bias", "1.weight", "1.bias")
}


def build(network: nn.Module, **recipe: Any) -> torch.optim.Optimizer:
    return build_optimizer(cast(FoundationNetwork, network), Recipe(**recipe))


def by_name(network: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    """A setting of the group that each parameter is in."""
    names = {id(p): name for name, p in network.named_parameters()}
    found = {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)  # none twice
    return found


def test_the_optimiser_is_the_recipes() -> None:
    sgd = build(Plain(), optimizer="sgd", learning_rate=0.1, momentum=0.9)
    assert type(sgd) is torch.optim.SGD and sgd.defaults["nesterov"] and sgd.defaults["momentum"] == 0.9
    assert not build(Plain(), optimizer="sgd", momentum=0).defaults["nesterov"]
    assert type(build(Plain(), optimizer="adam")) is torch.optim.Adam
    assert type(build(Plain(), optimizer="adamw")) is torch.optim.AdamW


def test_only_what_is_trainable() -> None:
    for recipe in ({}, {"decay_norms": False}, {"layer_decay": 0.5}, {"layer_decay": 0.5, "decay_norms": False}):
        network = Layered()
        network.stem.requires_grad_(False)
        network.blocks.requires_grad_(False)
        optimizer = build(network, optimizer="adamw", **recipe)
        assert set(by_name(network, optimizer, "lr")) == {"position", "head.weight", "head.bias"}


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_norms_biases_and_named_parameters_need_not_decay(optimizer: str, layer_decay: float) -> None:
    network = Layered()
    recipe = {"optimizer": optimizer, "layer_decay": layer_decay, "weight_decay": 0.05}
    everywhere = by_name(network, build(network, **recipe), "weight_decay")
    assert set(everywhere.values()) == {0.05} and len(everywhere) == len(list(network.parameters()))
    some = by_name(network, build(network, decay_norms=False, **recipe), "weight_decay")
    assert some == {name: 0.0 if name in NO_DECAY else 0.05 for name in everywhere}


@pytest.mark.parametrize("decay_norms", [True, False])
def test_layers_below_the_head_learn_slower(decay_norms: bool) -> None:
    network = Layered()
    optimizer = build(network, optimizer="adamw", learning_rate=1e-3, layer_decay=0.75, decay_norms=decay_norms)
    schedule = ProgressSchedule(optimizer, Recipe(schedule="warmup_cosine", learning_rate=1e-3, final_rate=1e-5))
    for progress, rate in ((0.0, 1e-3), (0.5, 0.505e-3), (1.0, 1e-5)):
        schedule.step(progress)
        for name, found in by_name(network, optimizer, "lr").items():
            depth = [i for i, part in enumerate((HEAD, BLOCKS[1:], BLOCKS[:1], STEM)) if name.startswith(part)]
            assert found == pytest.approx(rate * 0.75 ** depth[0]), name


def test_a_step_uses_the_rate_of_the_group() -> None:
    network = Layered()
    optimizer = build(network, optimizer="sgd", momentum=0, weight_decay=0, learning_rate=0.1, layer_decay=0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in network.named_parameters()}
    assert moved["head.weight"] == pytest.approx(0.1) and moved["stem.weight"] == pytest.approx(0.1 / 8)


def test_layer_decay_needs_named_layers() -> None:
    with fails("layer-decay"):
        build(Plain(), layer_decay=0.75)
