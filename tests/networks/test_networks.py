"""Networks: official names and counts, any input size, deep supervision, precision, adapters, copies."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.models.build import architecture, build_network
from nnunet_fm.models.registry import cards
from nnunet_fm.networks import slices
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from nnunet_fm.networks.stunet import STUNet
from nnunet_fm.networks.unet import VanillaUNet2D, VanillaUNet3D
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.small_networks import CLASSES, count, shapes, small

POOLING = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
"""Strides of a plan with three poolings; STU-Net fills up with ones."""

Build = Callable[..., FoundationNetwork]


def stunet(channels: int = 1, classes: int = 3, strides: Sequence[Sequence[int]] = POOLING, **more: Any) -> STUNet:
    return STUNet(channels, classes, dims=[4, 4, 8, 8, 8, 8], depth=[2, 1, 1, 1, 1, 1], strides=strides, **more)


def unet3d(channels: int = 1, classes: int = 3, **more: Any) -> VanillaUNet3D:
    return VanillaUNet3D(channels, classes, channels=[4, 8, 8], num_res_units=2, **more)


def unet2d(channels: int = 1, classes: int = 3, **more: Any) -> VanillaUNet2D:
    return VanillaUNet2D(channels, classes, channels=[4, 8, 8], **{"image_size": 32, **more})


def segmenter(channels: int = 1, classes: int = 3, **more: Any) -> FoundationSegmenter2D:
    return FoundationSegmenter2D(channels, classes, backbone="dinov2_s", image_size=28, **more)


ALL: dict[str, tuple[Build, tuple[int, ...]]] = {
    "stunet": (stunet, (9, 22, 17)),
    "unet3d": (unet3d, (9, 14, 6)),
    "unet2d": (unet2d, (45, 30)),
    "segmenter": (segmenter, (45, 30)),
    **{
        family: (partial(small, family, deep_supervision=False), (9, 33, 17))
        for family in CLASSES
        if family != "stunet"
    },
}


every_network = pytest.mark.parametrize(("build", "size"), ALL.values(), ids=ALL)


# --- official names, shapes and counts ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "base", "large", "huge"])
def test_stunet_has_the_official_names_shapes_and_counts(size: str) -> None:
    official = manifest(f"stunet_{size}")
    config = official["source"]["config"]
    strides = [[1, 1, 1], *config["pool_op_kernel_sizes"]]

    def build(channels: int, classes: int) -> STUNet:
        with torch.device("meta"):
            return STUNet(channels, classes, dims=config["dims"], depth=config["depth"], strides=strides)

    assert shapes(build(1, 24)) == official["state_dict"]
    assert count(build(1, 24)) == official["num_parameters"]
    assert count(build(1, 105)) == official["num_parameters_105_classes"]
    assert count(build(2, 31)) == official["num_parameters_31_classes_2_input_channels"]


def test_vanilla_unet_2d_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        network = VanillaUNet2D(3, 15, channels=[64, 128, 256, 512, 1024])
    assert shapes(network) == manifest("vanilla_unet")["state_dict"]


@pytest.mark.parametrize("name", [name for name, card in cards().items() if not card.heads])
def test_the_counts_of_every_card_are_those_of_its_network(name: str) -> None:
    card = cards()[name]
    geometry = card.variants["mission"].geometry
    spacing = geometry.spacing if isinstance(geometry.spacing, list) else [1.0] * card.dim
    strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
    entry = architecture(card, patch_size=geometry.patch, spacing=spacing, strides=strides)
    with torch.device("meta"):
        networks = {classes: build_network(entry, 1, classes) for classes in card.parameters}
    assert {k: count(n) for k, n in networks.items()} == card.parameters


def test_stunet_starts_from_he_initialisation() -> None:
    network = STUNet(1, 2, dims=[64] * 6, depth=[1] * 6, strides=[[1, 1, 1]])
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.in_channels >= 64]
    assert len(convolutions) > 20
    for convolution in convolutions:
        fan_in = convolution.weight[0].numel()
        expected = (2 / (1 + 0.01**2) / fan_in) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.15)
        assert not convolution.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"dims": [4] * 5}, ("argument-value", "6")),
        ({"depth": [1] * 4}, ("argument-value", "6")),
        ({"strides": [[2, 2, 2]] * 5}, ("argument-value",)),
    ],
)
def test_stunet_refuses_arguments_it_cannot_follow(wrong: dict[str, Any], expected: tuple[str, ...]) -> None:
    arguments: dict[str, Any] = {"dims": [4] * 6, "depth": [1] * 6, "strides": POOLING, **wrong}
    with fails(*expected):
        STUNet(1, 2, **arguments)


def test_stunet_cuts_strides_to_five_and_fills_up_with_ones() -> None:
    deep = stunet(strides=[[1, 1, 1], *[[2, 2, 2]] * 7])
    assert deep.size_multiple == (32, 32, 32)
    assert stunet().size_multiple == (4, 8, 8)
    assert shapes(deep) == shapes(stunet())


# --- where the adaptable weights are -----------------------------------------------------------------------------


@every_network
def test_declared_keys_exist(build: Build, size: tuple[int, ...]) -> None:
    for channels in (1, 4):
        network = build(channels)
        for key in (network.key_to_encoder, network.key_to_stem):
            assert list(network.get_submodule(key).parameters())
        for key in network.keys_to_in_proj:
            assert isinstance(network.get_submodule(key).weight, Tensor)
        if network.key_to_lpe is not None:
            assert network.get_parameter(network.key_to_lpe).ndim >= 3


@every_network
def test_the_head_holds_all_that_depends_on_the_classes(build: Build, size: tuple[int, ...]) -> None:
    few, many = shapes(build(1, 3)), shapes(build(1, 5))
    differing = {name for name in few if few[name] != many[name]}
    assert differing and few.keys() == many.keys()
    assert all(name.startswith(tuple(f"{key}." for key in build().key_to_head)) for name in differing)


@pytest.mark.parametrize("build", [stunet, unet3d])
def test_the_input_projections_hold_all_that_depends_on_the_channels(build: Build) -> None:
    one, four = shapes(build(1)), shapes(build(4))
    assert {name for name in one if one[name] != four[name]} == {f"{k}.weight" for k in build().keys_to_in_proj}


# --- any size ----------------------------------------------------------------------------------------------------


@every_network
def test_logits_have_the_size_of_the_input(build: Build, size: tuple[int, ...]) -> None:
    network = build(2, 5).eval()
    for edges in (size, size[::-1], (1,) * len(size)):
        with torch.no_grad():
            logits = network(torch.randn(2, 2, *edges))
        assert logits.shape == (2, 5, *edges)
        assert logits.isfinite().all()


def test_padding_does_not_move_the_image() -> None:
    network = stunet().eval()
    x = torch.randn(1, 1, 7, 14, 9)
    padded = F.pad(x, (0, 7, 0, 2, 0, 1), mode="replicate")
    with torch.no_grad():
        assert torch.equal(network(x), network(padded)[..., :7, :14, :9])


@pytest.mark.parametrize("edges", [(32, 32, 32), (20, 32, 9)])
def test_a_bottleneck_of_a_single_element_is_enlarged(edges: tuple[int, ...]) -> None:
    network = stunet(strides=[[1, 1, 1], *[[2, 2, 2]] * 5])
    assert network.legal_size(edges) == [32, 32, 64]
    assert network(torch.randn(1, 1, *edges)).isfinite().all()


@pytest.mark.parametrize("edges", [(16, 32, 32), (9, 22, 17), (13, 19, 31)])
@pytest.mark.parametrize("strides", [POOLING, [[1, 1, 1], *[[2, 2, 2]] * 3, [1, 2, 1]]])
def test_outputs_fit_the_targets_of_nnunet(edges: tuple[int, ...], strides: list[list[int]]) -> None:
    network = stunet(strides=strides, deep_supervision=True)
    outputs = network(torch.randn(1, 1, *edges))
    targets = DownsampleSegForDSTransform(network.deep_supervision_scales)(segmentation=torch.zeros(1, *edges))
    assert len(outputs) == 5
    assert [tuple(out.shape[2:]) for out in outputs] == [tuple(t.shape[1:]) for t in targets["segmentation"]]


def test_without_deep_supervision_there_is_only_the_finest_output() -> None:
    network = stunet(deep_supervision=True).eval()
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        outputs = network(x)
        network.decoder.deep_supervision = False  # as stock nnU-Net sets it
        assert torch.equal(network(x), outputs[0])
    network(x).sum().backward()
    assert [head.weight.grad is None for head in network.seg_outputs] == [True] * 4 + [False]


@pytest.mark.parametrize("build", [unet3d, unet2d, segmenter])
def test_networks_of_one_output_ignore_deep_supervision(build: Build) -> None:
    network = build(deep_supervision=True).train()
    assert network.deep_supervision_scales is None
    size = (16, 16, 16)[: len(network.size_multiple)]
    assert isinstance(network(torch.randn(2, 1, *size)), Tensor)


# --- slices of any size and channels -----------------------------------------------------------------------------


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(slices.to_square(x, 2), F.avg_pool2d(x, 2))
    assert torch.equal(slices.to_square(x, 8), F.interpolate(x, (8, 8), mode="bilinear", align_corners=False))
    assert slices.to_square(x, 4) is x


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (25, 50), (7, 90)])
@pytest.mark.parametrize("edge", [28, 112])
def test_a_slice_comes_back_in_its_place(size: tuple[int, int], edge: int) -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    x = torch.stack((rows, columns))[None]
    square = slices.to_square(x, edge)
    assert square.shape == (1, 2, edge, edge)
    back = slices.from_square(square, size)
    assert back.shape == x.shape
    inner = (..., slice(3, -3), slice(3, -3))  # borders of a resize are flat
    assert (back - x)[inner].abs().max() < 0.5 * max(size) / edge / min(size) + 1e-5


def test_the_aspect_ratio_is_kept() -> None:
    disc = (((torch.arange(64)[:, None] - 20) ** 2 + (torch.arange(32)[None] - 16) ** 2) < 100).float()[None, None]
    square = slices.to_square(disc, 128) > 0.5
    assert square.any(dim=2).sum() == pytest.approx(int(square.any(dim=3).sum()), abs=1)


def test_channels_become_three() -> None:
    one, four = torch.rand(2, 1, 5, 6), torch.rand(2, 4, 5, 6)
    assert torch.equal(slices.to_rgb(one, slices.channel_stem(1)), one.repeat(1, 3, 1, 1))
    rgb = torch.rand(2, 3, 5, 6)
    assert torch.equal(slices.to_rgb(rgb, slices.channel_stem(3)), rgb)
    mean = four.mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)
    torch.testing.assert_close(slices.to_rgb(four, slices.channel_stem(4)), mean)


def test_the_input_range_decides_who_standardises() -> None:
    x = torch.rand(2, 3, 40, 33)
    unit, standardised = segmenter(3).eval(), segmenter(3, input_range="standardised").eval()
    standardised.load_state_dict(unit.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(unit(x), standardised(slices.imagenet_normalise(x)), rtol=1e-3, atol=1e-4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(slices.imagenet_normalise(x)[0, :, 4, 7], (x[0, :, 4, 7] - mean) / std)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"input_range": "hounsfield"}, ("argument-value", "input_range")),
        ({"backbone": "dinov3_s"}, ("backbone-unknown", "dinov2_s")),
        ({"head": "quadratic"}, ("head-unknown",)),
        ({"image_size": 225}, ("image-edges", "14")),
    ],
)
def test_the_segmenter_refuses_unknown_parts(wrong: dict[str, Any], expected: tuple[str, ...]) -> None:
    arguments: dict[str, Any] = {"backbone": "dinov2_s", "image_size": 28, **wrong}
    with torch.device("meta"), fails(*expected):
        FoundationSegmenter2D(1, 2, **arguments)


# --- precision ---------------------------------------------------------------------------------------------------


@every_network
def test_logits_are_float32_under_bfloat16(
    build: Build, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    network = build().eval()
    seen: list[torch.dtype] = []
    convolution = next(m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    convolution.register_forward_hook(lambda _module, _args, out: seen.append(out.dtype))
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        low = network(x)
        monkeypatch.setenv("NNUNET_FM_BF16", "0")
        high = network(x)
    half = len(seen) // 2  # SwinMM runs its parts several times
    assert seen == [torch.bfloat16] * half + [torch.float32] * half
    assert low.dtype == high.dtype == torch.float32
    assert not torch.equal(low, high)
    assert (low - high).abs().mean() < 0.05 * high.std()


@every_network
def test_a_training_step_works_in_bfloat16(
    build: Build, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    network = build().train()
    outputs = network(torch.rand(2, 1, *size))
    torch.stack(
        [out.square().mean() for out in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    ).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


@pytest.mark.slow
def test_maps_of_two_slices_are_trained_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's bfloat16 gradient of such a convolution reads memory that nobody has written."""
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    network = small("swinmm", feature_size=12)
    seen: dict[int, set[torch.dtype]] = {}
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] == 3:
            module.register_forward_hook(lambda _m, args, out: seen.setdefault(args[0].shape[2], set()).add(out.dtype))
    for _ in range(3):
        used = [torch.full((n,), math.nan) for n in (64, 1024, 20000, 400000) for _ in range(4)]
        del used  # memory that will be handed out again, with what stands in it
        torch.stack([out.square().mean() for out in network.train()(torch.rand(1, 1, 64, 64, 64))]).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert seen.pop(2) == {torch.float32} and set.union(*seen.values()) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")
    seen.clear()
    with torch.no_grad():
        network.eval()(torch.rand(1, 1, 64, 64, 64))
    assert seen[2] == {torch.bfloat16}  # the forward pass is right


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "size"), [ALL["stunet"], ALL["segmenter"]], ids=["3d", "2d"])
def test_freeze_keeps_the_encoder_and_trains_the_rest(build: Build, size: tuple[int, ...]) -> None:
    network = build()
    apply_adapter("freeze", network)
    nn.Sequential(network).train()  # as a wrapper or a trainer would call it
    encoder = network.get_submodule(network.key_to_encoder)
    assert network.training and not any(module.training for module in encoder.modules())
    network(torch.rand(2, 1, *size)).square().mean().backward()
    inside = {id(parameter) for parameter in encoder.parameters()}
    assert len(inside) > 10
    for name, parameter in network.named_parameters():
        trained = id(parameter) not in inside
        assert parameter.requires_grad is trained
        assert trained or parameter.grad is None
        if trained and not name.startswith("seg_outputs"):
            assert parameter.grad is not None and name.split(".")[0] != network.key_to_encoder
    apply_adapter("full", network)
    network.train()
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in encoder.modules())


