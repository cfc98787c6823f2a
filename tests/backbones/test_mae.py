"""MAE: official tensors accounted for, positions resampled by the official rule, the final norm on the last map."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.backbones import create_backbone, image_multiple
from nnunet_fm.backbones.mae import MAE
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.official_weights import check_official
from tests.helpers.small_networks import count, shapes

SIZES = {"mae_b": ("base", 16, 14), "mae_l": ("large", 16, 14), "mae_h": ("huge", 14, 16)}
"""Name -> the manifest's size, patch size, edge of the native grid."""

COUNTS = {"mae_b": 85_798_656, "mae_l": 303_301_632, "mae_h": 630_764_800}

sizes = pytest.mark.parametrize("name", SIZES)


def official(name: str, **more: Any) -> dict[str, Tensor]:
    """The official state dict of a size, on the meta device, and further tensors by name and shape."""
    listed = {**manifest(f"mae_vit_{SIZES[name][0]}")["state_dict"], **more}
    return {key: torch.empty(shape, device="meta") for key, shape in listed.items()}


def on_meta(name: str, image_size: int | tuple[int, int] = 224) -> MAE:
    with torch.device("meta"):
        backbone = create_backbone(name, image_size)
    assert isinstance(backbone, MAE)
    return backbone


def segmenter(**more: Any) -> FoundationSegmenter2D:
    """A segmenter of the first four blocks of MAE B, on images of 32 pixels."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = FoundationSegmenter2D(1, 3, backbone="mae_b", image_size=32, **more)
    vit = network.backbone.vit
    vit.blocks = vit.blocks[:4]
    network.backbone.depth, network.blocks = 4, (3, 2, 1, 0)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.05).add_(key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "_var")))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> FoundationSegmenter2D:
    return segmenter()


@sizes
@pytest.mark.parametrize("grid", [None, (10, 20), (32, 32)])
def test_every_official_tensor_has_its_place(name: str, grid: tuple[int, int] | None) -> None:
    _, patch, edge = SIZES[name]
    backbone = on_meta(name, 224 if grid is None else (grid[0] * patch, grid[1] * patch))
    assert backbone.grid == (grid or (edge, edge))
    converted = backbone.from_official(official(name))
    assert {k: list(v.shape) for k, v in converted.items()} == shapes(backbone)
    if grid is None:
        assert count(backbone) == COUNTS[name]


@sizes
def test_a_whole_pre_training_run_loads_without_its_decoder(name: str) -> None:
    extra = manifest(f"mae_vit_{SIZES[name][0]}")["full_model_extra"]
    card = get_card(name)
    assert card.checkpoint is not None
    with torch.device("meta"):
        network = FoundationSegmenter2D(1, 3, backbone=name)
    (section,) = check_official(network, official(name, **extra), drop=card.checkpoint.drop).sections
    assert section.dropped.keys() == extra.keys() and len(section.matched) == len(official(name))
    assert not section.adapted and not section.missing
    with fails("weights-mismatch", "vit.decoder_blocks"):
        check_official(network, official(name, **extra))


def test_native_positions_are_passed_on_and_may_stay_out_of_a_slim_checkpoint() -> None:
    theirs = official("mae_b")
    assert on_meta("mae_b").from_official(theirs)["vit.pos_embed"] is theirs["pos_embed"]


@pytest.mark.parametrize("grid", [(16, 16), (7, 28), (9, 20), (30, 14)])
def test_other_positions_are_resampled_bicubically_without_that_of_the_class(grid: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + 14 * 14, 768)
    ours = on_meta("mae_b", (grid[0] * 16, grid[1] * 16)).from_official({"pos_embed": positions})["vit.pos_embed"]
    image = positions[:, 1:].view(1, 14, 14, 768).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    assert torch.equal(ours[:, :1], positions[:, :1])
    torch.testing.assert_close(ours[:, 1:].transpose(1, 2).view(1, 768, *grid), expected)


def test_the_final_norm_is_for_the_last_block_only(network: FoundationSegmenter2D) -> None:
    backbone, x = network.backbone, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        last, early = backbone.features(x, (3, 0))
        raw = backbone.features(x, (3, 0), norm="none")
        every = backbone.features(x, (0, 3), norm="all")
    norm = backbone.vit.norm
    normed = [
        F.layer_norm(m.permute(0, 2, 3, 1), (768,), norm.weight, norm.bias, 1e-6).permute(0, 3, 1, 2) for m in raw
    ]
    assert last.shape == (2, 768, 2, 2)
    torch.testing.assert_close([last, early], [normed[0], raw[1]])
    torch.testing.assert_close(every, [normed[1], normed[0]])


def test_maps_are_those_of_their_blocks_without_the_class_token(network: FoundationSegmenter2D) -> None:
    vit, x = network.backbone.vit, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((vit.cls_token.expand(2, -1, -1), tokens), dim=1) + vit.pos_embed
        expected = []
        for block in vit.blocks:
            tokens = block(tokens)
            expected.append(tokens[:, 1:].transpose(1, 2).reshape(2, 768, 2, 2))
        found = network.backbone.features(x, (2, 0, 3), norm="none")
    torch.testing.assert_close(found, [expected[2], expected[0], expected[3]])


def test_the_code_of_the_thesis_leaves_the_norm_out() -> None:
    for faithful in (False, True):
        network = segmenter(faithful=faithful)
        called: list[int] = []
        network.backbone.vit.norm.register_forward_hook(lambda _m, _a, _o, called=called: called.append(1))
        with torch.no_grad():
            network(torch.rand(1, 1, 32, 32))
        assert len(called) == (0 if faithful else 1)


@pytest.mark.parametrize(
    ("name", "image_size"), [("mae_b", 225), ("mae_l", (224, 210)), ("mae_h", 256), ("mae_h", 0), ("mae_b", 8)]
)
def test_other_sizes_are_refused(name: str, image_size: int | tuple[int, int]) -> None:
    assert image_multiple(name) == SIZES[name][1]
    with fails("image-edges", SIZES[name][1]):
        create_backbone(name, image_size)


@pytest.mark.parametrize(("name", "image_size"), [("mae_l", 160), ("mae_h", 112)])
def test_a_step_of_the_larger_ones_on_the_meta_device(name: str, image_size: int) -> None:
    with torch.device("meta"):
        network = FoundationSegmenter2D(2, 4, backbone=name, image_size=image_size)
        logits = network(torch.empty(2, 2, 50, 70))
        assert isinstance(logits, Tensor) and logits.shape == (2, 4, 50, 70)
        logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_copies_and_bfloat16(network: FoundationSegmenter2D, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 1, 40, 30)
    monkeypatch.setenv("NNUNET_FM_BF16", "0")
    with torch.no_grad():
        high = network(x)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), high)
        monkeypatch.setenv("NNUNET_FM_BF16", "1")
        low = network(x)
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    assert (low - high).abs().mean() < 0.05 * high.std()


@sizes
def test_the_card_says_what_the_weights_may_be_used_for(name: str) -> None:
    card = get_card(name)
    assert card.weights_use == "research" and card.weights_licence == "CC-BY-NC-4.0"
    assert card.default_adapter == "freeze" and "sam" in card.head_weights
    assert card.checkpoint is not None and card.checkpoint.container == ["model"]
    mission = card.variants["mission"]
    assert mission.recipe.learning_rate == 5e-5
    assert mission.learning_rate == {"rein": 2e-5, "rein_lora": 2e-5, "ladder": 2e-5}
    slower = {dataset for dataset, choice in mission.datasets.items() if choice.learning_rate == {"ladder": 1e-5}}
    assert slower == {"hcpt1", "verse"}
