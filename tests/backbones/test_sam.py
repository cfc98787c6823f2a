"""SAM's encoder: every official tensor accounted for, positions, windows and relative positions as officially."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.backbones import create_backbone
from nnunet_fm.backbones import sam as module
from nnunet_fm.backbones.sam import SAM, resize_positions, resize_table
from nnunet_fm.heads.sam_base import sam_neck
from nnunet_fm.models.official import find_official
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D
from nnunet_fm.weights.load import FileRules, load_checkpoint
from tests.helpers.errors import fails
from tests.helpers.official_weights import load_official

MANIFESTS = Path(__file__).parents[1] / "manifests"
NAMES = {"sam_b": "sam_vit_b", "sam_l": "sam_vit_l", "sam_h": "sam_vit_h", "medsam_b": "medsam_vit_b"}
WITH_NECK = {"sam_b": 89_670_912, "sam_l": 308_278_272, "sam_h": 637_026_048, "medsam_b": 89_670_912}
GLOBAL_BLOCKS = {"sam_b": (2, 5, 8, 11), "sam_l": (5, 11, 17, 23), "sam_h": (7, 15, 23, 31), "medsam_b": (2, 5, 8, 11)}
TINY: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "global_blocks": (1, 3), "window": 4}


def manifest(name: str) -> dict[str, Tensor]:
    """The official state dict of a whole model, on the meta device."""
    shapes = json.loads((MANIFESTS / f"{NAMES[name]}.json").read_text())["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def encoder_part(official: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in official.items() if key.startswith("image_encoder.")}


def tiny(grid: tuple[int, int], **changes: Any) -> SAM:
    """A small encoder with noise in all its parameters."""
    torch.manual_seed(0)
    backbone = SAM(**{**TINY, **changes}, image_size=(16 * grid[0], 16 * grid[1]))
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def official_tiny(native: tuple[int, int]) -> ImageEncoderViT:
    """The official module of the same size, for a native grid, with noise in all its parameters."""
    torch.manual_seed(1)
    encoder = ImageEncoderViT(
        img_size=16 * max(native), patch_size=16, embed_dim=32, depth=4, num_heads=2, out_chans=256, use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), global_attn_indexes=(1, 3), window_size=4,
    )  # fmt: skip
    encoder.pos_embed = nn.Parameter(torch.zeros(1, *native, 32))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def official_file(native: tuple[int, int] = (8, 8)) -> dict[str, Tensor]:
    """A small official state dict of a whole model."""
    encoder = {f"image_encoder.{key}": tensor for key, tensor in official_tiny(native).state_dict().items()}
    others = {"prompt_encoder.no_mask_embed.weight": torch.ones(1, 256), "mask_decoder.iou_token.weight": torch.ones(1)}
    return {**encoder, **others}


# --- official weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [224, (256, 192), 1024])
@pytest.mark.parametrize("name", NAMES)
def test_every_official_tensor_has_its_place(name: str, image_size: int | tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, image_size)
    theirs = encoder_part(manifest(name))
    without_neck = backbone.from_official(theirs)
    assert {k: v.shape for k, v in without_neck.items()} == {k: v.shape for k, v in backbone.state_dict().items()}
    assert len(without_neck) == len(theirs) - 6
    with torch.device("meta"):
        backbone.neck = sam_neck(backbone.embed_dim)
    converted = backbone.from_official(theirs)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in backbone.state_dict().items()}
    assert len(converted) == len(theirs)
    resized = {k for k, v in converted.items() if all(v is not other for other in theirs.values())}
    if image_size == 1024:
        assert not resized
        assert sum(v.numel() for v in converted.values()) == WITH_NECK[name]
        tables = {k: len(v) for k, v in converted.items() if k.endswith("rel_pos_h")}
        assert tables == {k: 127 if int(k.split(".")[1]) in GLOBAL_BLOCKS[name] else 27 for k in tables}
    else:
        tables = {f"blocks.{i}.attn.rel_pos_{axis}" for i in GLOBAL_BLOCKS[name] for axis in "hw"}
        assert resized == {"pos_embed", *tables}


def test_a_file_of_the_encoder_alone_is_taken_with_and_without_its_prefix() -> None:
    theirs, backbone = encoder_part(official_file()), tiny((5, 6))
    bare = {key.removeprefix("image_encoder."): tensor for key, tensor in theirs.items()}
    prefixed, plain = backbone.from_official(theirs), backbone.from_official(bare)
    assert prefixed.keys() == plain.keys() and all(torch.equal(prefixed[key], plain[key]) for key in plain)


def test_a_foreign_tensor_is_not_swallowed() -> None:
    backbone = tiny((4, 4))
    with pytest.raises(RuntimeError, match=r"mask_decoder\.iou_token"):
        backbone.load_state_dict(backbone.from_official(official_file()))


@pytest.mark.parametrize("neck", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_files_load_with_an_account_of_every_tensor(tmp_path: Path, neck: bool, wrapped: bool) -> None:
    """As published, and as the official program for fine-tuning writes it after training on several devices."""
    official = official_file()
    content: dict[str, Any] = official
    if wrapped:
        content = {"model": {f"module.{key}": tensor for key, tensor in official.items()}, "epoch": torch.tensor(3)}
    torch.save(content, tmp_path / "a.pth")
    backbone = tiny((5, 6))
    if neck:
        backbone.neck = sam_neck(32)
    checkpoint = find_official("medsam_vit_b")
    (section,) = load_checkpoint(
        backbone,
        tmp_path / "a.pth",
        FileRules(prefix=checkpoint.prefix, drop=checkpoint.drop),
        containers=checkpoint.container,
    ).sections
    decoder = {key for key in official if not key.startswith("image_encoder.")}
    of_neck = {key for key in official if ".neck." in key}
    assert section.dropped.keys() == (decoder if neck else decoder | of_neck)
    positions = {"pos_embed", *(f"blocks.{i}.attn.rel_pos_{axis}" for i in (1, 3) for axis in "hw")}
    before, after = ({k: list(v.shape) for k, v in d.items()} for d in (official, backbone.state_dict()))
    expected = {key: f"converted from {before[f'image_encoder.{key}']} to {after[key]}" for key in positions}
    assert section.adapted == expected
    assert len(section.matched) == len(backbone.state_dict()) - len(positions) and not section.missing


def test_an_in_memory_state_dict_of_several_devices_loads() -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in official_file().items()}
    checkpoint = find_official("medsam_vit_b")
    backbone = tiny((4, 4))
    load_official(backbone, wrapped, prefix=checkpoint.prefix, drop=checkpoint.drop)
    assert torch.equal(backbone.blocks[0].attn.qkv.weight, wrapped["module.image_encoder.blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_cards_name_files_that_exist(name: str) -> None:
    card = get_card(name)
    assert card.checkpoint is not None
    assert card.checkpoint.files == [f"{card.checkpoint.name}.pth"]
    widths = {manifest(name)["image_encoder.patch_embed.proj.bias"].shape}
    for head_file in map(find_official, card.head_weights.values()):
        stem = next(n for n in NAMES if head_file.name.startswith(NAMES[n]))
        widths.add(manifest(stem)["image_encoder.patch_embed.proj.bias"].shape)
    assert len(widths) == 1  # a neck of another width would be left out
    assert next(iter(card.head_weights.values())) == card.checkpoint.name
    assert card.default_adapter == ("ladder" if name == "medsam_b" else "rein")


# --- positions ---------------------------------------------------------------------------------------------------


def test_positions_are_resized_by_straight_lines_between_the_nearest() -> None:
    positions = torch.randn(1, 6, 6, 3, generator=torch.Generator().manual_seed(0))
    ours = resize_positions(positions, (3, 4))

    def near(index: int, size: int) -> list[tuple[int, float]]:
        """The two native places around the centre of an element, and their shares."""
        centre = (index + 0.5) * 6 / size - 0.5
        low = int(centre)
        return [(low, 1 - (centre - low)), (min(low + 1, 5), centre - low)]

    for y in range(3):
        for x in range(4):
            expected = sum(a * b * positions[0, i, j] for i, a in near(y, 3) for j, b in near(x, 4))
            torch.testing.assert_close(ours[0, y, x], expected)
    assert resize_positions(positions, (6, 6)) is positions


@pytest.mark.parametrize("edge", [3, 14, 32, 70])
def test_tables_are_resized_as_the_official_code_does_at_every_call(edge: int) -> None:
    table = torch.randn(127, 5, generator=torch.Generator().manual_seed(0))
    resized = resize_table(table, 2 * edge - 1)
    torch.testing.assert_close(module._by_distance(resized, edge), get_rel_pos(edge, edge, table))
    assert resize_table(table, 127) is table


# --- the network -------------------------------------------------------------------------------------------------

GRIDS = [(4, 4), (8, 4), (5, 6), (3, 2), (1, 9)]
"""One window, several without padding, padding on both sides, less than a window in one or both directions."""


@pytest.mark.parametrize("path", ["matrix", "rows", "fused"])
@pytest.mark.parametrize("grid", GRIDS)
def test_maps_and_gradients_are_the_official_ones(
    grid: tuple[int, int], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official module forms the bias of every query and key; it is given positions of our grid."""
    monkeypatch.setattr(module, "FEW_TOKENS", 0 if path == "fused" else 1024)
    monkeypatch.setattr(module, "ROWS", 3 if path == "rows" else 256)
    theirs, ours = official_tiny(grid), tiny(grid)
    ours.neck = sam_neck(32)
    ours.load_state_dict(ours.from_official(theirs.state_dict()))
    for encoder in (theirs, ours):
        size = {name: 2 * edge - 1 for name, edge in zip("hw", grid, strict=True)}
        for index in (1, 3):  # the same length as at run time, so that gradients can be compared
            for axis, length in size.items():
                attention = encoder.blocks[index].attn
                table = torch.randn(length, 16, generator=torch.Generator().manual_seed(index))
                setattr(attention, f"rel_pos_{axis}", nn.Parameter(table))
    x = torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
    expected, (found,) = theirs(x), ours.features(x, (3,))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(expected)
    (expected * weights).mean().backward()
    (found * weights).mean().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        gradient = gradients[name.replace(".mlp.lin", ".mlp.fc")]
        assert parameter.grad is not None and gradient is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("tokens", [0, 1024])
