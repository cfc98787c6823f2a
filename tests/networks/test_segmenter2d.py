"""2D backbones, heads and adapters together: every legal name builds, and trains what the papers count."""

from __future__ import annotations

import json
import pickle
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_fm.losses.stages import StagesLoss
from nnunet_fm.models import count
from nnunet_fm.models.build import architecture, build_network
from nnunet_fm.models.registry import cards, get_card
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D

TWO_D = {name: card for name, card in cards().items() if card.heads}
SMALL = ("dinov2_s", "sam_b", "resnet18")
"""A model of each kind: tokens with and without a class token, feature maps of several stages."""

FACTS_HEADS = {
    "linear": 52_239,
    "segformer": 4_737_807,
    "da": 24_351_791,
    "da_small": 6_944_687,
    "resdec": 39_208_143,
    "unetdec": 39_101_847,
    "unetdec_small": 7_873_125,
    "samdec": 5_612_716,
    "samdec_frozen_pe": 5_606_496,
    "hqsam": 7_606_972,
    "hsam": 15_978_153,
    "hqhsam": 17_317_051,
}
"""Trained parameters at 15 classes, patches of 16 pixels and 768 channels."""


def network(name: str, head: str, adapter: str, classes: int = 3, channels: int = 1, **changes: Any) -> Any:
    card = get_card(name)
    entry = architecture(card, patch_size=[64, 64], spacing=[1.0, 1.0], head=head, changes=changes)
    return build_network(entry, channels, classes, adapter=adapter)


def check_shapes(name: str, head: str, adapter: str) -> None:
    with torch.device("meta"):
        built = network(name, head, adapter)
        x = torch.empty(2, 1, 48, 40)
    with torch.no_grad():
        assert built.eval()(x).shape == (2, 3, 48, 40)
        stages = len(built.head.loss_weights)
        assert built.train().several_outputs == (stages > 1)
        if stages > 1:
            outputs = built(x)
            assert [out.shape for out in outputs] == stages * [(2, 3, 48, 40)]


def check_heads_and_adapters(name: str) -> None:
    """Every head with the default adapter, every adapter with the default head."""
    card = TWO_D[name]
    for head in card.heads:
        check_shapes(name, head, card.adapters[0])
    for adapter in card.adapters[1:]:
        check_shapes(name, card.heads[0], adapter)


@pytest.mark.parametrize("name", SMALL)
def test_every_head_and_every_adapter_gives_logits_of_the_input_size(name: str) -> None:
    check_heads_and_adapters(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TWO_D if n not in SMALL])
def test_every_head_and_every_adapter_of_the_other_models(name: str) -> None:
    check_heads_and_adapters(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_head_with_every_adapter(name: str) -> None:
    for head in TWO_D[name].heads:
        for adapter in TWO_D[name].adapters:
            check_shapes(name, head, adapter)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if max(c.parameters.values()) > 2e8 else []) for n, c in TWO_D.items()],
)
def test_the_card_counts_its_parameters(name: str) -> None:
    card = TWO_D[name]
    assert card.parameters == {classes: count.parameters(card, classes) for classes in card.parameters}


def test_heads_train_what_is_published() -> None:
    assert count.trained_by_head(get_card("sam_b"), 15) == FACTS_HEADS
    of_mae = count.trained_by_head(get_card("mae_b"), 15)  # has no neck of its own: the head's is trained
    assert of_mae == {**FACTS_HEADS, "samdec": 6_400_172, "samdec_frozen_pe": 6_393_952}


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("sam_b", 6, 13_644_016), ("sam_b", 3, 12_419_671), ("dinov2_b", 15, 17_780_551), ("dinov2_b", 6, 14_107_516),
        ("dinov2_b", 3, 12_883_171), ("resnet101", 15, 25_668_197),
    ],
)  # fmt: skip
def test_the_default_head_trains_what_is_published(name: str, classes: int, published: int) -> None:
    card = get_card(name)
    assert count.trained_by_head(card, classes)[card.heads[0]] == published


@pytest.mark.parametrize(
    ("name", "adapters"),
    [
        ("dinov2_s", {"full": 22_056_192, "rein": 1_051_905}),
        ("dinov2_b", {"freeze": 0, "full": 86_579_712, "lora": 2_359_296, "rein": 2_496_513, "rein_lora": 1_741_569,
                      "ladder": 22_650_626}),
        ("sam_b", {"rein": 2_496_513, "rein_lora": 1_741_569, "lora": 2_359_296, "ladder": 22_452_482}),
        ("mae_b", {"full": 85_798_656, "ladder": 22_650_626}),
        ("dinov2_l", {"rein": 5_016_065, "rein_lora": 2_990_081}),
        pytest.param("mae_h", {"rein": 7_900_161}, marks=pytest.mark.slow),
        pytest.param("dinov2_g", {"rein": 11_456_001, "rein_lora": 6_359_041}, marks=pytest.mark.slow),
        ("resnet101", {"full": 42_500_160, "freeze": 0}),
    ],
)  # fmt: skip
def test_adapters_train_what_is_published(name: str, adapters: dict[str, int]) -> None:
    trained = count.trained_by_adapter(get_card(name), 15)
    assert {adapter: trained[adapter] for adapter in adapters} == adapters


