"""Products of float32 matrices by oneDNN: PyTorch's results and gradients, and only where it is faster."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.cpu import cpu_features as processor
from nnunet_fm.cpu import onednn_linear as products
from nnunet_fm.cpu.onednn_linear import fast_products
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D

CPU = torch.device("cpu")
ROWS, CHANNELS, COLUMNS = 50, 240, 200

pytestmark = pytest.mark.skipif(not processor.has_onednn(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes ``(M, K, N)`` of the products that oneDNN computed, on any processor."""
    monkeypatch.setenv("NNUNET_FM_ONEDNN", "1")
    monkeypatch.setenv("NNUNET_FM_BF16", "0")
    shapes: list[tuple[int, ...]] = []
    usual = products._product

    def counted(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append((*a.shape, len(b)))
        return usual(a, b, bias)

    monkeypatch.setattr(products, "_product", counted)
    return shapes


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(requires_grad)


def assert_near(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    """Equal but for rounding, relative to the largest element."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max()


# --- results and gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trained", [("x", "weight", "bias"), ("x", "weight"), ("weight", "bias"), ("x",), ("weight",), ("bias",)]
)
@pytest.mark.parametrize("shape", [(ROWS, CHANNELS), (2, ROWS // 2, CHANNELS), (5, 2, 5, CHANNELS)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_and_its_gradients(
    shape: tuple[int, ...], with_bias: bool, trained: tuple[str, ...], calls: list[tuple[int, ...]]
) -> None:
    x = random(*shape)
    layer = nn.Linear(CHANNELS, COLUMNS, bias=with_bias or "bias" in trained)
    tensors = {"x": x, **dict(layer.named_parameters())}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in trained)
    wanted = [tensors[name] for name in trained]

    def run() -> list[Tensor]:
        out = layer(x)
        assert out.is_contiguous()
        gradients = torch.autograd.grad((out * out.detach().roll(1)).sum(), wanted)
        return [out, *gradients]

    expected = run()
    assert not calls
    with fast_products(CPU):
        found = run()
    assert calls[0] == (ROWS, CHANNELS, COLUMNS)
    assert len(calls) == 1 + ("x" in trained) + ("weight" in trained)
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs)


def test_gradients_are_those_of_differences() -> None:
    x, weight = random(32, 256), random(257, 256, seed=1, requires_grad=True)
    direction = random(257, 256, seed=2)

    def loss(matrix: Tensor) -> Tensor:
        return products.linear(x, matrix).square().mean()

    (gradient,) = torch.autograd.grad(loss(weight), weight)
    with torch.no_grad():
        step = 1e-2
        slope = (loss(weight + step * direction) - loss(weight - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "call", [torch.matmul, Tensor.matmul, lambda x, m: x @ m], ids=["torch.matmul", "Tensor.matmul", "@"]
)
def test_products_with_a_matrix(call: Callable[[Tensor, Tensor], Tensor], calls: list[tuple[int, ...]]) -> None:
    x, matrix = random(2, ROWS, CHANNELS, requires_grad=True), random(CHANNELS, COLUMNS, seed=1, requires_grad=True)

    def run() -> list[Tensor]:
        out = call(x, matrix)
        return [out, *torch.autograd.grad(out.square().sum(), (x, matrix))]

    expected = run()
    with fast_products(CPU):
        found = run()
    assert len(calls) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs)


def test_a_weight_that_is_used_twice() -> None:
    x, layer = random(ROWS, CHANNELS, requires_grad=True), nn.Linear(CHANNELS, CHANNELS)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(layer(x) + x.flip(0)).square().sum(), (x, layer.weight, layer.bias))

    expected = run()
    with fast_products(CPU):
        found = run()
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs)


def test_gradients_of_gradients() -> None:
    x, layer = random(ROWS, CHANNELS, requires_grad=True), nn.Linear(CHANNELS, COLUMNS)

    def run() -> tuple[Tensor, ...]:
        (gradient,) = torch.autograd.grad(layer(x).pow(3).mean(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (x, layer.weight, layer.bias))

    expected = run()
    with fast_products(CPU):
        found = run()
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, 1e-4)


def test_equal_runs_give_equal_bits() -> None:
    x, layer = random(ROWS, CHANNELS, requires_grad=True), nn.Linear(CHANNELS, COLUMNS)
    results = []
    for _ in range(3):
        with fast_products(CPU):
            out = layer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_gaps_between_rows_cost_little() -> None:
    """A part of each row of a matrix, such as the values among queries, keys and values."""

    def seconds(weight: Tensor) -> float:
        times = []
        for _ in range(5):
            start = time.thread_time()
            products._product(x, weight)
            times.append(time.thread_time() - start)
        return min(times)

    x, wide = torch.randn(256, 256), torch.randn(256, 1024)
    dense, gaps = seconds(wide[:, :256].contiguous()), seconds(wide[:, :256])
    assert gaps < 20 * dense, "170 times as much where oneDNN is given the gaps"


def test_transposed_and_strided_operands() -> None:
    x, weight = random(CHANNELS, 2 * ROWS).t()[::2], random(CHANNELS, COLUMNS).t()
    with fast_products(CPU):
        assert_near(F.linear(x, weight), (x.double() @ weight.double().t()).float())


# --- where it is taken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (random(4, 8), random(8, 8)),
        (random(8, 1024), random(1024, 1024)),
        (random(1024), random(4096, 1024)),
        (random(ROWS, CHANNELS).double(), random(COLUMNS, CHANNELS).double()),
        (random(ROWS, CHANNELS).bfloat16(), random(COLUMNS, CHANNELS).bfloat16()),
        (random(0, CHANNELS), random(COLUMNS, CHANNELS)),
        (random(ROWS, CHANNELS).to("meta"), random(COLUMNS, CHANNELS).to("meta")),
    ],
    ids=["small", "thin", "vector", "float64", "bfloat16", "empty", "meta"],
)
def test_other_products_are_pytorchs(x: Tensor, weight: Tensor, calls: list[tuple[int, ...]]) -> None:
    with fast_products(CPU):
        found = F.linear(x, weight)
    assert not calls
    expected = F.linear(x, weight)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.is_meta or torch.equal(found, expected)


def test_wrong_shapes_are_refused_as_ever() -> None:
    with fast_products(CPU), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        F.linear(random(ROWS, CHANNELS), random(COLUMNS, CHANNELS + 1))


def test_autocast_is_untouched(calls: list[tuple[int, ...]]) -> None:
    x, layer = random(ROWS, CHANNELS), nn.Linear(CHANNELS, COLUMNS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer(x)
        with fast_products(CPU):
            found = layer(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected) and not calls


def test_a_tensor_with_functions_of_its_own_keeps_them(calls: list[tuple[int, ...]]) -> None:
    class Own(Tensor):
        pass

    x, weight = random(ROWS, CHANNELS).as_subclass(Own), random(COLUMNS, CHANNELS)
    with fast_products(CPU):
        assert isinstance(F.linear(x, weight), Own) and not calls


@pytest.mark.parametrize("reason", ["switch", "processor", "PyTorch", "device"])
def test_nothing_is_entered_without_a_gain(
    reason: str, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, ...]]
) -> None:
    if reason == "switch":
        monkeypatch.setenv("NNUNET_FM_ONEDNN", "0")
    elif reason == "processor":
        monkeypatch.delenv("NNUNET_FM_ONEDNN")
        monkeypatch.setattr(processor, "gains_from_onednn", lambda: False)
    layer, x = nn.Linear(CHANNELS, COLUMNS), random(ROWS, CHANNELS)
    with (
        torch.backends.mkldnn.flags(enabled=reason != "PyTorch"),
        fast_products(torch.device("meta" if reason == "device" else "cpu")),
    ):
        layer(x)
    assert not calls


def test_a_compiled_network_has_none_of_it(calls: list[tuple[int, ...]]) -> None:
    class Inside(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            with fast_products(CPU):
                return F.linear(x, weight).relu()

    x, weight = random(ROWS, CHANNELS), random(COLUMNS, CHANNELS)
    compiled: Any = torch.compile(Inside(), backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        traced: Any = torch.jit.trace(Inside(), (x, weight), check_trace=False)
    expected = F.linear(x, weight).relu()
    assert torch.equal(compiled(x, weight), expected) and torch.equal(traced(x, weight), expected) and not calls


# --- networks ----------------------------------------------------------------------------------------------------


def network(adapter: str | None = None) -> FoundationSegmenter2D:
    """Blocks of 128 channels on 64 tokens, whose perceptrons are large enough."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 128, "depth": 4, "num_heads": 2, "global_blocks": (1, 3), "window": 4}
    net = FoundationSegmenter2D(1, 3, backbone="sam_b", head="linear", image_size=128, backbone_arguments=arguments)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    if adapter is not None:
        apply_adapter(adapter, net)
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    return net


def step(net: nn.Module, call: Callable[[Tensor], Any] | None = None) -> dict[str, Tensor]:
    """Logits and gradients of all parameters; without dropout."""
    net.eval().zero_grad()
    out = (call or net)(random(1, 1, 128, 128))
    out.square().mean().backward()
    return {"logits": out.detach()} | {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", [None, "lora", "rein", "freeze"])
def test_networks_train_the_same(
    adapter: str | None, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, ...]]
) -> None:
    net = network(adapter)
    names = list(net.state_dict())
    found = step(net)
    assert len(calls) >= 4
    number = len(calls)
    monkeypatch.setenv("NNUNET_FM_ONEDNN", "0")
    expected = step(net)
    assert len(calls) == number and list(net.state_dict()) == names
    assert found.keys() == expected.keys()
    for name in expected:
        assert_near(found[name], expected[name], 1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "network"])
def test_checkpointed_parts_are_computed_again(whole: bool, reentrant: bool, calls: list[tuple[int, ...]]) -> None:
    """A block is computed again outside of the mode."""
    net = network()
    expected = step(net)
    before = len(calls)
    if whole:
        found = step(net, lambda x: checkpoint(net, x.requires_grad_(), use_reentrant=reentrant))
    else:
        for block in net.backbone.blocks:
            block.forward = lambda x, usual=block.forward: checkpoint(usual, x, use_reentrant=reentrant)
        found = step(net)
    assert len(calls) > before
    for name in expected:
        assert_near(found[name], expected[name], 1e-4)


def test_a_network_can_be_copied_and_called_inside_another() -> None:
    net = network().eval()
    x = random(1, 1, 128, 128)
    with torch.inference_mode():
        alone = net(x)
        with fast_products(CPU):
            inside = copy.deepcopy(net)(x)
    assert torch.equal(alone, inside)
