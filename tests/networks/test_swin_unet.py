"""Swin-Unet: official names and counts, windows and grids of any size, drop path, precision, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.swin_unet import PatchExpand, Stage, SwinUNet
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.small_networks import count, shapes


def small(channels: int = 1, classes: int = 3, **more: Any) -> SwinUNet:
    arguments: dict[str, Any] = {"embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4, "image_size": 64}
    torch.manual_seed(0)
    network = SwinUNet(channels, classes, **{**arguments, **more})
    with torch.no_grad():  # the first weights are so small that little of what happens inside would show
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return network


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = SwinUNet(3, 15)
    assert shapes(network) == manifest("swin_unet")["state_dict"]
    for name, buffer in network.named_buffers():
        assert buffer.dtype == (torch.float32 if name.endswith("attn_mask") else torch.int64)


@pytest.mark.parametrize(("classes", "published"), [(15, 27_169_476), (6, 27_168_612), (3, 27_168_324)])
def test_counts_are_the_published_ones(classes: int, published: int) -> None:
    card = get_card("swin_unet")
    with torch.device("meta"):
        network = SwinUNet(1, classes, **card.network.arguments)
    assert count(network) == published == card.parameters[classes]


def test_the_card_trains_from_scratch() -> None:
    card = get_card("swin_unet")
    assert not card.heads and not card.adapters and card.checkpoint is None
    assert card.variants["mission"].recipe.learning_rate == 5e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_size": 96},  # windows are padded
        {"image_size": 32, "window_size": 7},  # and larger than the grid
        {"depths": (1, 3), "num_heads": (2, 4), "image_size": 40, "window_size": 5},
        {"depths": (2, 2, 4, 1), "image_size": 128, "window_size": 3},
    ],
)
def test_other_widths_depths_windows_and_sizes(arguments: dict[str, Any]) -> None:
    network = small(2, 5, **arguments).eval()
    for size in ((64, 64), (45, 30), (1, 1)):
        with torch.no_grad():
            logits = network(torch.randn(2, 2, *size))
        assert logits.shape == (2, 5, *size) and logits.isfinite().all()
    depths = arguments.get("depths", (2, 2, 2, 2))
    assert [len(layer.blocks) for layer in network.layers] == list(depths)
    assert [len(layer.blocks) for layer in network.layers_up[1:]] == list(depths[-2::-1])


@pytest.mark.parametrize("image_size", [225, 16, 48])
def test_an_edge_that_does_not_halve_evenly_is_refused(image_size: int) -> None:
    with fails("image-edges", "32"):
        small(image_size=image_size)


def test_expansion_lays_tokens_out_as_a_square() -> None:
    expand = PatchExpand(12, 3, 2)
    nn.init.eye_(expand.expand.weight)
    x = torch.randn(2, 3, 4, 12)
    out = expand(x)
    assert out.shape == (2, 6, 8, 3)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part = x[..., 3 * (2 * row + column) :][..., :3]
        torch.testing.assert_close(out[:, row::2, column::2], F.layer_norm(part, (3,)))


def test_shifted_windows_join_neighbours_but_not_opposite_borders() -> None:
    torch.manual_seed(0)
    stage = Stage(8, 8, 2, 4, [0.0, 0.0]).eval().double()

    def reach(row: int, column: int) -> Tensor:
        """Tokens that a change of one token reaches."""
        x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
        changed = x.clone()
        changed[:, row, column] += torch.randn(8)
        with torch.no_grad():
            return (stage(changed) - stage(x)).abs().amax(dim=(0, 3)) > 0

    for corner, rows, columns in (
        ((0, 0), slice(0, 6), slice(0, 6)),
        ((3, 7), slice(0, 6), slice(2, 8)),
        ((7, 0), slice(2, 8), slice(0, 6)),
    ):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[rows, columns] = True
        assert torch.equal(reach(*corner), expected)


def test_blocks_are_skipped_more_often_the_deeper_they_are() -> None:
    network = small(depths=(2, 2, 6, 2), drop_path=0.22)

    def rates(layer: nn.Module) -> list[float]:
        found = [getattr(block.drop_path1, "drop_prob", 0.0) for block in layer.blocks]  # type: ignore[union-attr]
        return [round(rate, 6) for rate in found]

    encoder = [rates(layer) for layer in network.layers]
    assert [rate for stage in encoder for rate in stage] == pytest.approx([0.02 * i for i in range(12)])
    assert [rates(layer) for layer in network.layers_up[1:]] == encoder[-2::-1]
    assert not any(isinstance(m, DropPath) for m in small(drop_path=0.0).modules())


def test_a_step_reaches_every_parameter() -> None:
    network = small(4, 5, drop_path=0.0).train()
    logits = network(torch.rand(2, 4, 70, 50))
    assert isinstance(logits, Tensor)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    undecayed = network.no_weight_decay()
    assert len(undecayed) == 14 and all(network.get_parameter(name).shape[0] in (49, 9) for name in undecayed)


def test_a_step_at_full_size_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = SwinUNet(1, 3)
        logits = network(torch.empty(2, 1, 256, 256))
        assert isinstance(logits, Tensor) and logits.shape == (2, 3, 256, 256)
        logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_declared_keys_exist_and_hold_what_depends_on_channels_and_classes() -> None:
    for channels in (1, 4):
        network = small(channels)
        assert list(network.get_submodule(network.key_to_encoder).parameters())
        assert list(network.get_submodule(network.key_to_stem).parameters())
        for key in network.keys_to_in_proj:
            assert isinstance(network.get_submodule(key).weight, Tensor)
    few, many = shapes(small(1, 3)), shapes(small(1, 5))
    assert {name for name in few if few[name] != many[name]} == {"output.weight"}


def test_one_channel_is_repeated() -> None:
    network = small(1).eval()
    three = small(3).eval()
    three.load_state_dict(network.state_dict())
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(x), three(x.repeat(1, 3, 1, 1)))


def test_copies_and_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small(drop_path=0.0).eval()
    x = torch.rand(2, 1, 40, 30)
    monkeypatch.setenv("NNUNET_FM_BF16", "0")
    with torch.no_grad():
        high = network(x)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), high)
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    low = network.train()(x)
    assert isinstance(low, Tensor)
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    assert (low - high).abs().mean() < 0.05 * high.std()
    low.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
