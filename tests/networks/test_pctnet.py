"""PCT-Net: official names, unused parts, windows and their biases, patches, precision, adapters, official files."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.models.build import architecture, build_network, legal_patch
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.pctnet import (
    MASKED,
    PCTNet,
    PctWindowAttention,
    SwinBlock,
    fit_bias_table,
    relative_position_index,
    shift_masks,
    window_kinds,
)
from nnunet_fm.plans.memory import training_memory
from nnunet_fm.weights.load import FileRules, load_checkpoint
from nnunet_fm.weights.report import PartReport
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.official_weights import check_official, load_official
from tests.helpers.small_networks import count, shapes

pytestmark = pytest.mark.usefixtures("float32")

PATCHES = {0: (32, 32, 32), 1: (16, 32, 32), 2: (8, 32, 32)}
"""Resolution mode -> patch whose pyramid has maps of 8, 4 and 2 tokens per edge: windows of 6 (shifted), 4 and 2."""

modes = pytest.mark.parametrize("mode", PATCHES)
supervised = pytest.mark.parametrize("deep_supervision", [True, False])


def tiny(channels: int = 1, classes: int = 3, mode: int = 1, patch: Sequence[int] | None = None, **more: Any) -> PCTNet:
    arguments = {"widths": [4, 4, 8, 16, 32], "dropout": [0, 0, 0.2, 0.2, 0.2], "deep_supervision": True, **more}
    return PCTNet(channels, classes, resolution_mode=mode, patch_size=patch or PATCHES[mode], **arguments)


def official(channels: int = 1, classes: int = 24, **changes: Any) -> PCTNet:
    """The network of the card, without memory."""
    arguments = {**get_card("misfm").network.arguments, "deep_supervision": True, **changes}
    with torch.device("meta"):
        return PCTNet(channels, classes, **arguments)


def step(network: PCTNet, batch: int = 2) -> None:
    """Forward and backward pass of all outputs in training."""
    outputs = network.train()(torch.randn(batch, 1, *network.patch_size))
    torch.stack([out.square().mean() for out in (outputs if isinstance(outputs, list) else [outputs])]).sum().backward()


# --- names, shapes, counts ---------------------------------------------------------------------------------------


def test_names_shapes_types_and_counts_are_the_official_ones() -> None:
    listed = manifest("misfm_pctnet")
    network = official()
    assert shapes(network) == listed["state_dict"] and len(listed["state_dict"]) == 684
    integers = {name for name, tensor in network.state_dict().items() if tensor.dtype == torch.int64}
    assert integers == set(listed["dtypes_not_float32"])
    assert count(network) == listed["num_parameters"] == 45_301_106


def test_what_no_output_depends_on_is_not_trained() -> None:
    assert count(official(), trained=False) == 1_094_160
    assert count(official(deep_supervision=False), trained=False) == 1_105_467


@modes
@supervised
def test_exactly_the_parameters_without_gradient_are_off(mode: int, deep_supervision: bool) -> None:
    network = tiny(mode=mode, deep_supervision=deep_supervision)
    off = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    step(network)
    assert off == {name for name, parameter in network.named_parameters() if parameter.grad is None}


def test_only_the_declared_parts_depend_on_channels_classes_patch_and_mode() -> None:
    one = shapes(official())
    heads = official().key_to_head
    for other, expected in (
        (shapes(official(channels=4)), {f"{key}.weight" for key in official().keys_to_in_proj}),
        (shapes(official(classes=5)), {n for n in one if n.startswith(heads) and ".conv.2." in n}),
        (shapes(official(patch_size=[48, 96, 96])), set()),
        (shapes(official(patch_size=[32, 64, 64])), {n for n in one if "convtrans_e4" in n and ".relative_" in n}),
        (shapes(official(resolution_mode=2)), set()),
        (shapes(official(deep_supervision=False)), set()),
    ):
        assert one.keys() == other.keys()
        assert {name for name in one if one[name] != other[name]} == expected
    assert len({n for n in one if n.startswith(heads) and ".conv.2." in n}) == 16


@modes
def test_declared_keys_exist(mode: int) -> None:
    network = tiny(mode=mode)
    for key in (network.key_to_encoder, network.key_to_stem, *network.encoder_keys, *network.unused_keys):
        assert list(network.get_submodule(key).parameters())
    assert len(network.keys_to_in_proj) == 3 and f"{network.key_to_stem}.proj" in network.keys_to_in_proj
    assert not set(network.encoder_keys) & set(network.unused_keys)


def test_layers_are_counted_from_the_stem_to_the_decoder() -> None:
    network = tiny()
    groups = param_groups_layer_decay(
        network, weight_decay=0.1, no_weight_decay_list=network.no_weight_decay(), layer_decay=0.5
    )
    rates = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert rates.keys() == {id(p) for p in network.parameters() if p.requires_grad}
    expected = {"embeddings.1": 1 / 16, "pyramid_ct.convtrans_e2": 1 / 8, "pyramid_ct.down3": 1 / 4}
    expected |= {"pyramid_ct.convtrans_e3": 1 / 4, "pyramid_ct.down4": 1 / 2, "pyramid_ct.convtrans_e4": 1 / 2}
    expected |= {"pyramid_ct.up4": 1, "pyramid_ct.convtrans_d2": 1, "pyramid_ct.out_conv2": 1, "pred_heads.1": 1}
    for key, rate in expected.items():
        assert {rates[id(p)] for p in network.get_submodule(key).parameters() if p.requires_grad} == {rate}, key
    tables = [p for name, p in network.named_parameters() if name.endswith("bias_table")]
    assert len(tables) == 10 and all(decays[id(p)] == 0 for p in tables)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"mode": 3, "patch": (32, 32, 32)}, ("argument-value", "resolution_mode", "0", "1", "2")),
        ({"widths": [4, 8, 16, 32]}, ("argument-value", "5")),
        ({"dropout": [0.0] * 4}, ("argument-value", "5")),
        ({"widths": [4, 4, 8, 12, 32]}, ("argument-value",)),
        ({"patch": (16, 32, 24)}, ("patch-illegal",)),
        ({"patch": (0, 32, 32)}, ("patch-illegal",)),
    ],
)
def test_arguments_that_break_the_rules_are_refused(wrong: dict[str, Any], expected: tuple[str, ...]) -> None:
    with fails(*expected):
        tiny(**wrong)


# --- the card and the plan's patch -------------------------------------------------------------------------------


def test_the_patch_of_a_plan_reaches_the_network() -> None:
    card = get_card("pctnet")
    assert card.name == "misfm"
    patch, _ = legal_patch(card, [20, 100, 60], [2.0, 1.5, 1.5])
    assert patch == [32, 112, 64]
    entry = architecture(card, patch_size=patch, spacing=[2.0, 1.5, 1.5])
    with torch.device("meta"):
        network = build_network(entry, 1, 24, adapter="full", deep_supervision=True)
    assert isinstance(network, PCTNet) and network.patch_size == patch and count(network, trained=False) > 1_000_000


def test_any_patch_is_rounded_to_one_that_trains() -> None:
    arguments = get_card("misfm").network.arguments

    def resolved(mode: int, *patch: int) -> list[int]:
        given = {**arguments, "resolution_mode": mode}
        patch_size: list[int] = PCTNet.resolve_arguments(given, patch_size=patch, spacing=[1, 1, 1])["patch_size"]
        return patch_size

    assert resolved(1, 64, 128, 128) == [64, 128, 128]
    assert resolved(0, 28, 255, 224) == [32, 256, 224]
    assert resolved(2, 5, 33, 224) == [8, 48, 224]
    assert resolved(0, 3, 3, 3) == [16, 16, 32] and resolved(2, 3, 3, 3) == [4, 16, 32]


# --- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_rows_of_the_bias_table_collide_as_officially(window: int) -> None:
    index = relative_position_index(window)
    tokens = list(product(range(window), repeat=3))
    factors = (3 * window - 1, 2 * window - 1, 1)
    for i, j in [(0, 0), (0, len(tokens) - 1), (len(tokens) - 1, 0), (len(tokens) // 2, len(tokens) // 3)]:
        row = sum(f * (a - b + window - 1) for f, a, b in zip(factors, tokens[i], tokens[j], strict=True))
        assert index[i, j] == row
    assert index.max() < (2 * window - 1) ** 3
    if window == 6:
        assert index.max() == 290 and len(index.unique()) == 291


def split(x: Tensor, window: int) -> Tensor:
    """Map ``(Z, Y, X)`` to windows ``(W, window**3)``."""
    for axis in range(3):
        x = x.unfold(axis, window, window)
    return x.reshape(-1, window**3)


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 12, 13), (36, 9, 18)])
def test_masks_part_what_only_the_shift_brought_together(size: tuple[int, int, int]) -> None:
    block = SwinBlock(8, 4, size, shifted=True, dropout=0.0)
    padded = [count * 6 for count in block.counts]
    regions = torch.zeros(padded)
    for number, slices in enumerate(product((slice(0, -6), slice(-6, -3), slice(-3, None)), repeat=3)):
        regions[slices] = number
    windows = split(regions, 6)
    expected = torch.where(windows[:, :, None] == windows[:, None, :], 0.0, MASKED)
    assert torch.equal(block.attn.shift_masks[block.attn.window_kinds], expected)
    assert torch.equal(shift_masks(6, 3), block.attn.shift_masks) and len(window_kinds(block.counts)) == len(windows)


def reference(block: SwinBlock, x: Tensor) -> Tensor:
    """A shifted block in eval mode, one window and one head at a time."""
    attention, w = block.attn, block.window
    padded = F.pad(block.norm1(x), block.padding).roll((-block.shift,) * 3, (1, 2, 3))
    out = torch.zeros_like(padded)
    corners = [range(0, edge, w) for edge in padded.shape[1:4]]
    for number, (z, y, x_) in enumerate(product(*corners)):
        place = (slice(None), slice(z, z + w), slice(y, y + w), slice(x_, x_ + w))
        tokens = padded[place].reshape(-1, padded.shape[-1])
        q, k, v = attention.qkv(tokens).chunk(3, dim=1)
        heads = []
        for head, (a, b, c) in enumerate(zip(*(t.chunk(attention.heads, dim=1) for t in (q, k, v)), strict=True)):
            scores = a @ b.T / a.shape[1] ** 0.5
            scores = scores + attention.relative_position_bias_table[attention.relative_position_index, head]
            if block.shift:
                scores = scores + attention.shift_masks[attention.window_kinds[number]]
            heads.append(scores.softmax(dim=1) @ c)
        out[place] = attention.proj(torch.cat(heads, dim=1)).view(1, w, w, w, -1)
    out = out.roll((block.shift,) * 3, (1, 2, 3))[:, : x.shape[1], : x.shape[2], : x.shape[3]]
    x = x + out
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize(
    ("size", "shifted", "window", "shift"),
    [
        ((8, 7, 13), True, 6, 3),
        ((8, 7, 13), False, 6, 0),
        ((6, 8, 9), True, 6, 0),
        ((7, 4, 6), True, 4, 0),
        ((1, 2, 2), True, 1, 0),
    ],
)
def test_a_block_attends_within_windows(size: tuple[int, int, int], shifted: bool, window: int, shift: int) -> None:
    block = SwinBlock(8, 4, size, shifted=shifted, dropout=0.2).eval()
    assert (block.window, block.shift) == (window, shift)
    assert block.attn.relative_position_bias_table.shape == ((2 * window - 1) ** 3, 4)
    nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, *size, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x)[:1], reference(block, x[:1]))
        torch.testing.assert_close(block(x)[1:], reference(block, x[1:]))


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    network = tiny()
    blocks = [module for module in network.modules() if isinstance(module, SwinBlock)]
    assert len(blocks) == 10
    assert {(b.drop_path.drop_prob, b.attn.dropout, b.attn.proj_drop.p, b.mlp.drop.p) for b in blocks} == {(0.2,) * 4}
    convolutions = [network.embeddings[1].conv1, network.pyramid_ct.convtrans_e2.conv, network.pred_heads[1].conv0]
    assert [block.conv_conv[5].p for block in convolutions] == [0, 0.2, 0]
    attention = PctWindowAttention(8, 4, window=2, shift=0, counts=(1, 1, 1), dropout=0.5)
    attention.proj_drop.p = 0.0
    x = torch.randn(1, 1, 8, 8)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


# --- sizes and outputs -------------------------------------------------------------------------------------------


@modes
def test_logits_have_the_size_of_any_input_within_the_patch(mode: int) -> None:
    network = tiny(2, 5, mode).eval()
    network.deep_supervision = False
    for size in (network.patch_size, [5, 30, 17], [1, 1, 1]):
        with torch.no_grad():
            logits = network(torch.randn(2, 2, *size))
        assert logits.shape == (2, 5, *size) and logits.isfinite().all()


def test_padding_repeats_the_border_and_leaves_the_image_in_its_place() -> None:
    network = tiny(deep_supervision=False).eval()
    x = torch.randn(1, 1, 11, 32, 20)
    padded = F.pad(x, (0, 12, 0, 0, 0, 5), mode="replicate")
    with torch.no_grad():
        assert torch.equal(network(x), network(padded)[..., :11, :, :20])


def test_an_input_larger_than_the_patch_is_refused() -> None:
    with fails("patch-exceeded"):
        tiny()(torch.randn(1, 1, 16, 32, 33))


@modes
@pytest.mark.parametrize("full", [True, False])
def test_outputs_fit_the_targets_of_nnunet(mode: int, full: bool) -> None:
    network = tiny(mode=mode)
    edges = PATCHES[mode] if full else (7, 22, 19)
    outputs = network(torch.randn(1, 1, *edges))
    targets = DownsampleSegForDSTransform(network.deep_supervision_scales)(segmentation=torch.zeros(1, *edges))
    assert len(outputs) == 4
    assert [tuple(out.shape[2:]) for out in outputs] == [tuple(t.shape[1:]) for t in targets["segmentation"]]


def test_without_deep_supervision_only_the_finest_output_is_computed() -> None:
    network = tiny().eval()
    x = torch.randn(1, 1, *network.patch_size)
    called: list[str] = []
    for name, module in network.named_modules():
        if name.rpartition(".")[2].startswith("out_conv"):
            module.register_forward_hook(lambda _m, _a, _o, name=name: called.append(name))
    with torch.no_grad():
        outputs = network(x)
        assert len(called) == 4
        called.clear()
        network.decoder.deep_supervision = False  # as stock nnU-Net sets it
        assert torch.equal(network(x), outputs[0])
    assert called == ["pred_heads.1.out_conv0"]
    step(network)


# --- precision, copies, memory -----------------------------------------------------------------------------------


def test_bfloat16_is_close_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny(deep_supervision=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():  # statistics like those of a trained network
        for _ in range(3):
            network(torch.randn(4, 1, *network.patch_size))
    x = torch.randn(1, 1, *network.patch_size)
    statistics = {name: b.clone() for name, b in network.named_buffers() if b.is_floating_point()}
    with torch.no_grad():
        high = network.eval()(x)
        monkeypatch.setenv("NNUNET_FM_BF16", "1")
        low = network(x)
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    assert (low - high).abs().mean() < 0.05 * high.std()
    assert all(torch.equal(statistics[n], b) for n, b in network.named_buffers() if n in statistics)
    step(network)
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert [n for n, g in gradients.items() if g is None or g.dtype != torch.float32 or not g.isfinite().all()] == []


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"])
def test_copies_behave_alike(clone: Callable[[Any], Any]) -> None:
    network = tiny()
    apply_adapter("freeze", network)
    twin = clone(network)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in network.parameters()]
    x = torch.randn(1, 1, *network.patch_size)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(twin.eval()(x), network.eval()(x), strict=True))


@supervised
def test_memory_is_predicted_on_the_meta_device(deep_supervision: bool) -> None:
    predicted = training_memory(
        lambda: tiny(mode=1, deep_supervision=deep_supervision), PATCHES[1], 2, 1, optimizer="adam"
    )
    trained = count(tiny(deep_supervision=deep_supervision), trained=True)
    assert predicted.gradients == 4 * trained and predicted.optimizer == 8 * trained
    assert predicted.activations > 2 * 4 * 4 * 16 * 32 * 32  # more than one map at full resolution


# --- adapters ----------------------------------------------------------------------------------------------------


def unused(network: PCTNet) -> set[str]:
    return {n for n, _ in network.named_parameters() if n.startswith(tuple(f"{key}." for key in network.unused_keys))}


def test_freeze_keeps_the_encoder_and_its_statistics() -> None:
    network = tiny()
    apply_adapter("freeze", network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    step(network)
    encoder = tuple(f"{key}." for key in network.encoder_keys)
    for name, parameter in network.named_parameters():
        trained = not name.startswith(encoder) and name not in unused(network)
        assert parameter.requires_grad is trained and (parameter.grad is not None) is trained, name
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and not any(name.startswith(encoder) for name in changed)
    assert any(name.startswith("pyramid_ct.up3") for name in changed)
    apply_adapter("full", network)
    network.train()
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == unused(network)
    assert all(module.training for module in network.modules())


def test_lora_updates_the_linear_layers_of_the_encoder() -> None:
    network = tiny()
    off = unused(network)
    apply_adapter("lora", network)
    updated = {n.partition(".lora_")[0] for n, p in network.named_parameters() if ".lora_" in n and p.requires_grad}
    assert len(updated) == 3 * 2 * 4 and all(name.startswith(network.encoder_keys) for name in updated)
    step(network)
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        assert not (parameter.requires_grad and name in off)


# --- biases for another window -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(6, 4), (6, 2), (6, 1), (2, 3), (1, 2)])
def test_a_bias_table_is_the_mean_of_what_the_old_window_gave_the_same_offsets(old: int, new: int) -> None:
    table = torch.randn((2 * old - 1) ** 3, 2)
    factors = {window: (3 * window - 1, 2 * window - 1, 1) for window in (old, new)}
    shared: dict[int, list[Tensor]] = {}
    tokens = list(product(range(new), repeat=3))
    for a, b in product(tokens, tokens):
        offset = [i - j for i, j in zip(a, b, strict=True)]
        near = [max(1 - old, min(old - 1, o)) for o in offset]
        row = sum(f * (o + new - 1) for f, o in zip(factors[new], offset, strict=True))
        source = sum(f * (o + old - 1) for f, o in zip(factors[old], near, strict=True))
        shared.setdefault(row, []).append(table[source])
    fitted = fit_bias_table(table, old, new)
    assert fitted.shape == ((2 * new - 1) ** 3, 2) and fitted.dtype == table.dtype
    for row in range(len(fitted)):
        expected = torch.stack(shared[row]).mean(dim=0) if row in shared else torch.zeros(2)
        torch.testing.assert_close(fitted[row], expected)


def test_a_bias_table_of_the_same_window_keeps_the_rows_in_use() -> None:
    table = torch.randn(7**3, 2)
    used = relative_position_index(4).unique()
    torch.testing.assert_close(fit_bias_table(table, 4, 4)[used], table[used])


# --- official files ----------------------------------------------------------------------------------------------


def write(network: PCTNet, folder: Path, **extra: Any) -> Path:
    """A file as PyMIC writes it."""
    path = folder / "pctnet_ct10k_volf.pt"
    torch.save({"iteration": 3, "valid_pred": 0.5, "model_state_dict": network.state_dict(), **extra}, path)
    return path


def randomised(network: PCTNet) -> PCTNet:
    """The network with another value in every tensor, statistics included."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.1)
        elif tensor.ndim == 0:
            tensor.fill_(7)
    return network


