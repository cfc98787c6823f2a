"""Adapters on every volumetric network: what they train moves, nothing else does, and official files still load."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.adapters.base import in_encoder
from nnunet_fm.models.registry import cards
from nnunet_fm.networks.base import FoundationNetwork
from tests.helpers.errors import fails
from tests.helpers.official_weights import load_official
from tests.helpers.small_networks import CLASSES, SIZE, small

VOLUMETRIC = ("freeze", "full", "lora")
RANK = 16

every_family = pytest.mark.parametrize("family", CLASSES)


def adapted(family: str, adapter: str) -> FoundationNetwork:
    torch.manual_seed(0)
    network = small(family)
    apply_adapter(adapter, network)
    return network.train()


def step(network: FoundationNetwork) -> None:
    """One optimiser step over everything that wants a gradient, on a loss that depends on all outputs."""
    outputs = network(torch.randn(1, 1, *SIZE))
    loss = sum((out * torch.randn_like(out)).mean() for out in ([outputs] if torch.is_tensor(outputs) else outputs))
    assert isinstance(loss, torch.Tensor)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    loss.backward()
    assert all(p.grad is not None for p in trained), [
        n for n, p in network.named_parameters() if p.requires_grad and p.grad is None
    ]
    optimizer.step()


def expected_to_move(name: str, network: FoundationNetwork, adapter: str) -> bool:
    unused = any(name == key or name.startswith(f"{key}.") for key in network.unused_keys)
    inside = in_encoder(name, network)
    if adapter == "full":
        return not unused
    if adapter == "freeze":
        return not unused and not inside
    return ".lora_" in name or (not unused and not inside)


@every_family
@pytest.mark.parametrize("adapter", VOLUMETRIC)
def test_only_the_declared_parameters_move(family: str, adapter: str) -> None:
    network = adapted(family, adapter)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    encoder_statistics = {
        name: b.clone() for name, b in network.named_buffers() if "running" in name and in_encoder(name, network)
    }
    step(network)
    if adapter == "lora":
        step(network)  # the first factor moves only once the second is not zero
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    declared = {name for name in before if expected_to_move(name, network, adapter)}
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == declared
    assert moved <= declared
    assert len(moved) > 0.9 * len(declared), declared - moved  # a bias before a norm has no effect and no gradient
    if adapter != "full":
        assert not any(name in moved and in_encoder(name, network) and ".lora_" not in name for name in before)
        buffers = dict(network.named_buffers())
        assert all(torch.equal(buffers[name], value) for name, value in encoder_statistics.items())
    if adapter == "lora":
        assert any(".lora_A." in name for name in moved) and any(".lora_B." in name for name in moved)


@every_family
def test_lora_reaches_every_linear_layer_of_the_encoder_or_its_convolutions(family: str) -> None:
    plain, network = small(family), adapted(family, "lora")
    inside = [(n, m) for n, m in plain.named_modules() if in_encoder(n, plain)]
    linear = {n: m for n, m in inside if isinstance(m, nn.Linear)}
    wanted = linear or {n: m for n, m in inside if isinstance(m, nn.Conv3d)}
    reached = {n.split(".lora_A.")[0] for n, _ in network.named_parameters() if ".lora_A." in n}
    assert reached == set(wanted) and len(wanted) >= 8
    updates = sum(p.numel() for n, p in network.named_parameters() if ".lora_" in n)
    # A maps what one output element sees to RANK numbers, B maps those to the output's channels
    assert updates == RANK * sum(m.weight[0].numel() + m.weight.shape[0] for m in wanted.values())


@every_family
def test_lora_starts_as_the_pretrained_network(family: str) -> None:
    torch.manual_seed(0)
    plain = small(family).eval()
    official = {name: value.clone() for name, value in plain.state_dict().items()}
    network = adapted(family, "lora")
    report = load_official(network, official, part="")
    assert not report.sections[0].dropped
    assert {n for n in report.sections[0].missing if ".lora_" not in n} == set()
    x = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), plain(x), rtol=1e-3, atol=1e-4)


@every_family
@pytest.mark.parametrize("adapter", ["freeze", "lora"])
def test_adapted_networks_travel_and_stay_frozen(family: str, adapter: str) -> None:
    network = adapted(family, adapter)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert {n for n, p in other.named_parameters() if p.requires_grad} == {
            n for n, p in network.named_parameters() if p.requires_grad
        }
    norms = [m for n, m in network.named_modules() if in_encoder(n, network) and isinstance(m, _BatchNorm)]
    assert not any(m.training for m in norms)


@pytest.mark.parametrize("adapter", ["rein", "rein_lora", "ladder"])
def test_adapters_of_2d_backbones_are_refused(adapter: str) -> None:
    with fails("adapter-dimension"):
        apply_adapter(adapter, small("stunet"))


def test_every_3d_model_with_weights_takes_all_three() -> None:
    for card in cards().values():
        if card.dim == 3 and card.checkpoint is not None:
            assert card.adapters == ["full", "freeze", "lora"]
