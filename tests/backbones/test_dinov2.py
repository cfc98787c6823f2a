"""DINOv2: every official tensor accounted for, positions resampled by the official rule, maps in the promised order."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.backbones import BACKBONES, create_backbone
from nnunet_fm.backbones.dinov2 import DINOv2
from nnunet_fm.backbones.vit import resample_positions
from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps
from tests.helpers.errors import fails

MANIFESTS = Path(__file__).parents[1] / "manifests"
SIZES = {"s": "vits14", "b": "vitb14", "l": "vitl14", "g": "vitg14"}


def official(name: str) -> dict[str, Tensor]:
    """The official state dict of a backbone, on the meta device. The register variants differ by one tensor."""
    _, size, *registers = name.split("_")
    shapes = json.loads((MANIFESTS / f"dinov2_{SIZES[size]}.json").read_text())["state_dict"]
    if registers:
        shapes["register_tokens"] = [1, 4, shapes["cls_token"][-1]]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def small(name: str = "dinov2_s", image_size: int | tuple[int, int] = 28) -> DINOv2:
    backbone = create_backbone(name, image_size)
    assert isinstance(backbone, DINOv2)
    return backbone.eval()


@pytest.mark.parametrize("image_size", [224, (280, 154), 518])
@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("dinov2")])
def test_every_official_tensor_has_its_place(name: str, image_size: int | tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, image_size)
    theirs = official(name)
    converted = backbone.from_official(theirs)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in backbone.state_dict().items()}
    assert len(converted) == len(theirs) - 1  # all but the mask token, which has no role outside pre-training
    assert sum(p.numel() for p in backbone.parameters()) == sum(v.numel() for v in converted.values())


def test_the_register_manifest_is_the_plain_one_with_register_tokens() -> None:
    listed = json.loads((MANIFESTS / "dinov2_vits14_reg.json").read_text())["state_dict"]
    assert {k: list(v.shape) for k, v in official("dinov2_s_reg").items()} == listed


def test_a_foreign_tensor_is_not_swallowed() -> None:
    with torch.device("meta"):
        backbone = create_backbone("dinov2_s", 224)
    theirs = {**official("dinov2_s"), "decoder.weight": torch.empty(3, device="meta")}
    with pytest.raises(RuntimeError, match="decoder.weight"):
        backbone.load_state_dict(backbone.from_official(theirs), assign=True)


def cubic_matrix(size: int, edge: int, factor: float) -> np.ndarray:
    """Cubic convolution (a = -0.75, border repeated) from `edge` to `size` samples spaced by 1 / factor."""

    def kernel(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    matrix = np.zeros((size, edge))
    for row in range(size):
        centre = (row + 0.5) / factor - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, min(max(tap, 0), edge - 1)] += kernel(centre - tap)
    return matrix


@pytest.mark.parametrize("grid", [(16, 16), (16, 20), (9, 40), (37, 16), (60, 50)])
def test_positions_follow_the_official_factor_in_each_direction(grid: tuple[int, int]) -> None:
    edge = 37
    patches = torch.randn(1, edge * edge, 3, generator=torch.Generator().manual_seed(0))
    ours = resample_positions(patches, grid, antialias=False, offset=0.1)
    rows, columns = (cubic_matrix(g, edge, (g + 0.1) / edge) for g in grid)
    expected = np.einsum("yr,xc,rcd->yxd", rows, columns, patches.view(edge, edge, 3).double().numpy())
    np.testing.assert_allclose(ours.view(*grid, 3), expected, atol=2e-5)


@pytest.mark.parametrize("grid", [(16, 16), (16, 20), (40, 9)])
def test_positions_of_register_variants_are_filtered_and_exact_in_size(grid: tuple[int, int]) -> None:
    edge = 37
    noise = torch.randn(1, edge * edge, 64, generator=torch.Generator().manual_seed(0))
    plain = resample_positions(noise, grid, antialias=False, offset=0.0)
    filtered = resample_positions(noise, grid, antialias=True, offset=0.0)
    assert filtered.std() < 0.8 * plain.std()  # white noise loses what lies above the new grid's resolution
    rows = torch.linspace(0, 1, edge).repeat_interleave(edge).view(1, -1, 1)
    ramp = resample_positions(rows, grid, antialias=True, offset=0.0).view(grid)
    torch.testing.assert_close(ramp, ramp[:, :1].expand(grid), rtol=0, atol=1e-5)
    assert (ramp[1:] > ramp[:-1]).all() and ramp[0, 0] < 0.05 and ramp[-1, 0] > 0.95


def test_positions_of_the_native_grid_are_untouched() -> None:
    patches = torch.randn(1, 25, 4)
    assert resample_positions(patches, (5, 5), antialias=False, offset=0.1) is patches


def test_the_class_position_goes_where_timm_wants_it() -> None:
    shapes = {k: v.shape for k, v in official("dinov2_s_reg").items()}
    theirs = {k: torch.randn(shape) for k, shape in shapes.items()}
    with torch.device("meta"):
        plain, registers = create_backbone("dinov2_s", (28, 42)), create_backbone("dinov2_s_reg", (28, 42))
    ours = registers.from_official(theirs)
    assert torch.equal(ours["vit.cls_token"], theirs["cls_token"] + theirs["pos_embed"][:, :1])
    assert ours["vit.pos_embed"].shape == (1, 6, 384)
    ours = plain.from_official(theirs)
    assert torch.equal(ours["vit.cls_token"], theirs["cls_token"])
    assert torch.equal(ours["vit.pos_embed"][:, :1], theirs["pos_embed"][:, :1])


@pytest.mark.parametrize("name", ["dinov2_s", "dinov2_s_reg"])
def test_maps_come_in_the_order_asked_for_and_without_extra_tokens(name: str) -> None:
    backbone = small(name, (28, 56))
    x = torch.randn(2, 3, 28, 56)
    tokens: list[Tensor] = []
    for block in backbone.vit.blocks:
        block.register_forward_hook(lambda _m, _a, out: tokens.append(out))
    with torch.no_grad():
        blocks = backbone.default_blocks[:3]
        assert blocks == (11, 10, 9)
        normed = backbone.features(x, blocks)
        raw = backbone.features(x, (2, 11), norm="none")
    extra = 5 if name.endswith("_reg") else 1
    assert tokens[0].shape[1] == extra + 8
    for found, block in zip([*normed, *raw], [*blocks, 2, 11], strict=True):
        expected = tokens[block][:, extra:]
        if found is not raw[0] and found is not raw[1]:
            expected = F.layer_norm(expected, (384,), backbone.vit.norm.weight, backbone.vit.norm.bias, 1e-6)
        torch.testing.assert_close(found, expected.transpose(1, 2).reshape(2, 384, 2, 4))


def test_blocks_after_the_last_one_asked_for_are_not_computed() -> None:
    backbone = small()
    ran: list[int] = []
    for index, block in enumerate(backbone.vit.blocks):
        block.register_forward_hook(lambda _m, _a, _o, index=index: ran.append(index))
    with torch.no_grad():
        backbone.features(torch.randn(1, 3, 28, 28), (3, 1))
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("image_size", [225, (224, 100), 0, 7])
def test_other_sizes_are_refused(image_size: int | tuple[int, int]) -> None:
    with fails("image-edges", "14"):
        create_backbone("dinov2_s", image_size)


def test_an_unknown_name_is_refused() -> None:
    with fails("backbone-unknown", "dinov2_s_reg"):
        create_backbone("dinov2_xl", 224)


def test_building_does_not_touch_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert small().depth == 12


def test_the_linear_head_has_the_published_count() -> None:
    head = create_head("linear", FeatureMaps(768, (16, 16)), 15)
    assert sum(p.numel() for p in head.parameters()) == 52239
    maps = [torch.randn(2, 768, 3, 4) for _ in range(head.maps)]
    (logits,) = head(maps)
    assert logits.shape == (2, 15, 3, 4) and head.loss_weights == (1.0,)


def test_the_linear_head_drops_whole_channels_in_training_only() -> None:
    head = create_head("linear", FeatureMaps(8, (4, 4)), 2, maps=2, dropout=0.5)
    seen: list[Tensor] = []
    head.conv_seg.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    maps = [torch.randn(4, 8, 4, 4) for _ in range(2)]
    with torch.no_grad():
        head.train()(maps)
        head.eval()(maps)
    dropped = (seen[0] == 0).flatten(2)
    assert torch.equal(dropped.any(dim=2), dropped.all(dim=2)) and dropped.any()
    assert not (seen[1] == 0).any()


def test_an_unknown_head_is_refused() -> None:
    with fails("head-unknown"):
        create_head("quadratic", FeatureMaps(8, (4, 4)), 2)