def section(network: PCTNet, file: Path, *, drop: bool = True) -> PartReport:
    entry = get_card("misfm").checkpoints[0]
    report = load_checkpoint(
        network, file, FileRules(drop=entry.drop if drop else (), new=entry.new), containers=entry.container
    )
    (found,) = report.sections
    return found


def heads_of(network: PCTNet) -> set[str]:
    return {n for n in network.state_dict() if n.startswith(tuple(f"{key}." for key in network.key_to_head))}


@pytest.mark.parametrize("pretext_classes", [5, 3], ids=["other classes", "as many classes"])
def test_the_pretraining_file_fills_all_but_the_outputs(tmp_path: Path, pretext_classes: int) -> None:
    theirs = randomised(tiny(classes=pretext_classes))
    network = tiny(classes=3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = section(network, write(theirs, tmp_path))
    heads, loaded = heads_of(network), theirs.state_dict()
    assert len(heads) == 8 * 8
    assert set(found.missing) == set(found.dropped) == heads and not found.adapted
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in heads else loaded[name]), name


def test_the_card_fits_a_file_of_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        content = {name: torch.empty(shape) for name, shape in manifest("misfm_pctnet")["state_dict"].items()}
    entry = get_card("misfm").checkpoints[0]
    (found,) = check_official(official(classes=5), content, drop=entry.drop).sections
    assert len(found.matched) == 620 and len(found.dropped) == len(found.missing) == 64 and not found.adapted


