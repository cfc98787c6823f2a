"""Adapters on 2D backbones: what they train moves, nothing else does, and official files still load."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters import ADAPTERS, apply_adapter
from nnunet_fm.adapters.ladder import Ladder
from nnunet_fm.adapters.rein import Rein
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from tests.helpers.errors import fails
from tests.helpers.official_weights import load_official
from tests.helpers.small_networks import count, shapes

pytestmark = pytest.mark.usefixtures("float32")

MANIFESTS = Path(__file__).parents[1] / "manifests"
DEPTH = 4
WIDTHS = {"dinov2_s": 48, "dinov2_s_reg": 48, "mae_b": 64, "sam_b": 32}
SIZES = {"dinov2_s": 28, "dinov2_s_reg": 28, "mae_b": 32, "sam_b": 32, "resnet18": 64}
"""Backbone -> channels of a token when `small`, and edge of its images in pixels."""
SMALL_SAM = {"embed_dim": WIDTHS["sam_b"], "depth": DEPTH, "num_heads": 2, "global_blocks": (1, 3)}
BACKBONES = ("dinov2_s", "mae_b", "sam_b", "resnet18")
ALL = sorted(ADAPTERS)
REINS = ["rein", "rein_lora"]
CONVOLUTIONAL = ["freeze", "full", "lora"]
QUERY_LINK = ("rein.transform.", "rein.merge.")
BESIDE_BRANCH = r"^ladder\.(?!branch)"
"""What the ladder does not take from its branch's official file."""

every_case = pytest.mark.parametrize(
    ("backbone", "adapter"), [(b, a) for b in BACKBONES for a in (CONVOLUTIONAL if b == "resnet18" else ALL)]
)
transformers = pytest.mark.parametrize("backbone", ["dinov2_s", "mae_b", "sam_b"])
reins = pytest.mark.parametrize("adapter", REINS)

_create_model = timm.create_model


def _small_vit(name: str, **arguments: Any) -> nn.Module:
    width = WIDTHS["mae_b" if name.endswith("mae") else "dinov2_s"]
    return _create_model(name, depth=DEPTH, num_heads=2, embed_dim=width, **arguments)


@contextmanager
def small() -> Iterator[None]:
    """In here, vision transformers of timm have few and narrow blocks."""
    with mock.patch.object(timm, "create_model", _small_vit):
        yield


@cache
def _template(backbone: str, maps: int) -> FoundationSegmenter2D:
    torch.manual_seed(0)
    with small():
        network = FoundationSegmenter2D(
            1, 3, backbone=backbone, image_size=SIZES[backbone], head_arguments={"linear": {"maps": maps}},
            backbone_arguments=SMALL_SAM if backbone == "sam_b" else None,
        )  # fmt: skip
    for (
        parameter
    ) in network.backbone.parameters():  # tables that start at zero, and branches scaled by 1e-5, say little
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2 / math.sqrt(max(parameter[0].numel(), 1)))
    return network


def plain(backbone: str = "dinov2_s", *, maps: int = 4) -> FoundationSegmenter2D:
    """A small network with weights far from zero, the same at every call."""
    return copy.deepcopy(_template(backbone, maps))


def adapted(adapter: str, backbone: str = "dinov2_s", *, maps: int = 4, **arguments: Any) -> FoundationSegmenter2D:
    network = plain(backbone, maps=maps)
    torch.manual_seed(1)
    with small():
        apply_adapter(adapter, network, **arguments)
    return network


def images(backbone: str = "dinov2_s", batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, *[SIZES[backbone]] * 2, generator=torch.Generator().manual_seed(2))


