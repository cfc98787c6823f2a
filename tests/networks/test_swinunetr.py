"""SwinUNETR of SuPreM and DAE: official names and files, patch merging, window attention, sizes, axes."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import swin_unetr
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from nnunet_fm.models.official import check, get_official, officials, recognise
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks import window_attention
from nnunet_fm.networks.swinunetr import DAE, UNUSED, PatchMerging, SwinUNETR
from nnunet_fm.networks.window_attention import WindowAttention
from nnunet_fm.plans.memory import training_memory
from nnunet_fm.weights.report import PartReport
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.official_weights import load_official
from tests.helpers.small_networks import count, shapes

pytestmark = pytest.mark.usefixtures("float32")

MANIFEST = {SwinUNETR: "suprem_swinunetr", DAE: "dae"}
UNUSED_WEIGHTS = 638_208
"""Weights of the four convolutions that MONAI 0.8 saved and never applied."""

HEAD = {"out.conv.conv.weight", "out.conv.conv.bias"}

both = pytest.mark.parametrize("network_class", [SwinUNETR, DAE])


def on_meta(network_class: type[SwinUNETR], channels: int = 1, classes: int = 24) -> SwinUNETR:
    with torch.device("meta"):
        return network_class(channels, classes)


def small(network_class: type[SwinUNETR] = SwinUNETR, **more: Any) -> SwinUNETR:
    return network_class(**{"input_channels": 1, "num_classes": 3, "feature_size": 12, **more})


# --- names, shapes, counts ---------------------------------------------------------------------------------------


@both
def test_names_and_shapes_are_the_official_ones(network_class: type[SwinUNETR]) -> None:
    official = manifest(MANIFEST[network_class])["state_dict"]
    unused = {name for name in official if UNUSED.search(name)}
    assert len(unused) == (4 if network_class is DAE else 0)
    assert shapes(on_meta(network_class)) == {k: v for k, v in official.items() if k not in unused}


def test_counts_are_the_official_ones() -> None:
    assert count(on_meta(SwinUNETR)) == manifest("suprem_swinunetr")["num_parameters"] == 62_187_786
    assert count(on_meta(DAE)) == 62_251_050
    assert count(on_meta(DAE)) + UNUSED_WEIGHTS == manifest("dae")["num_parameters"] == 62_889_258


@both
def test_only_the_declared_parts_depend_on_channels_and_classes(network_class: type[SwinUNETR]) -> None:
    one = on_meta(network_class)
    for other, keys in (
        (on_meta(network_class, channels=4), {f"{key}.weight" for key in one.keys_to_in_proj}),
        (on_meta(network_class, classes=5), HEAD),
    ):
        assert shapes(one).keys() == shapes(other).keys()
        assert {name for name, shape in shapes(one).items() if shape != shapes(other)[name]} == keys
    assert list(one.get_submodule(one.key_to_encoder).parameters())
    assert list(one.get_submodule(one.key_to_stem).parameters())


# --- independence of MONAI's version -----------------------------------------------------------------------------


def merged(x: Tensor, merging: PatchMerging) -> Tensor:
    """The official patch merging, voxel by voxel and in its own words."""
    offsets = ("000", "100", "010", "001", "101", "010", "001", "111")
    size = [(edge + 1) // 2 for edge in x.shape[1:4]]
    out = torch.empty(len(x), *size, 2 * x.shape[-1])
    for d, h, w in itertools.product(*map(range, size)):
        places = [(2 * d + int(o[0]), 2 * h + int(o[1]), 2 * w + int(o[2])) for o in offsets]
        inside = [all(i < edge for i, edge in zip(place, x.shape[1:4], strict=True)) for place in places]
        parts = [
            x[:, p[0], p[1], p[2]] if i else x.new_zeros(len(x), x.shape[-1])
            for p, i in zip(places, inside, strict=True)
        ]
        out[:, d, h, w] = merging.reduction(merging.norm(torch.cat(parts, dim=-1)))
    return out  # fmt: skip


@pytest.mark.parametrize("size", [(4, 2, 6), (3, 3, 3), (1, 3, 5)])
def test_patch_merging_takes_two_sub_grids_twice(size: tuple[int, ...]) -> None:
    merging = PatchMerging(3)
    nn.init.normal_(merging.norm.weight)
    x = torch.randn(2, *size, 3)
    torch.testing.assert_close(merging(x), merged(x, merging))


def test_patch_merging_is_for_volumes() -> None:
    with fails("argument-value", "2"):
        PatchMerging(3, spatial_dims=2)


def library(network: SwinUNETR, classes: int = 3, **arguments: Any) -> nn.Module:
    """MONAI's own network with the weights of ours, whatever its version."""
    if "img_size" in inspect.signature(swin_unetr.SwinUNETR).parameters:
        arguments["img_size"] = (64, 64, 64)
    theirs = swin_unetr.SwinUNETR(in_channels=1, out_channels=classes, feature_size=12, **arguments)
    theirs.load_state_dict(network.state_dict(), strict=True)
    return theirs.to(next(network.parameters()).dtype)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_outputs_and_gradients_are_those_of_monais_blocks_with_the_official_merging() -> None:
    """If MONAI changes its transformer, blocks or their order, this or the parity cases fail."""
    ours = small().double()
    theirs = library(ours, downsample=PatchMerging)
    x = torch.randn(1, 1, 32, 32, 64, dtype=torch.double)
    outputs = ours.forward_logits(x)[0], theirs(x)
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for out in outputs:
        out.square().mean().backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and wanted[name].grad is not None
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-6, atol=1e-12)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_monais_own_merging_is_never_used() -> None:
    ours = small().eval()
    stages = [ours.get_submodule(f"swinViT.layers{i}.0.downsample") for i in range(1, 5)]
    assert [type(stage) for stage in stages] == [PatchMerging] * 4
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        outputs = [library(ours, downsample=merging).eval()(x) for merging in (PatchMerging, "mergingv2")]
        differences = [(ours(x) - out).abs().max() for out in outputs]
    assert differences[0] < 1e-4 and differences[1] > 0.1


