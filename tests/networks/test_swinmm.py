"""SwinMM: three views, their fusion in training and prediction, the mutual loss, official files."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.models.build import architecture, build_network
from nnunet_fm.models.registry import get_card
from nnunet_fm.networks import swinmm
from nnunet_fm.networks.swinmm import MutualLoss, SwinMM, draw_views, exchange, mean_probability, resampled
from nnunet_fm.plans.memory import training_memory
from nnunet_fm.weights.load import FileRules, load_checkpoint
from nnunet_fm.weights.report import PartReport
from tests.helpers.errors import fails
from tests.helpers.official_files import manifest, write_official
from tests.helpers.small_networks import count, shapes

pytestmark = pytest.mark.usefixtures("float32")

SIZE = (32, 64, 32)
CLASSES = 3


@pytest.fixture
def network() -> SwinMM:
    """A narrow one, for speed."""
    network = narrow()
    nn.init.normal_(network.cross_atte6.position_embeddings)
    network.out.conv.conv.weight.data *= 10  # confident and different views
    return network


def narrow() -> SwinMM:
    return SwinMM(1, CLASSES, feature_size=12)


def meta(channels: int = 1, classes: int = 24, **arguments: Any) -> SwinMM:
    with torch.device("meta"):
        return SwinMM(channels, classes, **arguments)


def six(network: SwinMM, x: Tensor) -> list[Tensor]:
    """The six outputs of the official test-time passes, in the frame of the input, one pass after the other."""
    outputs = []
    for first, second in ((0, 1), (1, 2), (2, 0)):
        a, b = network.forward_views(exchange(x, first), exchange(x, second), (first, second))
        outputs += [exchange(a, first), exchange(b, second)]
    return outputs


# --- names, shapes, counts ---------------------------------------------------------------------------------------


def test_names_shapes_and_counts_are_the_official_ones() -> None:
    official = manifest("swinmm")
    assert shapes(meta()) == official["state_dict"] and len(official["state_dict"]) == 176
    assert count(meta()) == official["num_parameters"] == 73_112_586
    assert count(meta(fusion_depth=2)) == 75_476_490


def test_only_the_declared_parts_depend_on_channels_classes_and_grid() -> None:
    one = shapes(meta())
    for other, keys in (
        (shapes(meta(channels=4)), tuple(f"{key}.weight" for key in meta().keys_to_in_proj)),
        (shapes(meta(classes=5)), tuple(f"out.conv.conv.{kind}" for kind in ("weight", "bias"))),
        (shapes(meta(grid=3)), ("cross_atte6.position_embeddings",)),
    ):
        assert one.keys() == other.keys()
        assert {name for name in one if one[name] != other[name]} == set(keys)


def test_the_card_builds_the_network_of_the_official_counts() -> None:
    card = get_card("swinmm")
    geometry = card.variants["mission"].geometry
    entry = architecture(card, patch_size=geometry.patch, spacing=[2.0, 1.5, 1.5])
    with torch.device("meta"):
        network = build_network(entry, 1, 24)
    assert shapes(network) == manifest("swinmm")["state_dict"]
    assert network.reversed_axes and isinstance(network, SwinMM) and network.cross_atte6.grid == 2


# --- views -------------------------------------------------------------------------------------------------------


def test_views_exchange_axes_and_undo_themselves() -> None:
    x = torch.rand(1, 2, 3, 4, 5)
    assert torch.equal(exchange(x, 0), x)
    assert exchange(x, 1).shape == (1, 2, 4, 3, 5) and exchange(x, 2).shape == (1, 2, 5, 4, 3)
    assert exchange(x, 1)[0, 0, 3, 2, 1] == x[0, 0, 2, 3, 1] and exchange(x, 2)[0, 0, 3, 2, 1] == x[0, 0, 1, 2, 3]
    assert all(torch.equal(exchange(exchange(x, view), view), x) for view in range(3))


def test_every_ordered_pair_of_different_views_is_drawn_alike_often_and_repeatably() -> None:
    drawn = [draw_views() for _ in range(600)]
    assert len(set(drawn)) == 6 and all(a != b for a, b in drawn)
    assert all(60 < drawn.count(pair) < 140 for pair in set(drawn))
    torch.manual_seed(0)
    assert [draw_views() for _ in range(600)] == drawn


def test_training_gives_the_official_pass_of_the_views_drawn_in_the_frame_of_the_input(
    network: SwinMM, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 1, *SIZE)
    for views in ((2, 1), (0, 2)):
        monkeypatch.setattr(swinmm, "draw_views", lambda views=views: views)
        with torch.no_grad():
            outputs = network(x)
            expected = network.forward_views(exchange(x, views[0]), exchange(x, views[1]), views)
        assert isinstance(outputs, list) and [out.shape for out in outputs] == [(2, CLASSES, *SIZE)] * 2
        assert all(torch.equal(exchange(out, v), e) for out, v, e in zip(outputs, views, expected, strict=True))


def test_views_meet_in_the_frame_of_the_first_or_of_the_volume(network: SwinMM) -> None:
    """A fusion that only adds positions shows the frame in which they were added."""
    place = torch.arange(4.0 * 3 * 2).view(1, 1, 4, 3, 2)
    network._modules["cross_atte6"] = _AddPlaces(place)
    for views in ((0, 1), (1, 2), (2, 1), (2, 0)):
        first, second = views
        network.in_origin_view = True
        zeros = [torch.zeros_like(exchange(place, view)) for view in views]
        a, b = network.fuse(zeros[0], zeros[1], views)
        assert torch.equal(a, exchange(place, first)) and torch.equal(b, exchange(place, second))
        network.in_origin_view = False
        zeros = [torch.zeros_like(place), torch.zeros_like(exchange(exchange(place, first), second))]
        a, b = network.fuse(zeros[0], zeros[1], views)
        assert torch.equal(a, place) and torch.equal(b, exchange(exchange(place, first), second))


class _AddPlaces(nn.Module):
    def __init__(self, place: Tensor) -> None:
        super().__init__()
        self.place = place

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + self.place, b + self.place


# --- prediction --------------------------------------------------------------------------------------------------


def test_evaluation_gives_the_logarithm_of_the_mean_probability_of_six_passes(network: SwinMM) -> None:
    x = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        out = network.eval()(x)
        outputs = six(network, x)
    mean = torch.stack([o.softmax(1) for o in outputs]).mean(0)
    assert all((o.softmax(1) - mean).abs().max() > 0.05 for o in outputs)
    assert out.dtype == torch.float32 and out.shape == (1, CLASSES, *SIZE)
    torch.testing.assert_close(out.exp(), mean, atol=1e-6, rtol=1e-5)
    network.regions = True
    with torch.no_grad():
        out = network(x)
    mean = torch.stack([o.sigmoid() for o in outputs]).mean(0)
    torch.testing.assert_close(out.sigmoid(), mean, atol=1e-6, rtol=1e-5)


def test_each_view_is_encoded_once_and_decoded_twice(network: SwinMM) -> None:
    calls = {"swinViT": 0, "encoder1": 0, "cross_atte6": 0, "decoder1": 0}

    def counter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    for name in calls:
        network.get_submodule(name).register_forward_hook(counter(name))
    with torch.no_grad():
        network.eval()(torch.rand(1, 1, *SIZE))
    assert calls == {"swinViT": 3, "encoder1": 3, "cross_atte6": 3, "decoder1": 6}


@pytest.mark.parametrize("regions", [False, True])
def test_no_probability_is_lost_and_none_overflows_half_precision(regions: bool) -> None:
    a, b = torch.tensor([[0.0, -30.0, -1000.0]]), torch.tensor([[0.0, -60.0, -3e4]])
    out = mean_probability(iter([a, b]), regions)
    first, second = (x.double().sigmoid() if regions else x.double().softmax(1) for x in (a, b))
    mean = (first + second) / 2
    torch.testing.assert_close(
        out.double()[:, :2], (mean.logit() if regions else mean.log())[:, :2], atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(out[:, 2], torch.tensor([-80.0]))
    weighted = sum(10 * out.half() for _ in range(64))
    assert isinstance(weighted, Tensor) and weighted.dtype == torch.half and weighted.isfinite().all()
    assert mean_probability(iter([a.bfloat16()] * 2), regions).dtype == torch.float32


CLASS_LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
REGION_LABELS = LabelManager({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": [3]}, [1, 2, 3])


@pytest.mark.parametrize("labels", [CLASS_LABELS, REGION_LABELS], ids=["classes", "regions"])
def test_stock_prediction_of_a_window_is_the_mean_of_six_probabilities(network: SwinMM, labels: LabelManager) -> None:
    """What the predictor gets is a state dict and a network that knows nothing of the labels."""
    network.wrap_loss(nn.Identity(), regions=labels.has_regions)
    saved = pickle.loads(pickle.dumps(network.state_dict()))
    fresh = narrow()
    fresh.load_state_dict(saved)
    assert labels.num_segmentation_heads == CLASSES and fresh.regions is labels.has_regions
    predictor = nnUNetPredictor(use_gaussian=False, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network, predictor.label_manager = fresh, labels
    predictor.configuration_manager = SimpleNamespace(patch_size=SIZE)
    predictor.allowed_mirroring_axes = None
    image = torch.rand(1, *SIZE)
    logits = predictor.predict_sliding_window_return_logits(image)
    assert isinstance(logits, Tensor)
    probabilities = labels.apply_inference_nonlin(logits)
    with torch.no_grad():
        outputs = six(fresh.eval(), image[None])
    mean = torch.stack([o.sigmoid() if labels.has_regions else o.softmax(1) for o in outputs]).mean(0)[0]
    torch.testing.assert_close(probabilities, mean, atol=1e-3, rtol=0)  # nnU-Net keeps logits in half precision
    ours = labels.convert_probabilities_to_segmentation(probabilities)
    theirs = labels.convert_probabilities_to_segmentation(mean)
    decisive = (mean - 0.5).abs().amin(0) if labels.has_regions else mean.topk(2, dim=0)[0].diff(dim=0).abs()[0]
    assert torch.equal(ours[decisive > 1e-3], theirs[decisive > 1e-3]) and (decisive > 1e-3).float().mean() > 0.9
    assert len(torch.unique(theirs)) > 1


def test_only_a_training_on_regions_changes_the_state_dict(network: SwinMM) -> None:
    names = set(manifest("swinmm")["state_dict"])
    assert isinstance(network.wrap_loss(nn.L1Loss()), MutualLoss)
    assert set(network.state_dict()) == names
    network.wrap_loss(nn.L1Loss(), regions=True)
    marked = network.state_dict()
    assert set(marked) - names == {"regions"}
    for other in (narrow(), nn.Sequential(narrow())):
        prefix = "" if isinstance(other, SwinMM) else "0."
        inner = other if isinstance(other, SwinMM) else other[0]
        other.load_state_dict({f"{prefix}{name}": tensor for name, tensor in marked.items()})
        assert inner.regions
        other.load_state_dict({f"{prefix}{name}": tensor for name, tensor in marked.items() if name in names})
        assert not inner.regions


# --- any size and order of axes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 33, 50), pytest.param((7, 32, 32), marks=pytest.mark.slow)])
def test_any_size_is_padded_and_cropped(network: SwinMM, size: tuple[int, int, int]) -> None:
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        assert [out.shape for out in network(x)] == [(1, CLASSES, *size)] * 2
        out = network.eval()(x)
        z, y, x_axis = (full - edge for edge, full in zip(size, network.legal_size(size), strict=True))
        padded = network(F.pad(x, (0, x_axis, 0, y, 0, z), mode="replicate"))
    assert torch.equal(out, padded[:, :, : size[0], : size[1], : size[2]])


def test_reversed_axes_are_those_of_the_transposed_volume(network: SwinMM) -> None:
    x = torch.rand(1, 1, 32, 40, 64)
    with torch.no_grad():
        straight = network.eval()(x.transpose(2, 4)).transpose(2, 4)
        network.reversed_axes = True
        out = network(x)
    assert out.shape == (1, CLASSES, 32, 40, 64)
    torch.testing.assert_close(out, straight)


# --- positions ---------------------------------------------------------------------------------------------------


def test_positions_are_resampled_only_where_the_grid_differs() -> None:
    positions = torch.rand(1, 8, 5)
    assert resampled(positions, torch.Size((2, 2, 2))) is positions
    ramp = torch.tensor([0.0, 0, 0, 0, 6, 6, 6, 6]).view(1, 8, 1)  # along the first axis
    cube = resampled(ramp, (3, 1, 2)).view(3, 1, 2)
    torch.testing.assert_close(cube[:, 0, 0], torch.tensor([0.0, 3.0, 6.0]))
    assert torch.equal(cube[..., 0], cube[..., 1])


def test_positions_reach_the_output_and_follow_the_patch(network: SwinMM) -> None:
    fusion = network.cross_atte6
    a, b = torch.rand(2, 1, 192, 3, 1, 2).unbind()
    with torch.no_grad():
        out = fusion(a, b)
        fusion.position_embeddings.zero_()
        without = fusion(a, b)
    assert [o.shape for o in out] == [(1, 192, 3, 1, 2)] * 2
    assert not torch.allclose(out[0], without[0], atol=1e-3)


# --- the mutual loss ---------------------------------------------------------------------------------------------


def stock_loss(regions: bool, ignore_label: int | None = None) -> nn.Module:
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    if regions:
        return DC_and_BCE_loss({}, dice, use_ignore_label=False, dice_class=MemoryEfficientSoftDiceLoss)
    return DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


def official_mutual(a: Tensor, b: Tensor) -> Tensor:
    """Mean over both views of KLDivLoss with element mean."""
    kl = nn.KLDivLoss()
    with pytest.warns(UserWarning, match="reduction"):
        return (kl(a.log_softmax(1), b.softmax(1)) + kl(b.log_softmax(1), a.softmax(1))) / 2


def test_the_mutual_loss_is_the_official_one_with_gradients_through_both_views() -> None:
    a, b = torch.randn(2, 2, 4, 5, 6, 7).mul(3).unbind()
    a, b = a.requires_grad_(), b.requires_grad_()
    target = torch.randint(4, (2, 1, 5, 6, 7)).float()
    loss = stock_loss(False)
    ours = MutualLoss(loss, False)([a, b], target)
    gradients = torch.autograd.grad(ours, [a, b])
    official = (loss(a, target) + loss(b, target)) / 2 + official_mutual(a, b)
    torch.testing.assert_close(ours, official)
    expected = torch.autograd.grad(official, [a, b])
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-4)
    assert official_mutual(a, b) > 0.1


def test_a_region_diverges_as_two_exclusive_classes_do() -> None:
    a, b = torch.randn(2, 2, 1, 5, 6, 7).mul(3).unbind()
    target = torch.randint(2, (2, 1, 5, 6, 7)).float()
    loss = stock_loss(True)
    ours = MutualLoss(loss, True)([a, b], target) - (loss(a, target) + loss(b, target)) / 2
    twice = [torch.cat((torch.zeros_like(x), x), dim=1) for x in (a, b)]
    torch.testing.assert_close(ours, official_mutual(*twice), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_equal_views_cost_nothing_more_and_extreme_ones_stay_finite(regions: bool) -> None:
    x = torch.randn(1, 3, 4, 4, 4)
    target = torch.randint(2, (1, 3 if regions else 1, 4, 4, 4)).float()
    loss = stock_loss(regions)
    torch.testing.assert_close(MutualLoss(loss, regions)([x, x], target), loss(x, target))
    torch.testing.assert_close(MutualLoss(loss, regions)(x, target), loss(x, target))
    a, b = (torch.full((1, 3, 4, 4, 4), v) * torch.tensor([1.0, -1, 0]).view(1, 3, 1, 1, 1) for v in (300.0, -300.0))
    a.requires_grad_()
    value = MutualLoss(loss, regions)([a, b], target)
    value.backward()
    assert value.isfinite() and a.grad is not None and a.grad.isfinite().all()


def test_ignored_voxels_take_part_in_the_divergence_alone() -> None:
    a, b = torch.randn(2, 1, 3, 4, 4, 4).unbind()
    target = torch.randint(3, (1, 1, 4, 4, 4)).float()
    target[..., :2] = 3
    loss = stock_loss(False, ignore_label=3)
    ours = MutualLoss(loss, False)([a, b], target)
    torch.testing.assert_close(ours, (loss(a, target) + loss(b, target)) / 2 + official_mutual(a, b))


def test_a_training_step_reaches_every_parameter(network: SwinMM) -> None:
    x, target = torch.rand(1, 1, *SIZE), torch.randint(CLASSES, (1, 1, *SIZE)).float()
    loss = network.wrap_loss(stock_loss(False))
    value = loss(network(x), target)
    value.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert value.isfinite() and without == []
    network.eval()
    with torch.no_grad():
        out = network(x)
        assert isinstance(out, Tensor) and torch.equal(loss(out, target), stock_loss(False)(out, target))


def test_a_seeded_training_step_repeats(network: SwinMM) -> None:
    x = torch.rand(1, 1, *SIZE)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(network(x))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- optimiser ---------------------------------------------------------------------------------------------------


def test_layer_decay_slows_the_early_layers_and_spares_positions_and_norms(network: SwinMM) -> None:
    groups = param_groups_layer_decay(
        network, weight_decay=0.1, no_weight_decay_list=network.no_weight_decay(), layer_decay=0.75
    )
    by_id = {id(p): group for group in groups for p in group["params"]}
    found = {name: by_id[id(p)] for name, p in network.named_parameters()}
    block = "swinViT.layers{}.0.blocks.{}.mlp.linear1.weight"
    layers = [["swinViT.patch_embed.proj.weight"]]
    for stage in range(1, 5):  # a merging goes with the block before it
        merging = f"swinViT.layers{stage}.0.downsample.reduction.weight"
        layers += [[block.format(stage, 0)], [block.format(stage, 1), merging]]
    layers.append(["encoder1.layer.conv1.conv.weight", "encoder10.layer.conv1.conv.weight", "out.conv.conv.weight"])
    layers[-1] += ["decoder5.transp_conv.conv.weight", "cross_atte6.layer.0.attn.query.weight"]
    for below, names in enumerate(reversed(layers)):
        assert [found[name]["lr_scale"] for name in names] == pytest.approx([0.75**below] * len(names))
    undecayed = {name for name, group in found.items() if group["weight_decay"] == 0}
    assert undecayed == {name for name, p in network.named_parameters() if p.ndim == 1} | network.no_weight_decay()
    assert len(network.no_weight_decay()) == 9


# --- official files ----------------------------------------------------------------------------------------------


def section(network: SwinMM, file: Path, checkpoint: int) -> PartReport:
    entry = get_card("swinmm").checkpoints[checkpoint]
    report = load_checkpoint(
        network, file, FileRules(prefix=entry.prefix, drop=entry.drop, new=entry.new), containers=entry.container
    )
    (found,) = report.sections
    return found


def index(name: str) -> Tensor | None:
    """The index of relative positions of a window of 7, as every official file has it."""
    return _INDEX.clone() if name.endswith("relative_position_index") else None


_INDEX = SwinMM(1, 2, feature_size=12).swinViT.layers1[0].blocks[0].attn.relative_position_index


def test_the_pretraining_file_fills_the_swin_encoder_alone(tmp_path: Path) -> None:
    file = write_official("swinmm", tmp_path, index)
    network = SwinMM(1, CLASSES)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = section(network, file, 0)
    official = torch.load(file)["state_dict"]
    assert len(found.matched) == 126 and len(found.dropped) == 16 and len(found.missing) == 50 and not found.adapted
    for name, tensor in network.state_dict().items():
        expected = official[f"module.{name}"] if name.startswith("swinViT.") else before[name]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("rename", ["swin_vit", "backbone"])
def test_other_spellings_of_the_file_are_understood(tmp_path: Path, rename: str) -> None:
    file = write_official("swinmm", tmp_path, index)
    content = torch.load(file)
    old, new = ("swinViT", "swin_vit") if rename == "swin_vit" else ("module.", "module.backbone.")
    content["state_dict"] = {name.replace(old, new): tensor for name, tensor in content["state_dict"].items()}
    torch.save(content, file)
    network = SwinMM(1, CLASSES)
    found = section(network, file, 0)
    assert len(found.matched) == 126 and len(found.dropped) == 16
    key = "layers4.0.blocks.1.mlp.linear2.weight"
    loaded = next(tensor for name, tensor in content["state_dict"].items() if name.endswith(key))
    assert torch.equal(network.state_dict()[f"swinViT.{key}"], loaded)


@pytest.mark.parametrize("regions", [False, True])
def test_a_fine_tuned_file_of_another_patch_and_classes_fills_all_but_the_head(tmp_path: Path, regions: bool) -> None:
    other = SwinMM(1, 17, grid=3)
    nn.init.normal_(other.cross_atte6.position_embeddings)
    file = tmp_path / "WORD_finetuned_ckpt.pt"
    state_dict = {f"module.{name}": tensor for name, tensor in other.state_dict().items()}
    torch.save({"epoch": 3, "best_acc": 0.5, "state_dict": state_dict}, file)
    network = SwinMM(1, CLASSES)
    network.wrap_loss(nn.L1Loss(), regions=regions)
    found = section(network, file, 1)
    assert len(found.matched) == 173 and len(found.missing) == 2
    assert set(found.adapted) == {"cross_atte6.position_embeddings"} | ({"regions"} if regions else set())
    expected = resampled(other.cross_atte6.position_embeddings.detach(), (2, 2, 2))
    assert torch.equal(network.cross_atte6.position_embeddings, expected)
    assert torch.equal(network.decoder1.conv_block.conv1.conv.weight, other.decoder1.conv_block.conv1.conv.weight)
    assert network.regions is regions


def test_more_input_channels_are_filled_from_one(tmp_path: Path) -> None:
    file = write_official("swinmm", tmp_path, index)
    network = SwinMM(2, CLASSES)
    found = section(network, file, 0)
    assert set(found.adapted) == {"swinViT.patch_embed.proj.weight"} and len(found.matched) == 125
    official = torch.load(file)["state_dict"]["module.swinViT.patch_embed.proj.weight"]
    torch.testing.assert_close(network.swinViT.patch_embed.proj.weight.sum(1, keepdim=True), official)


def test_files_of_other_networks_are_refused(tmp_path: Path) -> None:
    network = meta()
    plain = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("cross_atte6")}
    for content, expected in (
        (plain, ("weights-other", "cross_atte6")),
        ({"conv.weight": torch.ones(1)}, ("weights-other", "swinViT")),
    ):
        with fails(*expected):
            network.from_official(content)
    file = tmp_path / "pretrained_ckpt.pt"
    torch.save({"state_dict": {"encoder.weight": torch.ones(1)}}, file)
    with fails("weights-other", "pretrained_ckpt.pt", "SwinMM"):
        section(network, file, 0)


# --- adapters, precision, copies, memory -------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["freeze", "lora"])
def test_adapters_train_the_rest_and_predict(network: SwinMM, adapter: str) -> None:
    apply_adapter(adapter, network)
    network.train()
    sum(out.square().mean() for out in network(torch.rand(1, 1, *SIZE))).backward()
    for name, parameter in network.named_parameters():
        trained = not name.startswith("swinViT.") or ".lora_" in name
        assert parameter.requires_grad is trained and (parameter.grad is not None) is trained, name
    assert network.swinViT.training is (adapter == "lora")
    with torch.no_grad():
        assert isinstance(network.eval()(torch.rand(1, 1, *SIZE)), Tensor)


def test_logits_are_float32_and_close_in_bfloat16(network: SwinMM, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        high = network.eval()(x)
        monkeypatch.setenv("NNUNET_FM_BF16", "1")
        low = network(x)
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    assert (low.exp() - high.exp()).abs().mean() < 0.02
    outputs = network.train()(x)
    assert all(out.dtype == torch.float32 for out in outputs)
    network.wrap_loss(stock_loss(False))(outputs, torch.zeros(1, 1, *SIZE)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"])
def test_copies_behave_alike(network: SwinMM, clone: Callable[[Any], Any]) -> None:
    network.regions = True
    twin = clone(network)
    x = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        assert twin.regions and torch.equal(twin.eval()(x), network.eval()(x))


def test_the_memory_of_a_step_is_predicted_without_computing() -> None:
    def needed(patch: tuple[int, ...], batch: int) -> int:
        return training_memory(lambda: narrow(), patch, batch, 1).activations

    small, double = needed((64, 64, 64), 1), needed((64, 64, 64), 2)
    assert 3e8 < small < 2e9 and 1.6 < double / small < 2
    assert torch.rand(1).device.type == "cpu"


@pytest.mark.slow
def test_the_compiler_follows_both_modes(network: SwinMM) -> None:
    compiled = torch.compile(network, backend="eager")
    x = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        for mode in (True, False):
            torch.manual_seed(1)
            ours = compiled.train(mode)(x)
            torch.manual_seed(1)
            expected = network.train(mode)(x)
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a, b)