def backward(network: FoundationSegmenter2D, x: Tensor) -> None:
    """Gradients of a loss that depends on all logits."""
    out = network(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(
        a.detach().reshape(-1).view(torch.uint8), b.detach().reshape(-1).view(torch.uint8)
    )


def meta(backbone: str, image_size: int, *, maps: int = 2) -> FoundationSegmenter2D:
    """A network of full size, without memory."""
    with torch.device("meta"):
        return FoundationSegmenter2D(
            1, 3, backbone=backbone, image_size=image_size, head_arguments={"linear": {"maps": maps}}
        )


# --- what is trained ---------------------------------------------------------------------------------------------


def may_move(name: str, adapter: str) -> bool:
    """Whether a parameter or buffer of this name belongs to what an adapter trains."""
    if adapter == "full" or not name.startswith("backbone."):
        return True
    return adapter == "lora" and ".lora_" in name


@every_case
def test_only_what_an_adapter_trains_moves(backbone: str, adapter: str) -> None:
    network = adapted(adapter, backbone).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert set(trained) == {name for name, _ in network.named_parameters() if may_move(name, adapter)}
    for _ in range(2):  # the first factor of a low-rank update moves only once the second is not zero
        optimizer = torch.optim.SGD(trained.values(), lr=0.1)
        backward(network, images(backbone))
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in network.state_dict().items() if not same_bytes(tensor, before[name])}
    assert all(may_move(name, adapter) for name in moved)
    assert any(name.startswith("head.conv_seg") for name in moved)
    idle = {name for name in trained if name.startswith(QUERY_LINK)}
    # a bias before a norm, or the bias of keys, has no effect and no gradient
    assert len(moved & set(trained)) > 0.9 * len(set(trained) - idle), set(trained) - moved
    if adapter == "lora":
        assert {part for part in (".lora_A.", ".lora_B.") if any(part in name for name in moved)} == {
            ".lora_A.",
            ".lora_B.",
        }


@every_case
def test_the_frozen_backbone_stays_in_eval_mode(backbone: str, adapter: str) -> None:
    network = adapted(adapter, backbone).train()
    modules = dict(network.named_modules())
    assert network.training and network.head.training
    if adapter in ("full", "lora"):
        norms = [m for n, m in modules.items() if n.startswith("backbone.") and isinstance(m, nn.BatchNorm2d)]
        assert all(m.training is (adapter == "full") for m in norms)
    else:
        assert not any(m.training for n, m in modules.items() if n.split(".")[0] == "backbone")
    if adapter == "ladder":
        assert all(m.training for n, m in modules.items() if n.split(".")[0] == "ladder")


@every_case
def test_adapted_networks_travel(backbone: str, adapter: str) -> None:
    network = adapted(adapter, backbone).eval()
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    x = images(backbone)
    with torch.no_grad():
        expected = network(x)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert {n for n, p in other.named_parameters() if p.requires_grad} == trained
            assert torch.equal(other(x), expected)
        fresh = adapted(adapter, backbone).eval()
        for parameter in fresh.parameters():
            nn.init.ones_(parameter)
        fresh.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(fresh(x), expected)