# --- attention ---------------------------------------------------------------------------------------------------


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + bias
    return (scores if mask is None else scores + mask[:, None]).softmax(-1) @ value


def operands(masked: bool) -> tuple[list[Tensor], Tensor | None]:
    """Two samples, three windows, two heads, five tokens."""
    tensors = [torch.randn(2, 3, 2, 5, 4, dtype=torch.double, requires_grad=True) for _ in range(3)]
    tensors.append(torch.randn(2, 5, 5, dtype=torch.double, requires_grad=True))
    return tensors, torch.where(torch.rand(3, 5, 5) < 0.3, -100.0, 0.0) if masked else None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attend", [window_attention.attend, window_attention.all_windows])
def test_attention_is_the_plain_formula(attend: Callable[..., Tensor], masked: bool) -> None:
    tensors, mask = operands(masked)
    out, wanted = attend(*tensors, mask), plain(*tensors, mask)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn_like(out)
    gradients = (torch.autograd.grad((o * weight).sum(), tensors) for o in (out, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_keeps_the_bias_and_gradients_in_float32(masked: bool) -> None:
    tensors, mask = operands(masked)
    low = [t.detach().to(torch.bfloat16).requires_grad_() for t in tensors[:3]]
    bias = tensors[3].detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = window_attention.attend(*low, bias, mask)
    wanted = plain(*tensors, mask)
    torch.testing.assert_close(out.double(), wanted, atol=0.05, rtol=0.05)
    ours = torch.autograd.grad(out.float().sum(), [*low, bias])
    assert [g.dtype for g in ours] == [torch.bfloat16] * 3 + [torch.float32]
    for mine, theirs in zip(ours, torch.autograd.grad(wanted.sum(), tensors), strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("tokens", "windows"), [(343, 2), (60, 0)])
def test_window_attention_is_monais(tokens: int, windows: int) -> None:
    """Full windows with a mask, and smaller ones, whose index of positions is cut, without."""
    ours = WindowAttention(12, 3, (7, 7, 7), qkv_bias=True)
    theirs = swin_unetr.WindowAttention(12, 3, (7, 7, 7), qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    nn.init.normal_(ours.relative_position_bias_table)
    theirs.load_state_dict(ours.state_dict())
    mask = torch.where(torch.rand(windows, tokens, tokens) < 0.5, -100.0, 0.0) if windows else None
    x = torch.randn(4, tokens, 12)
    torch.testing.assert_close(ours(x, mask), theirs(x, mask))


def test_no_attention_matrix_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []
    attention = WindowAttention(12, 3, (7, 7, 7), qkv_bias=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        attention(torch.randn(8, 343, 12), torch.zeros(4, 343, 343))
    assert kept and max(kept) < 8 * 3 * 343 * 343  # the mask is, and the bias


# --- official files ----------------------------------------------------------------------------------------------


def number(name: str) -> float:
    """Another one for each name, small, exact in float32."""
    return zlib.crc32(name.encode()) % 4096 / 4096


def official(name: str, prefix: str = "") -> dict[str, Tensor]:
    """A state dict of a manifest that takes no space: each tensor is one number, repeated."""
    content = manifest(name)
    types = content.get("dtypes_not_float32", {})
    state_dict = {}
    for key, shape in content["state_dict"].items():
        index = key in types or key.endswith("relative_position_index")
        value = torch.tensor(7) if index else torch.tensor(number(key))
        state_dict[f"{prefix}{key}"] = value.expand(shape)
    return state_dict


def self_supervised(perceptron: str = "linear", only_encoder: bool = False) -> dict[str, Tensor]:
    """The file of the plain patch embedding, by its description: doubled index, three more tensors, one output."""
    file = {"encoder.mask_token": torch.zeros(1, 1, 48), "encoder.norm.weight": torch.ones(768)}
    file["encoder.norm.bias"] = torch.zeros(768)
    for name, tensor in official("suprem_swinunetr").items():
        if name.startswith("out."):
            file[name] = tensor[:1]
        elif name.startswith("swinViT."):
            inner = name.removeprefix("swinViT.").replace(".0.", ".0.0.", 1) if "layers" in name else name[8:]
            file[f"encoder.{inner.replace('mlp.linear', f'mlp.{perceptron}')}"] = tensor
        elif not only_encoder:
            file[name] = tensor
    assert "encoder.layers1.0.0.blocks.0.norm1.weight" in file and "encoder.patch_embed.proj.bias" in file
    return file


def load(network: SwinUNETR, file: dict[str, Tensor], model: str, checkpoint: str) -> PartReport:
    """Load as the card of a model says."""
    spec = get_card(model).find_checkpoint(checkpoint)
    assert spec is not None
    (section,) = load_official(network, file, prefix=spec.prefix, drop=spec.drop, new=spec.new).sections
    return section


def values(network: nn.Module) -> dict[str, float]:
    return {name: tensor.flatten()[0].item() for name, tensor in network.state_dict().items()}


def test_suprem_starts_from_the_backbone_of_its_supervised_file() -> None:
    network = SwinUNETR(1, 5)
    head = network.out.conv.conv.weight.clone()
    file = official("suprem_pretrain")
    section = load(network, file, "suprem", "suprem_swinunetr")
    assert (len(section.matched), len(section.dropped), len(file)) == (157, 13, 170)
    assert set(section.missing) == HEAD and not section.adapted
    assert torch.equal(network.out.conv.conv.weight, head)
    for name, value in values(network).items():
        if name not in HEAD:
            assert value == (7 if name.endswith("index") else number(f"backbone.{name}")), name


def test_dae_starts_from_all_but_the_head_of_its_file() -> None:
    network = DAE(1, 5)
    file = official("dae_pretrain")
    section = load(network, file, "dae", "dae_pretrain")
    assert (len(section.matched), len(section.dropped), len(file)) == (161, 9, 170)
    assert set(section.missing) == HEAD and not section.adapted
    assert set(section.dropped) == {
        "encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias", *HEAD,
        *(f"encoder{i}.layer.conv3.conv.weight" for i in (2, 3, 4, 10)),
    }  # fmt: skip
    found = values(network)
    for name, inner in {
        "swinViT.patch_embed.proj.conv1.conv.weight": "encoder.patch_embed.proj.conv1.conv.weight",
        "swinViT.layers1.0.blocks.1.attn.qkv.weight": "encoder.layers1.0.0.blocks.1.attn.qkv.weight",
        "swinViT.layers3.0.blocks.0.mlp.linear1.bias": "encoder.layers3.0.0.blocks.0.mlp.fc1.bias",
        "swinViT.layers4.0.blocks.1.mlp.linear2.weight": "encoder.layers4.0.0.blocks.1.mlp.fc2.weight",
        "swinViT.layers2.0.downsample.reduction.weight": "encoder.layers2.0.0.downsample.reduction.weight",
        "encoder1.layer.conv3.conv.weight": "encoder1.layer.conv3.conv.weight",
        "decoder5.transp_conv.conv.weight": "decoder5.transp_conv.conv.weight",
    }.items():
        assert found[name] == number(inner), name


@pytest.mark.parametrize("perceptron", ["linear", "fc"])
def test_the_self_supervised_file_of_the_plain_patch_embedding_is_suprems(perceptron: str) -> None:
    network = SwinUNETR(1, 5)
    section = load(network, self_supervised(perceptron), "suprem", "swinunetr_ssl_50000")
    assert (len(section.matched), len(section.dropped)) == (157, 5) and set(section.missing) == HEAD
    for name, value in values(network).items():
        if name not in HEAD:
            assert value == (7 if name.endswith("index") else number(name)), name


def test_a_self_supervised_file_may_hold_the_encoder_alone() -> None:
    section = load(on_meta(SwinUNETR), self_supervised(only_encoder=True), "suprem", "swinunetr_ssl_50000")
    assert len(section.matched) == 126 and {name.split(".")[0][:7] for name in section.missing} == {
        "encoder", "decoder", "out"
    }  # fmt: skip
    assert not any(name.startswith("swinViT") for name in section.missing)


def test_files_of_the_other_network_are_refused_in_a_sentence() -> None:
    with fails("weights-other", "DAE", "dae"):
        load(on_meta(SwinUNETR), official("dae_pretrain"), "suprem", "suprem_swinunetr")
    with fails("weights-other", "suprem", "swinunetr_ssl_50000"):
        load(on_meta(DAE), self_supervised(), "dae", "dae_pretrain")
    with fails("weights-other", "SuPreM", "suprem_swinunetr"):
        load(on_meta(DAE), official("suprem_pretrain", "module."), "dae", "dae_pretrain")


@pytest.mark.parametrize(("model", "network_class"), [("suprem", SwinUNETR), ("dae", DAE)])
def test_a_fine_tuned_network_loads_completely(model: str, network_class: type[SwinUNETR]) -> None:
    card = get_card(model)
    assert card.checkpoint is not None
    file = official(MANIFEST[network_class])
    section = load(on_meta(network_class), file, model, card.checkpoint.name)
    assert len(section.matched) == len(file) - len(section.dropped) == {"suprem": 159, "dae": 163}[model]
    assert all(UNUSED.search(name) for name in section.dropped) and not section.missing


@pytest.mark.parametrize(("model", "network_class"), [("suprem", SwinUNETR), ("dae", DAE)])
def test_input_channels_are_adapted_at_all_convolutions_that_see_the_image(
    model: str, network_class: type[SwinUNETR]
) -> None:
    network = on_meta(network_class, channels=3)
    card = get_card(model)
    assert card.checkpoint is not None
    section = load(network, official(f"{model}_pretrain"), model, card.checkpoint.name)
    assert set(section.adapted) == {f"{key}.weight" for key in network.keys_to_in_proj}
    assert len(section.matched) == {"suprem": 157, "dae": 161}[model] - 3


@pytest.mark.parametrize(
    ("name", "container", "file"),
    [
        ("suprem_swinunetr", "net", lambda: official("suprem_pretrain", "module.")),
        ("swinunetr_ssl_50000", "model", self_supervised),
        ("dae_pretrain", "model", lambda: official("dae_pretrain")),
    ],
)
def test_files_are_recognised_by_what_they_hold(
    name: str, container: str, file: Callable[[], dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "download.pth"
    torch.save({container: file(), "epoch": 3}, path)
    check(get_official(name), path)
    found = [o.checkpoint.name for o in recognise(path, officials()) if o.card.name in ("suprem", "dae")]
    family = {"suprem_swinunetr", "swinunetr_ssl_50000"} if name != "dae_pretrain" else {name}
    assert name in found and set(found) <= family


# --- sizes, axes, precision --------------------------------------------------------------------------------------


@both
def test_any_size_is_taken(network_class: type[SwinUNETR]) -> None:
    network = small(network_class, num_classes=5, input_channels=2).eval()
    assert network.legal_size((32, 64, 96)) == [32, 64, 96]
    assert network.legal_size((32, 32, 32)) == network.legal_size((9, 20, 31)) == [32, 32, 64]
    for size in ((32, 64, 96), (33, 20, 47), (1, 1, 1)):
        with torch.no_grad():
            logits = network(torch.randn(1, 2, *size))
        assert logits.shape == (1, 5, *size) and logits.isfinite().all()


@both
def test_axes_xyz_sees_the_image_transposed(network_class: type[SwinUNETR]) -> None:
    reversed_axes = small(network_class, axes="xyz").eval()
    straight = small(network_class).eval()
    straight.load_state_dict(reversed_axes.state_dict())
    x = torch.randn(1, 1, 32, 40, 64)
    with torch.no_grad():
        by_hand = straight(x.transpose(2, 4).contiguous()).transpose(2, 4)
        torch.testing.assert_close(reversed_axes(x), by_hand)
        assert (straight(x) - by_hand).abs().max() > 0.01


@both
def test_gradients_reach_every_parameter(network_class: type[SwinUNETR]) -> None:
    network = small(network_class).train()
    network(torch.randn(1, 1, 32, 64, 64)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@both
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"])
def test_copies_behave_alike(network_class: type[SwinUNETR], clone: Callable[[Any], Any]) -> None:
    network = small(network_class).eval()
    x = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        assert torch.equal(clone(network)(x), network(x))


@both
def test_bfloat16_gives_float32_logits_close_by(
    network_class: type[SwinUNETR], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(network_class).eval()
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        high = network(x)
        monkeypatch.setenv("NNUNET_FM_BF16", "1")
        low = network(x)
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    assert (low - high).abs().mean() < 0.05 * high.std()
    network.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


@both
def test_memory_is_predicted_on_the_meta_device(network_class: type[SwinUNETR]) -> None:
    memory = training_memory(lambda: network_class(1, 24), (64, 64, 64), 1, 1, "adamw", cpu=True)
    assert memory.parameters > 4 * 62_187_786
    assert 1e9 < memory.activations < 2.2e9


# --- recipes -----------------------------------------------------------------------------------------------------


@both
def test_layers_decay_from_the_head_to_the_patch_embedding(network_class: type[SwinUNETR]) -> None:
    network = on_meta(network_class)
    groups = param_groups_layer_decay(
        network, weight_decay=0.1, no_weight_decay_list=network.no_weight_decay(), layer_decay=0.5, verbose=False
    )
    by_id = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    scale = {name: by_id[id(p)][0] for name, p in network.named_parameters()}
    order = ["swinViT.patch_embed.proj"]
    order += [f"swinViT.layers{stage}.0.blocks.{block}." for stage in range(1, 5) for block in range(2)]
    for depth, start in enumerate(order):
        assert {s for name, s in scale.items() if name.startswith(start)} == {0.5 ** (len(order) - depth)}
    for stage in range(1, 5):  # a merging goes with the block before it
        merging, block = (f"swinViT.layers{stage}.0.{part}" for part in ("downsample.norm.bias", "blocks.1.norm1.bias"))
        assert scale[merging] == scale[block]
    assert {s for name, s in scale.items() if not name.startswith("swinViT")} == {1.0}
    coarse = network.group_matcher(coarse=True)
    assert coarse["stem"] == network.group_matcher()["stem"] and coarse != network.group_matcher()


def test_bias_tables_do_not_decay() -> None:
    network = on_meta(SwinUNETR)
    exempt = network.no_weight_decay()
    assert len(exempt) == 8 and all(name.endswith("attn.relative_position_bias_table") for name in exempt)
    assert exempt <= dict(network.named_parameters()).keys()
