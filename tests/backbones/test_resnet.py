"""ResNets: torchvision's tensors accounted for, maps block by block, and what aligns them, trained though frozen."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.backbones import create_backbone, image_multiple
from nnunet_fm.backbones.align import alignment
from nnunet_fm.backbones.resnet import ResNet
from nnunet_fm.models.official import check, get_official
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from tests.helpers.errors import fails
from tests.helpers.official_weights import check_official
from tests.helpers.small_networks import count, shapes

LAYERS = (18, 34, 50, 101, 152)
COUNTS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

every = pytest.mark.parametrize("layers", LAYERS)


def on_meta(layers: int, image_size: int | tuple[int, int] = 224, **more: Any) -> ResNet:
    with torch.device("meta"):
        backbone = create_backbone(f"resnet{layers}", image_size, **more)
    assert isinstance(backbone, ResNet)
    return backbone


def official(layers: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(torchvision.models.get_model(f"resnet{layers}", weights=None).state_dict())


def segmenter(layers: int = 18, head: str = "linear", **more: Any) -> FoundationSegmenter2D:
    torch.manual_seed(0)
    return FoundationSegmenter2D(1, 3, backbone=f"resnet{layers}", head=head, **{"image_size": 64, **more})


@every
def test_every_official_tensor_has_its_place(layers: int) -> None:
    backbone = on_meta(layers)
    theirs = official(layers)
    body = {key: value for key, value in theirs.items() if not key.startswith("fc.")}
    converted = backbone.from_official(body)
    assert {k: list(v.shape) for k, v in converted.items()} == shapes(backbone)
    assert all(converted[f"resnet.{key}"] is value for key, value in body.items())
    assert count(backbone) == COUNTS[layers]
    assert backbone.depth == sum(BLOCKS[layers])


@pytest.mark.parametrize(("layers", "width"), [(18, 256), (101, 1024)])
def test_the_last_stage_may_be_skipped(layers: int, width: int) -> None:
    backbone = on_meta(layers, 240, skip_last_stage=True)
    assert (backbone.embed_dim, backbone.grid, backbone.patch_size) == (width, (15, 15), 16)
    assert backbone.depth == sum(BLOCKS[layers][:3])
    with torch.device("meta"):
        arguments = {"skip_last_stage": True}
        network = FoundationSegmenter2D(1, 3, backbone=f"resnet{layers}", backbone_arguments=arguments)
    (section,) = check_official(network, official(layers), drop=[r"^fc\."]).sections
    assert section.dropped.keys() == {key for key in official(layers) if key.startswith(("fc.", "layer4."))}
    assert not section.missing and not section.adapted


@pytest.mark.parametrize(("layers", "size"), [(18, (64, 64)), (18, (96, 32)), (50, (32, 64))])
def test_maps_are_those_that_torchvision_computes(layers: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    whole = torchvision.models.get_model(f"resnet{layers}", weights=None).eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.1, 0.5)
    expected: list[Tensor] = []
    for name, block in whole.named_modules():
        if name.startswith("layer") and name.count(".") == 1:
            block.register_forward_hook(lambda _m, _a, out: expected.append(out.clone()))
    backbone = create_backbone(f"resnet{layers}", size).eval()
    own = {k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")}
    backbone.load_state_dict(backbone.from_official(own))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        whole(x)
        maps = backbone.features(x, backbone.default_blocks)
        (third, first) = backbone.features(x, (2, 0))
    torch.testing.assert_close(maps, expected[::-1])
    torch.testing.assert_close([third, first], [expected[2], expected[0]])


@pytest.mark.parametrize("image_size", [32, 224, (96, 160)])
@pytest.mark.parametrize(("layers", "skip"), [(18, False), (101, False), (50, True)])
def test_map_shapes_are_told_in_advance(layers: int, skip: bool, image_size: int | tuple[int, int]) -> None:
    backbone = on_meta(layers, image_size, skip_last_stage=skip).eval()
    edges = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.device("meta"):
        maps = backbone.features(torch.empty(1, 3, *edges), range(backbone.depth))
    told = [(channels, *grid) for channels, grid in map(backbone.map_shape, range(backbone.depth))]
    assert [tuple(m.shape[1:]) for m in maps] == told
    assert told[-1] == (backbone.embed_dim, *backbone.grid)
    assert backbone.grid == (edges[0] // backbone.patch_size, edges[1] // backbone.patch_size)


def test_blocks_after_the_last_one_asked_for_are_not_computed() -> None:
    backbone = create_backbone("resnet18", 32).eval()
    ran: list[str] = []
    for name, module in backbone.named_modules():
        if name.startswith("resnet.layer") and name.count(".") == 2:
            module.register_forward_hook(lambda _m, _a, _o, name=name: ran.append(name))
    with torch.no_grad():
        backbone.features(torch.randn(1, 3, 32, 32), (1, 4))
    assert ran == [f"resnet.layer{i}.{j}" for i, j in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0))]


def test_what_a_resnet_cannot_do_is_refused() -> None:
    assert image_multiple("resnet50") == 32
    for image_size in (225, 16, (224, 48)):
        with fails("image-edges", "32"):
            on_meta(50, image_size)
    with fails("adapter-tokens"):
        on_meta(18).features(torch.empty(1, 3, 224, 224), (0,), refine=lambda _index, tokens: tokens)
    with fails("head-maps", "10", "8"):
        on_meta(18).blocks_for(10)


# --- with a head -------------------------------------------------------------------------------------------------


def test_maps_of_earlier_stages_are_brought_to_the_last_ones_shape() -> None:
    backbone = on_meta(101)
    blocks = backbone.blocks_for(10)
    assert blocks == tuple(range(32, 22, -1))
    with torch.device("meta"):
        align = alignment(backbone, blocks)
    assert list(align) == [str(i) for i in range(3, 10)]  # three blocks of layer4 need none
    assert count(align) == 14_723_072
    network = segmenter(head="linear", image_size=64)
    x = [torch.randn(2, 128, 8, 8), torch.randn(2, 512, 2, 2)]
    assert network.blocks == (7, 6, 5, 4) and list(network.align) == ["2", "3"]
    assert network.align["2"](torch.randn(2, 256, 4, 4)).shape == x[1].shape


@pytest.mark.parametrize(
    ("layers", "classes", "total"), [(101, 15, 68_168_357), (101, 3, 68_168_165), (18, 15, 18_153_125)]
)
def test_the_network_of_the_thesis_has_the_published_count(layers: int, classes: int, total: int) -> None:
    card = get_card(f"resnet{layers}")
    assert card.default_head == "unetdec_small"
    with torch.device("meta"):
        network = FoundationSegmenter2D(1, classes, head="unetdec_small", **card.network.arguments)
        logits = network(torch.empty(1, 1, 256, 200))
    assert isinstance(logits, Tensor) and logits.shape == (1, classes, 256, 200)
    assert count(network) == total
    if (layers, classes) == (101, 15):
        assert count(network) - count(network.backbone) == 25_668_197


def test_freeze_keeps_the_resnet_and_trains_what_aligns_its_maps() -> None:
    network = segmenter()
    apply_adapter("freeze", network)
    network.train()
    assert not any(module.training for module in network.backbone.modules())
    assert all(module.training for part in (network.align, network.head) for module in part.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = [p for p in network.parameters() if p.requires_grad]
    logits = network(torch.rand(2, 1, 80, 48))
    assert isinstance(logits, Tensor)
    logits.square().mean().backward()
    torch.optim.SGD(trained, lr=1.0).step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("backbone.") for name in moved)
    for part in ("align.2.conv.weight", "align.3.norm.running_mean", "head.conv_seg.weight"):
        assert part in moved


def test_full_trains_everything_and_updates_statistics() -> None:
    network = segmenter()
    apply_adapter("full", network)
    network.train()
    before = network.backbone.resnet["bn1"].running_mean.clone()
    logits = network(torch.rand(2, 1, 64, 64))
    assert isinstance(logits, Tensor)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not torch.equal(network.backbone.resnet["bn1"].running_mean, before)


def test_lora_updates_the_convolutions_only() -> None:
    network = segmenter()
    plain = {name for name, module in network.backbone.named_modules() if isinstance(module, nn.Conv2d)}
    apply_adapter("lora", network)
    network.train()
    trained = {name for name, p in network.named_parameters() if p.requires_grad and name.startswith("backbone.")}
    assert {name.split(".lora_")[0].removeprefix("backbone.") for name in trained} == plain
    assert not any(m.training for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert network(torch.rand(2, 1, 64, 64)).isfinite().all()
    (section,) = check_official(network, official(18), drop=[r"^fc\."]).sections
    assert section.dropped.keys() == {"fc.weight", "fc.bias"}
    assert all(".lora_" in name for name in section.missing)


def test_copies_and_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    network = segmenter(34, backbone_arguments={"skip_last_stage": True}, image_size=32)
    apply_adapter("freeze", network)
    assert network.backbone.depth == 13
    network.eval()
    x = torch.rand(1, 1, 40, 30)
    monkeypatch.setenv("NNUNET_FM_BF16", "0")
    with torch.no_grad():
        high = network(x)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), high)
            twin.train()
            assert not any(module.training for module in twin.backbone.modules())
        monkeypatch.setenv("NNUNET_FM_BF16", "1")
        low = network(x)
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    assert (low - high).abs().mean() < 0.05 * high.std()


# --- cards -------------------------------------------------------------------------------------------------------


@every
def test_the_card_names_the_file_that_torchvision_offers(layers: int, tmp_path: Path) -> None:
    card = get_card(f"resnet{layers}")
    checkpoint = card.checkpoint
    assert checkpoint is not None and card.weights_use == "open"
    weights = torchvision.models.get_model_weights(f"resnet{layers}")[
        "IMAGENET1K_V1" if layers < 50 else "IMAGENET1K_V2"
    ]
    assert checkpoint.urls == [weights.url] and checkpoint.files == [weights.url.rpartition("/")[2]]
    assert card.adapters == ["full", "freeze", "lora"]
    assert card.variants["mission"].recipe.learning_rate == 5e-4
    file = tmp_path / checkpoint.files[0]
    content = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in official(layers).items()}
    torch.save(content, file)
    (section,) = check(get_official(checkpoint.name), file).sections
    assert section.dropped.keys() == {"fc.weight", "fc.bias"} and not section.missing and not section.adapted
    if layers < 50:  # files of early PyTorch have no counters
        torch.save({key: value for key, value in content.items() if not key.endswith("num_batches_tracked")}, file)
        (section,) = check(get_official(checkpoint.name), file).sections
        assert len(section.missing) == sum(key.endswith("num_batches_tracked") for key in content)


@pytest.mark.parametrize("head", get_card("resnet18").heads)
def test_the_smallest_resnet_has_blocks_enough_for_every_head(head: str) -> None:
    card = get_card("resnet18")
    with torch.device("meta"):
        network = FoundationSegmenter2D(1, 4, head=head, **card.network.arguments)
        logits = network(torch.empty(2, 1, 64, 64))
    assert isinstance(logits, Tensor) and logits.shape == (2, 4, 64, 64)