@every_case
def test_official_weights_load_into_an_adapted_network(backbone: str, adapter: str) -> None:
    network, source = adapted(adapter, backbone), plain(backbone)
    own = {n: t.clone() for n, t in network.state_dict().items() if not n.startswith("backbone.")}
    official = {
        name.removeprefix("vit.").removeprefix("resnet."): torch.randn_like(t) if t.is_floating_point() else t
        for name, t in source.backbone.state_dict().items()
    }
    (section,) = load_official(network, official, part="backbone").sections
    lora = {n.removeprefix("backbone.") for n in network.state_dict() if ".lora_" in n}
    assert set(section.missing) == lora and bool(lora) == (adapter == "lora")
    assert set(section.missing.values()) <= {"adapter, starts at its initial values"}
    assert len(section.matched) + len(section.adapted) == len(official) and not section.dropped
    assert section.adapted.keys() <= {"vit.pos_embed"}
    now = {n.replace(".base_layer.", "."): t for n, t in network.state_dict().items()}
    prefix = next((p for p in ("vit.", "resnet.") if f"backbone.{p}{next(iter(official))}" in now), "")
    assert all(same_bytes(now[f"backbone.{prefix}{name}"], tensor) for name, tensor in official.items())
    assert all(same_bytes(now[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("adapter", ["lora", "rein", "rein_lora", "ladder"])
@transformers
def test_adapters_compute_in_bfloat16(backbone: str, adapter: str) -> None:
    network = adapted(adapter, backbone).eval()
    x = images(backbone)
    with torch.no_grad():
        expected = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backward(network, x)
        with torch.no_grad():
            found = network(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).std() < 0.1 * expected.std()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) > 5 and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("adapter", ALL)
def test_adapted_networks_build_and_run_without_memory(adapter: str) -> None:
    with torch.device("meta"), small():
        network = FoundationSegmenter2D(1, 3, backbone="dinov2_s", image_size=28)
        apply_adapter(adapter, network)
        network(torch.empty(2, 1, 28, 28)).sum().backward()
    assert all(t.is_meta for t in network.state_dict().values())
    without = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {n for n, _ in network.named_parameters() if n.startswith(QUERY_LINK)}


# --- LoRA --------------------------------------------------------------------------------------------------------


def lora_layers(network: nn.Module) -> set[str]:
    return {n.split(".lora_A.")[0] for n, _ in network.named_parameters() if ".lora_A." in n}


@pytest.mark.parametrize(
    ("backbone", "rank", "parameters"),
    [
        ("dinov2_b", 4, 147456),
        ("dinov2_b", 8, 294912),
        ("dinov2_b", 16, 589824),
        ("mae_b", 4, 147456),
        ("sam_b", 4, 147456),
    ],
)
def test_lora_of_queries_keys_and_values_has_the_published_counts(backbone: str, rank: int, parameters: int) -> None:
    network = meta(backbone, 224)
    with torch.device("meta"):
        apply_adapter("lora", network, rank=rank, targets=["qkv"])
    assert count(network.backbone, trained=True) == parameters
    assert len(lora_layers(network)) == 12


@pytest.mark.parametrize("backbone", ["dinov2_b", "mae_b", "sam_b"])
def test_lora_of_all_linear_layers_has_the_published_count(backbone: str) -> None:
    network = meta(backbone, 224)
    with torch.device("meta"):
        apply_adapter("lora", network)
    assert count(network.backbone, trained=True) == 2359296
    ends = {layer.split(".blocks.")[1].split(".", 1)[1] for layer in lora_layers(network)}
    assert ends == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}


def test_lora_takes_whole_parts_of_names() -> None:
    assert lora_layers(adapted("lora", targets=["attn.proj"])) == {
        f"backbone.vit.blocks.{index}.attn.proj" for index in range(DEPTH)
    }
    with fails("adapter-layers", "patch_embed.proj"):
        adapted("lora", targets=["kv", "patch_embed.proj"])


# --- Rein --------------------------------------------------------------------------------------------------------


@reins
@transformers
def test_rein_moves_the_logits(backbone: str, adapter: str) -> None:
    network = adapted(adapter, backbone).eval()
    x = images(backbone)
    tokens = network.rein.learnable_tokens if adapter == "rein" else network.rein.learnable_tokens_a
    with torch.no_grad():
        first = network(x)
        tokens.add_(torch.randn_like(tokens))
        second = network(x)
        assert (second - first).abs().max() > 1e-6
        network.faithful = True
        frozen = network(x)
        tokens.add_(torch.randn_like(tokens))
        assert torch.equal(network(x), frozen)


@reins
@transformers
def test_gradients_reach_the_tokens_of_every_block_from_the_last_map(backbone: str, adapter: str) -> None:
    network = adapted(adapter, backbone, maps=1)
    backward(network, images(backbone))
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        if name.startswith(QUERY_LINK):
            assert gradient is None
        else:
            assert gradient is not None, name
            assert gradient.abs().sum() > 0 or name == "head.conv_seg.bias", name
    tokens = [g for name, g in gradients.items() if "learnable_tokens" in name]
    assert len(tokens) == (1 if adapter == "rein" else 2)
    assert all((g.flatten(1).abs().amax(dim=1) > 0).all() for g in tokens)
    assert not any(name.startswith("backbone.") for name in gradients)


@transformers
def test_the_head_gets_refined_maps_without_the_final_norm(backbone: str) -> None:
    network = adapted("rein", backbone).eval()
    seen: list[list[Tensor]] = []
    network.head.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    x = images(backbone)
    entered: list[Tensor] = []
    first = "patch_embed" if backbone == "sam_b" else "vit.patch_embed"
    network.backbone.get_submodule(first).register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
    with torch.no_grad():
        network(x)
        expected = network.backbone.features(entered[0], network.blocks, norm="none", refine=network.rein)
        without = network.backbone.features(entered[0], network.blocks, norm="none")
    assert network.blocks == (3, 2, 1, 0)
    for found, refined, raw in zip(seen[0], expected, without, strict=True):
        assert torch.equal(found, refined) and not torch.equal(found, raw)


@pytest.mark.parametrize(("backbone", "tokens"), [("dinov2_s", 4), ("dinov2_s_reg", 8)])
def test_rein_refines_all_tokens_but_the_class_token(backbone: str, tokens: int) -> None:
    network = adapted("rein", backbone)
    seen: list[tuple[int, torch.Size]] = []
    network.rein.register_forward_pre_hook(lambda _m, args: seen.append((args[0], args[1].shape)))
    with torch.no_grad():
        network(torch.rand(2, 1, 28, 28))
    assert seen == [(block, torch.Size([2, tokens, WIDTHS[backbone]])) for block in range(DEPTH)]


def test_a_patch_may_attend_to_the_first_token_and_get_nothing() -> None:
    torch.manual_seed(0)
    module = Rein(1, 8, 14, tokens=5, scale=1.0)
    x = torch.randn(1, 3, 8)
    with torch.no_grad():
        module.mlp_delta_f.weight.copy_(torch.eye(8))
        module.mlp_delta_f.bias.zero_()
        assert not torch.allclose(module(0, x), 2 * x, atol=1e-3)
        module.learnable_tokens[0, 0] = 1000.0
        positive = x.abs()
        torch.testing.assert_close(module(0, positive), 2 * positive)  # all attention goes to the first


def test_rein_follows_its_formula() -> None:
    torch.manual_seed(0)
    module = Rein(2, 6, 14, tokens=4, rank=3, scale=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        x = torch.randn(2, 5, 6)
        tokens = module.learnable_tokens_a[1] @ module.learnable_tokens_b[1]
        attention = torch.softmax(torch.einsum("bnc,tc->bnt", x, tokens) / 6**0.5, dim=2)
        values = F.linear(tokens, module.mlp_token2feat.weight, module.mlp_token2feat.bias)
        delta = sum(attention[:, :, t, None] * values[t] for t in (1, 2, 3)) + x
        delta = F.linear(delta, module.mlp_delta_f.weight, module.mlp_delta_f.bias)
        torch.testing.assert_close(module(1, x), x + module.scale * delta)


@pytest.mark.parametrize(
    ("depth", "width", "patch_size", "whole", "useful"),
    [
        (12, 384, 14, 1051905, 756481),
        (12, 768, 14, 2496513, 2102785),
        (24, 1024, 16, 5016065, 4556801),
        (32, 1280, 14, 7900161, 7375361),
        (40, 1536, 14, 11456001, 10865665),
    ],
)
def test_rein_has_the_published_counts(depth: int, width: int, patch_size: int, whole: int, useful: int) -> None:
    with torch.device("meta"):
        assert count(Rein(depth, width, patch_size)) == whole
        assert count(Rein(depth, width, patch_size, query_link=False)) == useful


@pytest.mark.parametrize(
    ("depth", "width", "whole"), [(12, 384, 684033), (12, 768, 1741569), (24, 1024, 2990081), (40, 1536, 6359041)]
)
def test_rein_lora_has_the_published_counts(depth: int, width: int, whole: int) -> None:
    with torch.device("meta"):
        assert count(Rein(depth, width, 14, rank=16)) == whole


@reins
@pytest.mark.parametrize(("backbone", "manifest"), [("dinov2_b", "dinov2_vitb14"), ("sam_b", "sam_vit_b")])
def test_rein_has_the_official_names(backbone: str, manifest: str, adapter: str) -> None:
    network = meta(backbone, 224)
    with torch.device("meta"):
        apply_adapter(adapter, network)
    listed = json.loads((MANIFESTS / f"{adapter}_{manifest}.json").read_text())
    assert shapes(network.rein) == listed["state_dict"]
    assert count(network, trained=True) == listed["num_parameters"] + count(network.head)


def test_rein_starts_as_officially() -> None:
    torch.manual_seed(0)
    for rank, bound in ((None, (6 / (3 * 196 + 768)) ** 0.5), (16, (6 / (3 * 196 + (16 * 768) ** 0.5)) ** 0.5)):
        module = Rein(2, 768, 14, rank=rank)
        for name, parameter in module.named_parameters():
            if name.startswith("learnable_tokens"):
                assert 0.98 * bound < parameter.max() <= bound and -bound <= parameter.min() < -0.98 * bound
                assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
            elif name.endswith("mlp_token2feat.weight"):
                assert parameter.abs().max().item() == pytest.approx(
                    768**-0.5, rel=0.01
                )  # Kaiming uniform, a = sqrt(5)
        assert module.scale.shape == () and module.scale.item() == pytest.approx(0.001)


@reins
def test_the_query_link_can_be_left_out(adapter: str) -> None:
    with_link, without = adapted(adapter).eval(), adapted(adapter, query_link=False).eval()
    assert with_link.find_unused_parameters and not without.find_unused_parameters
    without.load_state_dict({n: t for n, t in with_link.state_dict().items() if not n.startswith(QUERY_LINK)})
    with torch.no_grad():
        assert torch.equal(with_link(images()), without(images()))


@reins
def test_rein_needs_blocks_of_one_width(adapter: str) -> None:
    network = plain("resnet18")
    with fails("adapter-width"):
        apply_adapter(adapter, network)
    assert all(p.requires_grad for p in network.parameters())


# --- the ladder --------------------------------------------------------------------------------------------------


def test_a_ladder_starts_half_and_half_and_learns_its_gates() -> None:
    ladder = Ladder(nn.Identity(), [3, 3], [3, 3])
    big, small = [torch.randn(2, 3, 4, 4) for _ in range(2)], [torch.randn(2, 3, 4, 4) for _ in range(2)]
    mixed = ladder.mix(big, small)
    for out, a, b in zip(mixed, big, small, strict=True):
        torch.testing.assert_close(out, (a + b) / 2)
    (mixed[0].sum() + 2 * mixed[1].sum()).backward()
    for index, factor in enumerate((1, 2)):
        gradient = ladder.alpha[index].grad
        assert gradient is not None
        torch.testing.assert_close(gradient, factor * ((big[index] - small[index]).sum() / 4)[None])
    with torch.no_grad():
        ladder.alpha[1].fill_(100.0)
        assert torch.equal(ladder.mix(big, small)[1], big[1])


@pytest.mark.parametrize(("theirs", "ours"), [(6, 3), (3, 6), (16, 14), (14, 16), (5, 5)])
def test_a_ladder_fits_the_branch_to_the_backbone(theirs: int, ours: int) -> None:
    ladder = Ladder(nn.Identity(), [2], [5]).eval()
    small = torch.randn(1, 2, theirs, theirs)
    with torch.no_grad():
        (out,) = ladder.mix([torch.zeros(1, 5, ours, ours)], [small])
        neck = ladder.necks_y2_ch[0](small)
    expected = (
        F.adaptive_avg_pool2d(neck, ours)
        if theirs > ours
        else F.interpolate(neck, size=(ours, ours), mode="bilinear", align_corners=False)
    )
    torch.testing.assert_close(out, expected / 2)


@transformers
def test_the_branch_reaches_the_logits(backbone: str) -> None:
    network = adapted("ladder", backbone).eval()
    x = images(backbone)
    with torch.no_grad():
        mixed = network(x)
        network.ladder.branch.backbone.vit.patch_embed.proj.weight.mul_(-3)
        assert (network(x) - mixed).abs().max() > 1e-6
        for alpha in network.ladder.alpha:
            alpha.fill_(100.0)
        closed = network(x)
        network.ladder = None
        torch.testing.assert_close(network(x), closed)


@pytest.mark.parametrize("adapter", ["freeze", "rein", "ladder"])
@pytest.mark.parametrize("head", ["samdec", "hqsam"])
@pytest.mark.parametrize("backbone", ["dinov2_s", "sam_b"])
def test_a_neck_that_ends_the_backbone_is_frozen(backbone: str, head: str, adapter: str) -> None:
    arguments = SMALL_SAM if backbone == "sam_b" else None
    x = images(backbone)
    with small():
        network = FoundationSegmenter2D(
            1, 3, backbone=backbone, head=head, image_size=SIZES[backbone], backbone_arguments=arguments
        ).eval()
        with torch.no_grad():
            before = network(x)
        apply_adapter(adapter, network)
    in_backbone = backbone == "sam_b" and (adapter == "ladder" or head == "samdec")
    assert (network.head.neck is None) is (network.backbone.neck is not None) is in_backbone
    if adapter == "ladder":
        for alpha in network.ladder.alpha:
            nn.init.constant_(alpha, 100.0)  # gates open for the backbone
    if adapter != "rein":
        with torch.no_grad():
            torch.testing.assert_close(network(x), before)
    assert any(".neck." in n for n, p in network.named_parameters() if p.requires_grad) is not in_backbone
    backward(network, x)
    assert not any(p.grad is not None for p in network.backbone.parameters())
    assert not in_backbone or not network.train().backbone.neck.training


def test_the_branch_sees_normalised_images_and_gives_normed_maps() -> None:
    network = adapted("ladder", "sam_b", maps=2).eval()
    branch = network.ladder.branch
    x = images("sam_b").expand(-1, 3, -1, -1)
    with torch.no_grad():
        maps = branch(x)
        resized = F.interpolate(x, size=(28, 28), mode="area")
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normalised = (resized - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        expected = branch.backbone.features(normalised, (3, 0), norm="all")
    assert branch.blocks == (3, 0)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.shape == (2, WIDTHS["dinov2_s"], 2, 2)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("backbone", "maps", "blocks"),
    [
        ("sam_l", 1, (11,)),
        ("sam_l", 2, (11, 0)),
        ("sam_l", 4, (11, 11, 10, 10)),
        ("sam_l", 10, (11, 11, 10, 10, 9, 9, 8, 8, 7, 7)),
        ("sam_h", 4, (11, 11, 10, 10)),
        ("sam_b", 2, (11, 0)),
        ("sam_b", 10, (11, 10, 9, 8, 7, 6, 5, 4, 3, 2)),
    ],
)
def test_the_branch_gives_maps_of_the_same_relative_depth(backbone: str, maps: int, blocks: tuple[int, ...]) -> None:
    network = meta(backbone, 224, maps=maps)
    with torch.device("meta"):
        assert network.second_branch("dinov2_s").blocks == blocks


@pytest.mark.parametrize(
    ("backbone", "image_size", "neck", "parameters"),
    [("dinov2_b", 518, False, 22650626), ("mae_b", 528, False, 22650626), ("sam_b", 528, True, 22452482)],
)
def test_a_ladder_has_the_published_counts(backbone: str, image_size: int, neck: bool, parameters: int) -> None:
    network = meta(backbone, image_size)
    with torch.device("meta"):
        network.head.neck = nn.Sequential(nn.Conv2d(768, 256, 1, bias=False)) if neck else None
        apply_adapter("ladder", network)
    assert count(network.ladder) == count(network.ladder, trained=True) == parameters
    assert network.ladder.branch.backbone.grid == (37, 37)
    assert network.head.neck is None and (network.backbone.neck is not None) == neck
    assert count(network.backbone, trained=True) == 0


def test_the_branch_takes_its_official_file() -> None:
    network = plain("sam_b")
    apply_adapter("ladder", network)
    listed = json.loads((MANIFESTS / "dinov2_vits14.json").read_text())["state_dict"]
    official = {name: torch.randn(shape) * 0.02 for name, shape in listed.items()}
    before = {n: t.clone() for n, t in network.state_dict().items() if not n.startswith("ladder.branch.")}
    (section,) = load_official(network, official, part="ladder", new=(BESIDE_BRANCH,)).sections
    assert all(name.startswith(("necks_y2_ch.", "alpha.")) for name in section.missing) and section.missing
    assert section.dropped.keys() == {"mask_token"} and "branch.backbone.vit.pos_embed" in section.adapted
    branch = network.ladder.branch.backbone.vit
    assert same_bytes(branch.blocks[7].attn.qkv.weight, official["blocks.7.attn.qkv.weight"])
    assert all(same_bytes(network.state_dict()[name], tensor) for name, tensor in before.items())