def test_a_large_image_is_encoded_row_by_row_where_nothing_is_kept(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEW_TOKENS", tokens)
    monkeypatch.setattr(module, "ROWS", 7)
    backbone, x = tiny((6, 6)), torch.randn(1, 3, 96, 96)
    trained = backbone.features(x, (3, 1))
    with torch.no_grad():
        predicted = backbone.features(x, (3, 1))
    for ours, theirs in zip(predicted, trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_maps_come_in_the_order_asked_for_and_adapters_see_every_block() -> None:
    backbone = tiny((3, 5))
    x = torch.randn(2, 3, 48, 80)
    seen: list[tuple[int, Tensor]] = []

    def refine(index: int, tokens: Tensor) -> Tensor:
        seen.append((index, tokens))
        return tokens + index + 1

    entered: list[Tensor] = []
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
    with torch.no_grad():
        maps = backbone.features(x, (2, 0, 1), refine=refine)
    assert [index for index, _ in seen] == [0, 1, 2]  # nothing after the last block asked for
    assert all(tokens.shape == (2, 15, 32) for _, tokens in seen)
    for found, index in zip(maps, (2, 0, 1), strict=True):
        refined = seen[index][1] + index + 1
        torch.testing.assert_close(found, refined.transpose(1, 2).reshape(2, 32, 3, 5))
        assert index == 2 or torch.equal(entered[index + 1], refined)


@pytest.mark.parametrize("name", NAMES)
def test_heads_of_two_maps_take_the_first_block_that_sees_the_whole_image(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, 224)
    assert backbone.blocks_for(2) == (backbone.depth - 1, GLOBAL_BLOCKS[name][0])
    assert backbone.takes_neck and backbone.neck is None and backbone.norm == "none"


def test_a_neck_takes_the_last_map_only() -> None:
    backbone, x = tiny((3, 5)), torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        plain = backbone.features(x, (3, 2))
        backbone.neck = sam_neck(32)
        last, other = backbone.features(x, (3, 2))
        (alone,) = backbone.features(x, (2,))
        assert torch.equal(other, plain[1]) and torch.equal(alone, plain[1])
        assert last.shape == (2, 256, 3, 5)
        torch.testing.assert_close(last, backbone.neck(plain[0]))


def test_low_rank_updates_reach_the_padding_of_windows() -> None:
    """Queries, keys and values of the padding are made by the same layer as those of tokens, whatever wraps it."""
    torch.manual_seed(0)
    network = FoundationSegmenter2D(1, 2, backbone="sam_b", image_size=96, backbone_arguments=TINY).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    plain = copy.deepcopy(network)
    apply_adapter("lora", network, rank=2, alpha=4)
    layers = {name: m for name, m in network.named_modules() if hasattr(m, "lora_A")}
    assert {name.removeprefix("backbone.blocks.0.") for name in layers if ".blocks.0." in name} == {
        "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2",
    }  # fmt: skip
    with torch.no_grad():
        for name, layer in layers.items():
            nn.init.normal_(layer.lora_B["default"].weight)
            update = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            plain.get_submodule(name).weight += update
        x = torch.randn(1, 3, 96, 96)
        ours, merged = network.backbone.features(x, (3,)), plain.backbone.features(x, (3,))
    torch.testing.assert_close(ours, merged, rtol=1e-3, atol=1e-3)


def test_bfloat16_stays_close_and_copies_compute_the_same() -> None:
    backbone, x = tiny((5, 6)), torch.randn(2, 3, 80, 96)
    with torch.no_grad():
        (expected,) = backbone.features(x, (3,))
        for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert torch.equal(other.features(x, (3,))[0], expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (half,) = backbone.features(x, (3,))
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("image_size", [224, (256, 192)])
def test_it_runs_forwards_and_backwards_without_memory(image_size: int | tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = create_backbone("sam_b", image_size)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        maps = backbone.features(torch.empty(2, 3, height, width), backbone.default_blocks)
    assert {m.shape for m in maps} == {(2, 768, height // 16, width // 16)}
    sum(m.sum() for m in maps).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("image_size", [225, (224, 100), 0, 8])
def test_other_sizes_are_refused(image_size: int | tuple[int, int]) -> None:
    with fails("image-edges", "16"):
        create_backbone("sam_b", image_size)