def test_autograd_records_nothing_of_a_frozen_backbone_unless_a_stem_is_trained() -> None:
    for channels, recorded in ((1, False), (4, True)):
        network = segmenter(channels)
        apply_adapter("freeze", network.train())
        maps: list[Tensor] = []
        network.backbone.vit.norm.register_forward_hook(lambda _m, _a, out, maps=maps: maps.append(out))
        network(torch.rand(2, channels, 28, 28)).square().mean().backward()
        assert len(maps) == 4 and [m.requires_grad for m in maps] == [recorded] * 4
        assert network.stem is None or network.stem.weight.grad.any()


def test_an_unknown_adapter_is_refused() -> None:
    with fails("adapter-unknown"):
        apply_adapter("thaw", unet3d())


# --- copies ------------------------------------------------------------------------------------------------------


@every_network
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"])
def test_copies_behave_alike(build: Build, size: tuple[int, ...], clone: Callable[[Any], Any]) -> None:
    network = build()
    if isinstance(network, (STUNet, FoundationSegmenter2D)):
        apply_adapter("freeze", network)
    twin = clone(network)
    twin.train()
    assert [m.training for m in twin.modules()] == [m.training for m in network.train().modules()]
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in network.parameters()]
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        assert torch.equal(twin.eval()(x), network.eval()(x))