def test_benchmarks_have_the_published_counts() -> None:
    assert count.parameters(get_card("resnet101"), 15) == 68_168_357
    assert count.parameters(get_card("vanilla_unet2d"), 15) == 31_038_543
    assert count.parameters(get_card("swin_unet"), 15) == 27_169_476


def test_a_ladder_on_sam_leaves_the_neck_in_the_frozen_backbone() -> None:
    with torch.device("meta"):
        built = network("sam_b", "hqhsam", "ladder", classes=15)
    assert built.head.neck is None and not any(p.requires_grad for p in built.backbone.neck.parameters())
    assert count.count(built.head, trained=True) == 16_529_595


# What is fed, on real numbers


@cache
def tiny() -> FoundationSegmenter2D:
    torch.manual_seed(0)
    built = network("dinov2_s", "linear", "full", image_size=28)
    assert isinstance(built, FoundationSegmenter2D)
    return built.eval()


def fed(built: FoundationSegmenter2D, x: Tensor) -> Tensor:
    """What reaches the backbone."""
    seen: list[Tensor] = []
    handle = built.backbone.get_submodule("vit.patch_embed").register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    with torch.no_grad():
        built(x)
    handle.remove()
    return seen[0].float()


def test_medsam_takes_images_in_both_conventions() -> None:
    x = 0.2 + 0.3 * torch.rand(1, 1, 28, 28)
    built = network("dinov2_s", "linear", "full", image_size=28, normalisation="minmax").eval()
    built.input_range = "unit"
    scaled = fed(built, x)
    assert scaled.min() == 0 and scaled.max() == 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (x.expand(-1, 3, -1, -1) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    network_input = network("dinov2_s", "linear", "full", image_size=28)
    network_input.input_range = "unit"
    assert torch.allclose(fed(network_input.eval(), x), expected, atol=1e-5)
    assert "normalisation" in get_card("medsam_b").network.arguments


def test_faithful_repeats_the_published_input() -> None:
    plain, faithful = (network("dinov2_s", "linear", "full", image_size=28, faithful=f).eval() for f in (False, True))
    plain.input_range = faithful.input_range = "unit"
    x = torch.rand(1, 3, 28, 28)
    assert torch.equal(fed(plain, x).flip(1), fed(faithful, x))


@pytest.mark.parametrize("head", TWO_D["dinov2_s"].heads)
def test_every_head_trains_on_a_processor(head: str) -> None:
    built = network("dinov2_s", head, "freeze", image_size=56).train()
    target = torch.randint(0, 3, (2, 1, 40, 48))
    loss = built.wrap_loss(CrossEntropy())(built(torch.randn(2, 1, 40, 48)), target)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in built.head.parameters())
    assert all(p.grad is None for p in built.backbone.parameters())


@pytest.mark.parametrize("adapter", TWO_D["dinov2_s"].adapters)
def test_every_adapter_trains_on_a_processor(adapter: str) -> None:
    built = network("dinov2_s", "linear", adapter, image_size=56).train()
    built(torch.randn(2, 1, 40, 48)).square().mean().backward()
    trained = {n for n, p in built.named_parameters() if p.requires_grad and p.grad is not None}
    assert any(n.startswith("head.") for n in trained)
    assert adapter == "freeze" or any(not n.startswith("head.") for n in trained)


class CrossEntropy(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target[:, 0])


def test_stages_are_weighted_and_one_output_is_not() -> None:
    loss = StagesLoss(CrossEntropy(), (0.4, 0.6))
    first, second = torch.randn(2, 1, 3, 4, 4)
    target = torch.randint(0, 3, (1, 1, 4, 4))
    one, two = CrossEntropy()(first, target), CrossEntropy()(second, target)
    assert torch.allclose(loss([first, second], target), 0.4 * one + 0.6 * two)
    assert torch.equal(loss(second, target), two)


def test_a_network_with_two_branches_can_be_sent_to_a_worker() -> None:
    built = network("dinov2_s", "linear", "ladder", image_size=28).eval()
    again = pickle.loads(pickle.dumps(built))
    x = torch.randn(1, 1, 20, 30)
    with torch.no_grad():
        assert torch.equal(built(x), again(x))


def test_the_command_prints_what_each_part_trains(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from nnunet_fm.cli.list import list_
    from nnunet_fm.models import registry

    two = {name: get_card(name) for name in ("sam_b", "vanilla_unet2d")}
    monkeypatch.setattr(registry, "cards", lambda: two)
    list_([], as_json=True, parameters=True, classes=15)
    (sam, unet) = json.loads(capsys.readouterr().out)
    assert sam["trained_by_head"] == FACTS_HEADS and sam["trained_by_adapter"]["ladder"] == 22_452_482
    assert unet == {"name": "vanilla_unet2d", "classes": 15, "parameters": 31_038_543, "trained_by_head": {},
                    "trained_by_adapter": {}}  # fmt: skip
    list_([], as_json=False, parameters=True, classes=15)
    assert "17,317,051" in capsys.readouterr().out
