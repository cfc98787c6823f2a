"""SPAD-Nets: adaptive convolution, ViT, segmentation network of every patch depth, and how official files load."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.models.build import architecture, build_network
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks.spad_convolution import (
    SpatiallyAdaptiveConv3d,
    anisotropy_degree,
    depth_stride,
    sum_depth,
)
from nnunet_fm.networks.spad_vit import SpadViT, resample_positions, rotary_table, rotate
from nnunet_fm.networks.spadnet import SPADNet
from nnunet_fm.trainers.optimizer import parameter_groups
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest
from tests.helpers.official_weights import load_official
from tests.helpers.small_networks import count, shapes

pytestmark = pytest.mark.usefixtures("float32")

DEPTHS = (16, 8, 4, 2, 1)
PYRAMID = ("norms", "fpn")
"""Parts of the backbone that pre-training files lack."""

every_depth = pytest.mark.parametrize("depth", DEPTHS)


def tiny(channels: int = 1, classes: int = 3, **more: Any) -> SPADNet:
    sizes: dict[str, Any] = {"width": 24, "num_heads": 2, "out_blocks": (0, 1, 1, 2), "channels": (4, 4, 6, 6, 8, 8)}
    return SPADNet(channels, classes, **{"pos_embed_shape": (2, 3, 3), **sizes, **more})


def on_meta(*arguments: Any, **more: Any) -> SPADNet:
    with torch.device("meta"):
        return SPADNet(*arguments, **more)


def pretrained(width: int = 24) -> dict[str, Tensor]:
    """A pre-training file for `tiny`: three channels, cubic patches, its own grid of positions."""
    vit = SpadViT(3, pos_embed_shape=(5, 10, 10), width=width, depth=3, num_heads=2)
    for parameter in vit.parameters():
        nn.init.normal_(parameter)
    return vit.state_dict() | {"mask_token": torch.randn(1, 1, width), "mim_head.0.weight": torch.randn(2, 2)}


def load(network: SPADNet, state_dict: dict[str, Tensor]) -> Any:
    checkpoint = get_card("spadnet").checkpoint
    assert checkpoint is not None
    return load_official(network, state_dict, drop=checkpoint.drop, new=checkpoint.new).sections[0]


def test_padding_is_the_darkest_value() -> None:
    """nnU-Net pads with 0: with channels in [0, 1] that is air, for a network that was trained on [-1, 1]."""
    plain, shifted = tiny(2).eval(), tiny(2, unit_channels=[0]).eval()
    shifted.load_state_dict(plain.state_dict())
    image = torch.rand(1, 2, 32, 32, 32)
    image[:, :, 20:] = 0
    kept, symmetric = image.clone(), image.clone()
    symmetric[:, 0] = 2 * image[:, 0] - 1
    with torch.no_grad():
        torch.testing.assert_close(shifted(image), plain(symmetric))
    assert torch.equal(image, kept) and (symmetric[:, 0, 20:] == -1).all()


# --- adaptive convolution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "degree"),
    [
        ((1.0, 1.0, 1.0), 0),
        ((2.0, 1.5, 1.5), 0),
        ((0.5, 1.0, 1.0), 0),
        ((3.0, 0.75, 0.75), 2),
        ((3.0, 0.75, 1.5), 2),
        ((2.99, 0.75, 0.75), 1),
        ((3.0, 0.75000003, 0.75000003), 2),
        ((9.0, 1.62, 1.62), 2),
        ((8.0, 0.5, 0.5), 4),
        ((16.0, 0.5, 0.5), 5),
        ((1000.0, 0.5, 0.5), 5),
    ],
)
def test_the_degree_of_anisotropy_counts_halvings(spacing: tuple[float, ...], degree: int) -> None:
    assert anisotropy_degree(spacing, 16) == degree


def test_depth_is_halved_once_voxels_are_cubic() -> None:
    assert [depth_stride(16, degree) for degree in range(6)] == [16, 8, 4, 2, 1, 1]
    assert [depth_stride(2, 2, halvings) for halvings in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("degree", "halvings", "depth"), [(0, 0, 4), (1, 1, 4), (1, 0, 2), (3, 2, 2), (2, 0, 1), (9, 0, 1)]
)
def test_an_adaptive_convolution_sums_its_kernel_over_slices_that_are_missing(
    degree: int, halvings: int, depth: int
) -> None:
    """A volume of thick slices gives what the same volume gives with every slice repeated."""
    convolution = SpatiallyAdaptiveConv3d(2, 3, 4, 4)
    x = torch.randn(1, 2, 2 * depth, 8, 12)
    repeated = x.repeat_interleave(4 // depth, dim=2)
    torch.testing.assert_close(convolution(x, degree, halvings), convolution(repeated))


def test_an_adaptive_convolution_of_three_slices_becomes_one_of_one() -> None:
    convolution = SpatiallyAdaptiveConv3d(2, 3, 3, 2, padding=1)
    x = torch.randn(1, 2, 5, 8, 8)
    weight = convolution.weight.sum(2, keepdim=True)
    expected = F.conv3d(x, weight, convolution.bias, (1, 2, 2), (0, 1, 1))
    torch.testing.assert_close(convolution(x, 1), expected)
    assert convolution(x).shape == (1, 3, 3, 4, 4)


def test_a_kernel_without_a_summed_form_is_refused() -> None:
    with fails("argument-value", "3", "4"):
        SpatiallyAdaptiveConv3d(1, 1, 3, 4, padding=1)(torch.randn(1, 1, 8, 8, 8), 1)
    with fails("argument-value", "5"):
        SpatiallyAdaptiveConv3d(1, 1, 5, 2, padding=2)(torch.randn(1, 1, 8, 8, 8), 1)
    with fails("argument-value", "3"):
        sum_depth(torch.randn(1, 1, 4, 1, 1), 3)


# --- the ViT -----------------------------------------------------------------------------------------------------


def test_the_pretraining_vit_has_the_official_names_shapes_and_count() -> None:
    with torch.device("meta"):
        vit = SpadViT(3, pos_embed_shape=(5, 10, 10))
    assert shapes(vit) == manifest("pumit_vit_pretrain")["state_dict"]
    assert count(vit) == 94_930_944


def test_attention_depends_on_distances_only() -> None:
    """Rotary embedding: the same query and key, moved together along any axis, keep their product."""
    cos, sin = rotary_table((4, 4, 4), 8, torch.device("cpu"))
    query, key = torch.randn(2, 8)
    turned = [rotate(t.expand(1, 1, len(cos), -1), (cos, sin))[0, 0] for t in (query, key)]
    products = turned[0] @ turned[1].T
    assert products[0, 0] == pytest.approx((query @ key).item(), rel=1e-5)  # the class token is not turned

    def at(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        first, second = (1 + z * 16 + y * 4 + x for z, y, x in (a, b))
        return products[first, second].item()

    assert at((1, 2, 0), (0, 1, 3)) == pytest.approx(at((2, 3, 0), (1, 2, 3)), rel=1e-4)
    for other in ((2, 0, 0), (0, 2, 0), (0, 0, 2)):
        assert at((0, 0, 0), other) != pytest.approx(at((0, 0, 0), (0, 0, 0)), rel=1e-3)


def test_positions_are_averaged_along_shrinking_axes_and_interpolated_along_growing_ones() -> None:
    positions = torch.randn(1, 5, 4, 6, 3)
    assert resample_positions(positions, (4, 6, 3)) is positions
    torch.testing.assert_close(resample_positions(positions, (2, 3, 3)), F.avg_pool3d(positions, (2, 2, 1)))
    mixed = resample_positions(positions, (2, 6, 7))
    shrunk = F.avg_pool3d(positions, (2, 1, 1))
    torch.testing.assert_close(mixed, F.interpolate(shrunk, (2, 6, 7), mode="trilinear", align_corners=False))


def test_heads_that_cannot_be_turned_are_refused() -> None:
    with fails("argument-value", "4"):
        SpadViT(1, pos_embed_shape=(1, 1, 1), width=12, num_heads=2)


# --- the segmentation network ------------------------------------------------------------------------------------


def test_the_network_has_the_official_names_shapes_and_counts() -> None:
    network = on_meta(1, 24)
    assert shapes(network) == manifest("pumit")["state_dict"]
    assert count(network) == 134_011_232 == get_card("pumit").parameters[24]
    assert count(on_meta(1, 24, num_outputs=1)) == 134_000_408


def test_cubic_patches_give_the_published_backbone() -> None:
    network = on_meta(1, 24, spad_patch_depth=16, pos_embed_shape=(6, 6, 6))
    assert round(count(network.backbone) / 1e6, 1) == 102.6
    published = on_meta(1, 24)
    assert shapes(network.backbone.fpn) == shapes(published.backbone.fpn)


def test_scales_and_legal_sizes_of_the_published_network() -> None:
    network = tiny()
    assert network.deep_supervision_scales == [[1, 1, 1], [1, 0.5, 0.5], [1, 0.25, 0.25], [0.5, 0.125, 0.125]]
    assert network.size_multiple == (8, 32, 32)
    assert network.legal_size((48, 192, 192)) == [48, 192, 192]
    assert network.legal_size((1, 30, 1)) == [8, 32, 64]
    assert [tiny(spad_patch_depth=d).size_multiple[0] for d in DEPTHS] == [32, 16, 8, 4, 2]


@every_depth
def test_outputs_have_the_size_of_the_input(depth: int) -> None:
    network = tiny(2, 5, spad_patch_depth=depth, deep_supervision=True).eval()
    scales = network.deep_supervision_scales
    assert scales is not None and scales[0] == [1, 1, 1] and [s[1] for s in scales] == [1, 0.5, 0.25, 0.125]
    for size in ((network.size_multiple[0] * 2, 32, 32), (13, 40, 21), (1, 1, 1)):
        with torch.no_grad():
            outputs = network(torch.randn(1, 2, *size))
        assert [tuple(out.shape) for out in outputs] == [
            (1, 5, *(round(edge * s) for edge, s in zip(size, scale, strict=True))) for scale in scales
        ]
        assert all(out.isfinite().all() for out in outputs)


@every_depth
def test_thick_slices_are_neither_mixed_nor_halved(depth: int) -> None:
    """In every convolution the kernel is one slice deep while voxels are longer than wide, and so is every stride."""
    network = tiny(spad_patch_depth=depth)
    ratio = 16 // depth  # slices are so much thicker than pixels are wide
    decoder = network.decoder
    layers = [decoder.encode_layers[0].blocks[0], decoder.encode_layers[1].blocks[0]]
    layers += [*(layer.conv for layer in decoder.decode_layers), *(layer.conv for layer in decoder.inner.layers)]
    for layer, plane in zip(layers, (1, 2, 1, 2, 4, 8, 16), strict=True):
        assert layer.conv2.conv.kernel_size == ((3 if plane >= ratio else 1), 3, 3)
    steps = [*decoder.decode_layers, *decoder.inner.layers]
    for step, plane in zip(steps, (1, 2, 4, 8, 16), strict=True):
        assert step.upsample.stride == ((2 if plane >= ratio else 1), 2, 2)


def test_the_number_of_outputs_is_that_of_heads() -> None:
    single = tiny(num_outputs=1, deep_supervision=True)
    assert single.deep_supervision_scales is None
    assert isinstance(single(torch.randn(1, 1, 8, 32, 64)), Tensor)
    assert len(tiny(num_outputs=3, deep_supervision=True)(torch.randn(1, 1, 8, 32, 64))) == 3


def test_without_deep_supervision_there_is_only_the_finest_output() -> None:
    network = tiny(deep_supervision=True).eval()
    x = torch.randn(1, 1, 8, 32, 64)
    with torch.no_grad():
        outputs = network(x)
        network.decoder.deep_supervision = False  # as stock nnU-Net sets it
        assert torch.equal(network(x), outputs[0]) and not network.deep_supervision
    assert shapes(network) == shapes(tiny())


@pytest.mark.parametrize(
    "wrong", [{"spad_patch_depth": 3}, {"spad_patch_depth": "auto"}, {"num_outputs": 0}, {"num_outputs": 5}]
)
def test_illegal_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with fails("argument-value", next(iter(wrong))):
        tiny(**wrong)


@every_depth
@pytest.mark.parametrize("adapter", ["full", "freeze"])
def test_every_trained_parameter_gets_a_gradient(depth: int, adapter: str) -> None:
    network = tiny(spad_patch_depth=depth, deep_supervision=True)
    apply_adapter(adapter, network)
    network.train()
    sum(out.square().mean() for out in network(torch.randn(2, 1, 32, 32, 32))).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    idle = {name for name, p in network.named_parameters() if not p.requires_grad}
    vit = {f"backbone.{n}" for n in pretrained() if n not in ("mask_token", "mim_head.0.weight")}
    assert idle == ({"backbone.norm.weight", "backbone.norm.bias"} if adapter == "full" else vit)


def test_heads_without_an_output_are_not_trained() -> None:
    network = tiny(deep_supervision=False)
    network(torch.randn(1, 1, 8, 32, 64)).square().mean().backward()
    assert all((p.grad is not None) is p.requires_grad for p in network.parameters())
    assert [head.weight.requires_grad for head in network.seg_heads] == [True, False, False, False]


def test_lora_changes_linear_layers_of_the_vit_alone() -> None:
    network = tiny(deep_supervision=True)
    apply_adapter("lora", network)
    sum(out.square().mean() for out in network(torch.randn(1, 1, 8, 32, 64))).backward()
    trained = {name for name, p in network.named_parameters() if p.requires_grad and p.grad is not None}
    inside = {name for name in trained if name.startswith("backbone.") and name.split(".")[1] not in PYRAMID}
    assert inside and all(".lora_" in name and name.startswith("backbone.blocks.") for name in inside)
    assert {name.split(".")[4] for name in inside} == {"q_proj", "k_proj", "v_proj", "proj", "w1", "w2", "w3"}
    assert {name.split(".")[0] for name in trained - inside} == {"backbone", "decoder", "seg_heads"}


def test_positions_class_token_and_attention_biases_do_not_decay() -> None:
    network = tiny()
    names = network.no_weight_decay()
    assert names <= {name for name, _ in network.named_parameters()}
    assert len(names) == 2 + 2 * 3 and {"backbone.cls_token", "backbone.pos_embed"} <= names


def test_layer_decay_goes_block_by_block() -> None:
    network = tiny(deep_supervision=True)
    recipe = get_card("spadnet").variants["mission"].recipe
    groups = parameter_groups(network, recipe.model_copy(update={"layer_decay": 0.5}))
    names = {id(p): name for name, p in network.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    order = [
        "backbone.pos_embed",
        *(f"backbone.blocks.{i}.mlp.w1.weight" for i in range(3)),
        "decoder.inner.laterals.0.conv.weight",
    ]
    assert [rates[name] / recipe.learning_rate for name in order] == pytest.approx([2.0**-i for i in (4, 3, 2, 1, 0)])
    assert rates["backbone.norms.0.weight"] == rates["seg_heads.0.weight"] == pytest.approx(recipe.learning_rate)


def test_declared_keys_exist() -> None:
    one, four = tiny(), tiny(4)
    for key in (one.key_to_encoder, one.key_to_stem):
        assert list(one.get_submodule(key).parameters())
    assert one.key_to_lpe is not None and one.get_parameter(one.key_to_lpe).shape == (1, 24, 2, 3, 3)
    names = {name for name, _ in [*one.named_modules(), *one.named_parameters()]}
    assert set(one.encoder_keys) | set(one.unused_keys) <= names
    differing = {name for name, shape in shapes(one).items() if shape != shapes(four)[name]}
    stem = "decoder.encode_layers.0.blocks.0.conv1.conv.weight"
    assert differing == {f"{key}.weight" for key in one.keys_to_in_proj} | {stem}
    classes = {name for name, shape in shapes(one).items() if shape != shapes(tiny(1, 7))[name]}
    assert classes == {name for name in shapes(one) if name.startswith(one.key_to_head)}


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"])
def test_copies_behave_alike(clone: Callable[[Any], Any]) -> None:
    network = tiny(deep_supervision=True).eval()
    twin = clone(network)
    x = torch.randn(1, 1, 8, 32, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(twin(x), network(x), strict=True))
    twin.decoder.deep_supervision = False
    assert network.deep_supervision and not twin.deep_supervision


def test_it_runs_forward_and_backward_on_the_meta_device() -> None:
    network = on_meta(1, 24, deep_supervision=True)
    outputs = network(torch.empty(2, 1, 48, 192, 192, device="meta"))
    assert [tuple(out.shape[2:]) for out in outputs] == [(48, 192, 192), (48, 96, 96), (48, 48, 48), (24, 24, 24)]
    sum(out.square().mean() for out in outputs).backward()
    assert network.backbone.pos_embed.grad is not None


def test_bfloat16_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny(deep_supervision=True)
    seen: list[torch.dtype] = []
    network.backbone.blocks[0].attn.proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0].dtype))
    x = torch.randn(1, 1, 16, 32, 64)
    high = network(x)
    monkeypatch.setenv("NNUNET_FM_BF16", "1")
    low = network(x)
    assert seen == [torch.float32, torch.bfloat16]
    for a, b in zip(low, high, strict=True):
        assert a.dtype == torch.float32 and 0 < (a - b).abs().mean() < 0.05 * b.std()
    sum(out.square().mean() for out in low).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "stated", "depth"),
    [
        ([2.0, 1.5, 1.5], 4, 4),
        ([2.0, 1.5, 1.5], "auto", 16),
        ([3.0, 0.75, 0.75], "auto", 4),
        ([9.0, 0.5, 0.5], "auto", 1),
    ],
)
def test_a_plan_may_derive_the_patch_depth_from_its_spacing(
    spacing: list[float], stated: int | str, depth: int
) -> None:
    entry = architecture(
        get_card("spadnet"), patch_size=[96, 96, 96], spacing=spacing, changes={"spad_patch_depth": stated}
    )
    assert entry["arch_kwargs"]["spad_patch_depth"] == depth
    with torch.device("meta"):
        network = build_network(entry, 2, 3)
    assert isinstance(network, SPADNet)
    assert network.backbone.patch_embed.proj.weight.shape == (768, 2, depth, 16, 16)


def test_an_illegal_patch_depth_is_refused_when_planning() -> None:
    with fails("argument-value", "spad_patch_depth", "3"):
        SPADNet.resolve_arguments({"spad_patch_depth": 3}, patch_size=[96] * 3, spacing=[1.0] * 3)


def test_the_variants_of_the_card_have_legal_patches() -> None:
    card = get_card("pumit")
    for variant in card.variants.values():
        assert on_meta(1, 2).legal_size(variant.geometry.patch) == variant.geometry.patch
        assert all(edge % card.network.multiple == 0 for edge in variant.geometry.patch)


# --- official files ----------------------------------------------------------------------------------------------


@every_depth
def test_a_pretraining_file_computes_what_the_adaptive_vit_does(depth: int) -> None:
    """The kernel summed on loading gives the tokens of the adaptive convolution at that anisotropy."""
    file = pretrained()
    network = tiny(3, spad_patch_depth=depth, pos_embed_shape=(5, 10, 10))
    section = load(network, file)
    vit = SpadViT(3, pos_embed_shape=(5, 10, 10), width=24, depth=3, num_heads=2)
    vit.load_state_dict({name: file[name] for name in vit.state_dict()})
    x = torch.randn(1, 3, 3 * depth, 32, 48)
    with torch.no_grad():
        ours, _ = network.backbone.forward_blocks(x)
        theirs, grid = vit.forward_blocks(x, int(math.log2(16 / depth)))
    assert tuple(grid) == (3, 2, 3)
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-3, atol=1e-4)
    assert set(section.dropped) == {"mask_token", "mim_head.0.weight"}
    assert set(section.adapted) == (set() if depth == 16 else {"backbone.patch_embed.proj.weight"})
    assert len(section.matched) == len(file) - 2 - len(section.adapted)
    assert {name.split(".")[0] for name in section.missing} == {"backbone", "decoder", "seg_heads"}


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_and_positions_of_a_pretraining_file_are_adapted(channels: int) -> None:
    file = pretrained()
    network = tiny(channels, pos_embed_shape=(7, 4, 12))
    section = load(network, file)
    assert set(section.adapted) == {"backbone.patch_embed.proj.weight", "backbone.pos_embed"}
    kernel = file["patch_embed.proj.weight"].reshape(24, 3, 4, 4, 16, 16).sum((1, 3)) / channels
    for channel in network.backbone.patch_embed.proj.weight.unbind(1):
        torch.testing.assert_close(channel, kernel, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.backbone.pos_embed, resample_positions(file["pos_embed"], (7, 4, 12)))


def test_the_released_file_fits_the_card() -> None:
    """All names and shapes of the pre-training manifest, with those that the file holds beside the ViT."""
    file = {
        name: torch.zeros(shape, device="meta") for name, shape in manifest("pumit_vit_pretrain")["state_dict"].items()
    }
    more = ("mask_token", "mim_head.0.weight", "mim_head.2.bias", "tokenizer.encoder.weight", "rope.freqs_cos")
    card = get_card("spadnet")
    with torch.device("meta"):
        network = build_network(architecture(card, patch_size=[96] * 3, spacing=[2.0, 1.5, 1.5]), 1, 24)
    assert isinstance(network, SPADNet)
    section = load(network, file | {name: torch.zeros(1, device="meta") for name in more})
    assert set(section.dropped) == set(more) and len(section.adapted) == 2
    assert len(section.matched) + len(section.missing) + 2 == len(network.state_dict())
    parts = {tuple(name.split(".")[:2]) for name in section.missing if name.startswith("backbone.")}
    assert parts == {("backbone", part) for part in PYRAMID}


def test_a_fine_tuned_file_of_the_whole_network_loads() -> None:
    trained = tiny(1, 5).state_dict()
    network = tiny(1, 5)
    section = load(network, trained)
    assert len(section.matched) == len(trained) and not section.adapted and not section.missing
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


def test_a_fine_tuned_file_is_fitted_to_channels_classes_and_outputs() -> None:
    trained = tiny(1, 5).state_dict()
    network = tiny(3, 2, num_outputs=1, pos_embed_shape=(2, 2, 3))
    section = load(network, trained)
    stem = "decoder.encode_layers.0.blocks.0.conv1.conv.weight"
    assert set(section.adapted) == {"backbone.patch_embed.proj.weight", "backbone.pos_embed", stem}
    torch.testing.assert_close(network.state_dict()[stem], trained[stem].expand(-1, 3, -1, -1, -1) / 3)
    assert set(section.missing) == {"seg_heads.0.weight", "seg_heads.0.bias"}
    assert {name for name in trained if name.startswith("seg_heads.")} == set(section.dropped)


def test_a_file_of_another_model_or_depth_is_refused_in_a_sentence() -> None:
    with fails("weights-other", "SPAD"):
        load(tiny(), {"conv_blocks_context.0.weight": torch.zeros(1)})
    with fails("weights-other", "SPAD"):  # EVA-02, the same ViT for photographs
        load(tiny(), {"patch_embed.proj.weight": torch.zeros(24, 3, 14, 14), "pos_embed": torch.zeros(1, 257, 24)})
    with fails("weights-depth", "spad_patch_depth", "4"):
        load(tiny(spad_patch_depth=16), tiny().state_dict())
    with fails("weights-mismatch"):
        load(tiny(), pretrained(width=32))
