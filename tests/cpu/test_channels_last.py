"""Layers and networks that compute channels-last: PyTorch's values and gradients, and the order is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nnunet_fm.cpu.channels_last import (
    Conv3d,
    ConvTranspose3d,
    InstanceNorm3d,
    channels_last,
    is_channels_last,
    use_fast_layers,
)
from nnunet_fm.cpu.prepacked_weights import prepack_weights
from nnunet_fm.models.build import build_network
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.stunet import STUNet
from nnunet_fm.networks.unet import VanillaUNet3D
from tests.helpers.small_networks import CLASSES, SIZE, small

SHAPE = (2, 6, 4, 5, 7)


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("NNUNET_FM_BF16", "0")
    monkeypatch.setenv("NNUNET_FM_CHANNELS_LAST", "1")


def gradients(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output of a module, and gradients of its input and its parameters."""
    x = x.detach().requires_grad_()
    out = module(x)
    out.backward(grad)
    assert x.grad is not None
    found = [out.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    for p in module.parameters():
        p.grad = None
    return found


@pytest.mark.parametrize("channels", [1, 6])
def test_order(channels: int) -> None:
    x = torch.randn(2, channels, 3, 4, 5)
    assert not is_channels_last(x)
    assert is_channels_last(channels_last(x))
    assert torch.equal(channels_last(x), x)
    assert nn.functional.conv3d(channels_last(x), torch.randn(4, channels, 3, 3, 3)).stride(1) == 1


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_norm_is_pytorchs(affine: bool, batch: int) -> None:
    plain, fast = (kind(6, affine=affine) for kind in (nn.InstanceNorm3d, InstanceNorm3d))
    if affine:
        for norm in (plain, fast):
            norm.weight.data, norm.bias.data = torch.linspace(-1, 2, 6), torch.linspace(0, 1, 6)
    x, grad = 3 + 2 * torch.randn(batch, *SHAPE[1:]), torch.randn(batch, *SHAPE[1:])
    ours = gradients(fast, channels_last(x), grad)
    assert all(is_channels_last(t) for t in ours[:2])
    torch.testing.assert_close(ours, gradients(plain, x, grad), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(fast, x, grad), gradients(plain, x, grad), rtol=0, atol=0)


def test_norm_can_be_derived_twice() -> None:
    norm = InstanceNorm3d(3, affine=True).double()
    x = channels_last(torch.randn(2, 3, 2, 3, 2, dtype=torch.float64)).requires_grad_()
    assert is_channels_last(x)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


@pytest.mark.parametrize("affine", [True, False])
def test_norm_in_bfloat16_counts_in_float32(affine: bool) -> None:
    x = channels_last((100 + torch.randn(SHAPE)).bfloat16())
    exact = nn.functional.instance_norm(x.double())
    out = InstanceNorm3d(6, affine=affine)(x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 0.02


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_norm_of_many_voxels_is_exact(kind: torch.dtype) -> None:
    x = channels_last((3 + torch.randn(1, 16, 32, 96, 96)).to(kind))
    exact = nn.functional.instance_norm(x.double())
    assert ((InstanceNorm3d(16, affine=True)(x) - exact).abs() / (1 + exact.abs())).max() < torch.finfo(kind).eps * 16


def test_norm_refuses_a_single_voxel_as_pytorchs() -> None:
    with pytest.raises(ValueError, match="spatial element"):
        InstanceNorm3d(6)(torch.randn(2, 6, 1, 1, 1))


@pytest.mark.parametrize("bias", [True, False])
def test_convolution_of_one_voxel(bias: bool) -> None:
    plain, fast = (kind(6, 4, 1, bias=bias) for kind in (nn.Conv3d, Conv3d))
    fast.load_state_dict(plain.state_dict())
    x, grad = torch.randn(SHAPE), torch.randn(2, 4, *SHAPE[2:])
    ours = gradients(fast, channels_last(x), grad)
    assert all(is_channels_last(t) for t in ours[:2])
    torch.testing.assert_close(ours, gradients(plain, x, grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "fast_kind", "kernel", "stride"), [(nn.Conv3d, Conv3d, 3, 1), (nn.ConvTranspose3d, ConvTranspose3d, 2, 2)]
)
def test_the_order_is_kept(kind: type, fast_kind: type, kernel: int, stride: int, batch: int) -> None:
    """PyTorch has code for few voxels that does not keep it."""
    plain, fast = (kind(6, 4, kernel, stride) for kind in (kind, fast_kind))
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(batch, *SHAPE[1:])
    grad = torch.randn_like(plain(x))
    ours = gradients(fast, channels_last(x), grad)
    assert is_channels_last(ours[0])
    torch.testing.assert_close(ours, gradients(plain, x, grad), rtol=1e-4, atol=1e-5)
    assert fast(x).is_contiguous()


def stunet() -> STUNet:
    strides = [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]]
    return STUNet(1, 3, dims=[4, 8, 8, 8, 8, 8], depth=[1] * 6, strides=strides, deep_supervision=True)


def vanilla() -> VanillaUNet3D:
    return VanillaUNet3D(2, 3, channels=[4, 8, 8], num_res_units=2)


def suprem() -> FoundationNetwork:
    return small("suprem")


def misfm() -> FoundationNetwork:
    return small("misfm", dropout=[0.0] * 5)


@pytest.mark.parametrize(
    "build", [stunet, vanilla, *(pytest.param(b, marks=pytest.mark.slow) for b in (suprem, misfm))]
)
def test_networks_equal_plain_ones(build: Callable[[], FoundationNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded input, two images, the network used twice in one graph; then in eval.

    Transformers in float64: their many norms of few voxels make the most of float32's rounding.
    """
    transformer = build in (suprem, misfm)
    network = build().to(torch.float64 if transformer else torch.float32)
    names = list(network.state_dict())
    network.compute_channels_last()
    assert list(network.state_dict()) == names
    for module in network.modules():
        if "Drop" in type(module).__name__:
            module.p = module.drop_prob = 0.0  # numbers are drawn in the order of memory
    x = torch.randn(2, 2 if build is vanilla else 1, 15, 17, 16, dtype=next(network.parameters()).dtype)
    found = {}
    start = copy.deepcopy(network.state_dict())  # batch norms count what they see
    for switch in "01":
        network.load_state_dict(start)
        monkeypatch.setenv("NNUNET_FM_CHANNELS_LAST", switch)
        outputs = [network(x), network(2 * x)]
        flat = [out for out in outputs for out in (out if isinstance(out, list) else [out])]
        sum((out**2).mean() for out in flat).backward()
        # The shift before a norm has no gradient but rounding.
        shifts = ("conv1.bias", "conv2.bias", "conv.bias")
        named = [(name, p.grad) for name, p in network.named_parameters() if not name.endswith(shifts)]
        found[switch] = [*(out.detach() for out in flat), *(grad for _, grad in named if grad is not None)]
        network.zero_grad()
        network.eval()
        with torch.inference_mode():
            out = network(x)
        found[switch].append(out[0] if isinstance(out, list) else out)
        network.train()
    assert all(out.is_contiguous() for out in flat)
    for ours, plain in zip(found["1"], found["0"], strict=True):
        assert (ours - plain).abs().max() < (1e-6 if transformer else 1e-4) * plain.abs().max() + 1e-12


def test_layers_only_take_the_place_of_pytorchs_own() -> None:
    class Special(nn.Conv3d):
        pass

    network = nn.Sequential(Special(1, 1, 1), nn.Conv3d(1, 1, 1), nn.InstanceNorm3d(1), nn.Conv2d(1, 1, 1))
    use_fast_layers(network)
    assert [type(layer) for layer in network] == [Special, Conv3d, InstanceNorm3d, nn.Conv2d]


@pytest.mark.parametrize("bf16", ["0", "1"])
def test_weights_laid_out_for_prediction_change_nothing(bf16: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", bf16)
    network, other = stunet().eval(), stunet()
    network.compute_channels_last()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = network(x)
    prepack_weights(network)
    assert network.seg_outputs[0].weight.dtype == (torch.bfloat16 if bf16 == "1" else torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
    network.load_state_dict(other.state_dict())  # as the predictor does for every fold
    other.eval().compute_channels_last()
    with torch.inference_mode():
        torch.testing.assert_close(network(x), other(x), rtol=0, atol=0)


def predicts_the_same(network: FoundationNetwork, *size: int) -> None:
    """Laid-out weights, in bfloat16, give the results of autocast, to the last bit."""
    x = torch.randn(1, 1, *size)
    with torch.inference_mode():
        expected = network.eval()(x)
        prepack_weights(network)
        for ours, plain in zip(*((o if isinstance(o, list) else [o]) for o in (network(x), expected)), strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize("family", CLASSES)
def test_laid_out_volumes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    predicts_the_same(small(family), *SIZE)


DINO = get_card("dinov2_s")
SLICES = [("dinov2_s", head, "freeze") for head in DINO.heads]
SLICES += [("dinov2_s", "linear", adapter) for adapter in DINO.adapters if adapter != "freeze"]
SLICES += [(backbone, "linear", "freeze") for backbone in ("sam_b", "mae_b", "resnet18")]


@pytest.mark.parametrize(("backbone", "head", "adapter"), SLICES)
def test_laid_out_slices(backbone: str, head: str, adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    edge = 56 if backbone == "dinov2_s" else 64
    arguments = {"backbone": backbone, "head": head, "image_size": edge}
    entry = {"network_class_name": "nnunet_fm.networks.segmenter2d.FoundationSegmenter2D", "arch_kwargs": arguments}
    predicts_the_same(build_network(entry, 1, 3, adapter=adapter), edge, edge)


@pytest.mark.parametrize("family", CLASSES)
def test_networks_that_gain_are_built_so(family: str) -> None:
    network_class, arguments = CLASSES[family]
    entry = {"network_class_name": f"{network_class.__module__}.{network_class.__name__}", "arch_kwargs": arguments}
    network = build_network(
        {**entry, "arch_kwargs": {k: v for k, v in arguments.items() if k != "deep_supervision"}}, 1, 2
    )
    assert any(isinstance(layer, Conv3d) for layer in network.modules()) == (family != "spadnet")