def test_a_fine_tuned_file_fills_everything(tmp_path: Path) -> None:
    theirs = randomised(tiny())
    network = tiny()
    found = section(network, write(theirs, tmp_path), drop=False)
    assert len(found.matched) == 684 and not found.missing
    loaded = theirs.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())


def test_more_channels_are_filled_in_all_stems(tmp_path: Path) -> None:
    theirs = randomised(tiny())
    network = tiny(channels=2)
    found = section(network, write(theirs, tmp_path))
    assert set(found.adapted) == {f"embeddings.{mode}.proj.weight" for mode in range(3)}
    for ours, official_stem in zip(network.embeddings, theirs.embeddings, strict=True):
        torch.testing.assert_close(ours.proj.weight.sum(dim=1, keepdim=True), official_stem.proj.weight)


@pytest.mark.parametrize("patches", [((16, 32, 32), (24, 48, 64)), ((24, 48, 64), (16, 32, 32))], ids=["up", "down"])
def test_a_file_of_another_window_is_fitted_and_reported(
    tmp_path: Path, patches: tuple[Sequence[int], Sequence[int]]
) -> None:
    theirs, network = randomised(tiny(patch=patches[0])), tiny(patch=patches[1])
    own_index = {n: t.clone() for n, t in network.state_dict().items() if n.endswith("position_index")}
    found = section(network, write(theirs, tmp_path))
    blocks = [f"pyramid_ct.convtrans_{level}.trans.blocks.{i}.attn" for level in ("e3", "d3", "e4") for i in (0, 1)]
    kinds = ("relative_position_bias_table", "relative_position_index")
    assert set(found.adapted) == {f"{block}.{kind}" for block in blocks for kind in kinds}
    assert all(torch.equal(network.state_dict()[name], index) for name, index in own_index.items())
    windows = {len(t): w for w in (2, 3, 4, 6) for t in [torch.empty((2 * w - 1) ** 3, 0)]}
    for block in blocks:
        ours, official_table = (n.get_submodule(block).relative_position_bias_table for n in (network, theirs))
        expected = fit_bias_table(official_table.detach(), windows[len(official_table)], windows[len(ours)])
        assert torch.equal(ours, expected)
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1, *patches[1]))[0].isfinite().all()


def test_a_file_of_another_window_is_checked_without_memory() -> None:
    with torch.device("meta"):
        network = tiny(patch=(24, 48, 64))
    (found,) = check_official(network, tiny().state_dict()).sections
    assert len(found.adapted) == 12


def test_other_networks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "fmunet_abk1k_volf.pt"
    torch.save({"model_state_dict": {"block0.conv.weight": torch.ones(1)}}, file)
    with fails("weights-other", "fmunet_abk1k_volf.pt", "PCT"):
        section(tiny(), file)
    wide = tiny(widths=[4, 4, 16, 16, 32])
    with fails("weights-mismatch"):
        load_official(tiny(), wide.state_dict())
    broken = tiny().state_dict()
    broken["pyramid_ct.convtrans_e4.trans.blocks.0.attn.relative_position_bias_table"] = torch.ones(26, 16)
    with fails("weights-mismatch", "1"):
        load_official(tiny(), broken)
