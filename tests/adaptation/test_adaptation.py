"""The parts of adaptation: losses, pseudo-labels, two views, hidden labels, teacher, what is trained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_fm.adaptation.hidden_labels import OUTSIDE, HiddenLabels, keep_hidden, outside_marker
from nnunet_fm.adaptation.pseudo_labels import at_scales, pool, predict, pseudo_labels, read_target
from nnunet_fm.adaptation.teacher import Teacher
from nnunet_fm.adaptation.trained_part import set_trainable
from nnunet_fm.adaptation.views import in_two_views, split_views
from nnunet_fm.data.augmentation import initial_patch_size, with_preset
from nnunet_fm.losses.adaptation import (
    NOT_COUNTED,
    EntropyLoss,
    PooledCrossEntropy,
    sigmoid_entropy,
    softmax_entropy,
)
from nnunet_fm.models.build import build_network, official_architecture
from nnunet_fm.models.registry import get_card
from tests.helpers.errors import fails
from tests.helpers.small_networks import small

MARKER = 7
EVERYWHERE = torch.zeros(1, 1, 1)
"""A target in which every pixel counts."""


def logit(p: float) -> float:
    return math.log(p / (1 - p))


# Entropy


def test_entropy_of_softmax_in_closed_form() -> None:
    uniform = torch.zeros(2, 5, 3, 4)
    torch.testing.assert_close(softmax_entropy(uniform), torch.full((2, 3, 4), math.log(5)))
    p = torch.tensor([0.7, 0.2, 0.1])
    logits = (p.log() + 3.0)[None, :, None].expand(1, 3, 6)  # adding a number changes no softmax
    torch.testing.assert_close(EntropyLoss()(logits, EVERYWHERE), -(p * p.log()).sum())


def test_entropy_of_sigmoid_in_closed_form() -> None:
    p = torch.tensor([0.5, 0.9, 0.01])
    logits = torch.logit(p)[None, :, None]
    expected = -(p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(sigmoid_entropy(logits)[0, :, 0], expected)
    torch.testing.assert_close(EntropyLoss(regions=True)(logits, EVERYWHERE), expected.mean())


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_entropy_is_stable_where_predictions_are_sure(regions: bool, size: float) -> None:
    logits = torch.tensor([[size, -size]]).T[None].repeat(1, 1, 3).requires_grad_()
    loss = EntropyLoss(regions=regions)(logits, EVERYWHERE)
    loss.backward()
    assert 0 <= loss.item() < 1e-10 and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("regions", [False, True])
def test_entropy_of_padding_and_of_what_is_ignored_does_not_count(regions: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.zeros(2, 1, 4, 5, dtype=torch.long)
    target[0, :, :3] = NOT_COUNTED
    entropy = sigmoid_entropy(logits) if regions else softmax_entropy(logits)[:, None]
    inside = entropy[(target != NOT_COUNTED).expand_as(entropy)]
    loss = EntropyLoss(regions=regions)(logits, target)
    torch.testing.assert_close(loss, inside.mean())
    loss.backward()
    assert logits.grad is not None and not logits.grad[0, :, :3].any() and logits.grad[0, :, 3:].any()
    assert EntropyLoss(regions=regions)(logits, torch.full_like(target, NOT_COUNTED)).item() == 0


def test_entropy_is_computed_in_float32() -> None:
    logits = torch.randn(1, 24, 50)
    assert EntropyLoss()(logits.bfloat16(), EVERYWHERE).dtype == torch.float32


# Pool


def test_cross_entropy_is_the_mean_over_the_pool() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 6)
    target = torch.randint(0, 4, (2, 1, 5, 6))
    target[0, 0, :3] = NOT_COUNTED
    counted = target[:, 0] != NOT_COUNTED
    expected = nn.functional.cross_entropy(logits.permute(0, 2, 3, 1)[counted], target[:, 0][counted])
    torch.testing.assert_close(PooledCrossEntropy()(logits, target), expected)


def test_binary_cross_entropy_is_the_mean_over_pairs_of_pixel_and_region() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 40), torch.randint(0, 2, (2, 3, 40))
    target[:, 1, 7:] = NOT_COUNTED
    counted = target != NOT_COUNTED
    expected = nn.functional.binary_cross_entropy_with_logits(logits[counted], target[counted].float())
    torch.testing.assert_close(PooledCrossEntropy(regions=True)(logits, target), expected)


@pytest.mark.parametrize("regions", [False, True])
def test_an_empty_pool_moves_nothing(regions: bool) -> None:
    logits = torch.randn(1, 3, 8, requires_grad=True)
    loss = PooledCrossEntropy(regions=regions)(logits, torch.full((1, 3 if regions else 1, 8), NOT_COUNTED))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_pseudo_labels_of_classes() -> None:
    p = torch.tensor([[0.05, 0.95], [0.85, 0.15], [0.11, 0.89], [0.99, 0.01]])
    logits = p.log().T[None]
    assert pseudo_labels(logits, 0.9).tolist() == [[[1, NOT_COUNTED, NOT_COUNTED, 0]]]
    assert pseudo_labels(logits, 0.0).tolist() == [[[1, 0, 1, 0]]]


def test_pseudo_labels_of_regions_are_taken_one_by_one() -> None:
    logits = torch.tensor([[[logit(0.95), logit(0.6)], [logit(0.04), logit(0.92)]]])
    assert pseudo_labels(logits, 0.9, regions=True).tolist() == [[[1, NOT_COUNTED], [0, 1]]]


def test_labels_and_pseudo_labels_are_pooled_pixel_by_pixel() -> None:
    target = torch.tensor([[[0, 2, 3, MARKER, MARKER]]], dtype=torch.int16)
    labels, unlabelled = read_target(target, MARKER, ignore_label=3)
    pooled = pool(labels, unlabelled, torch.tensor([[[1, 1, 1, 1, NOT_COUNTED]]]))
    assert pooled.tolist() == [[[0, 2, NOT_COUNTED, 1, NOT_COUNTED]]]


def test_regions_are_pooled_region_by_region() -> None:
    #            two regions          unlabelled  ignored: of three pixels
    target = torch.tensor([[[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]]], dtype=torch.bool)
    labels, unlabelled = read_target(target, MARKER, regions=2, ignore_label=3)
    pseudo = torch.tensor([[[0, 0, 1], [0, 0, NOT_COUNTED]]])
    assert pool(labels, unlabelled, pseudo).tolist() == [[[1, NOT_COUNTED, 1], [1, NOT_COUNTED, NOT_COUNTED]]]


def test_targets_are_reduced_as_nnunet_does() -> None:
    torch.manual_seed(0)
    target = torch.randint(-1, 3, (2, 1, 9, 12, 8))
    scales = [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.5]]
    reduce = DownsampleSegForDSTransform(scales)
    samples = [reduce(segmentation=sample)["segmentation"] for sample in target]
    expected = [torch.stack(level) for level in zip(*samples, strict=True)]
    for mine, theirs in zip(at_scales(target, expected), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert at_scales(target, target) is target


def test_prediction_leaves_the_mode_as_it_was() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9))
    x = torch.randn(8, 3)
    out = predict(network, x)
    assert network.training and not out.requires_grad and int(network[0].num_batches_tracked) == 0
    assert torch.equal(out, predict(network, x))


# Teacher


def test_a_teacher_averages_what_is_trained_and_shares_the_rest() -> None:
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    student[0].requires_grad_(False)
    teacher = Teacher(student, momentum=0.75)
    start = student[2].weight.detach().clone()
    with torch.no_grad():
        student[2].weight.add_(1.0)
        student[1].running_mean.add_(2.0)
    assert torch.equal(teacher.network[2].weight, start)
    teacher.update(student)
    torch.testing.assert_close(teacher.network[2].weight.detach(), start + 0.25)
    assert torch.equal(teacher.network[1].running_mean, student[1].running_mean)
    assert teacher.network[0].weight is student[0].weight and teacher.network[2].weight is not student[2].weight

    again = Teacher(student)
    again.load_state_dict(teacher.state_dict())
    torch.testing.assert_close(again.network[2].weight.detach(), start + 0.25)
    again.update(student)
    assert torch.equal(again.network[2].weight, student[2].weight)


# Views


def pipeline(preset: str, patch: list[int]) -> ComposeTransforms:
    angle = (-math.pi / 6, math.pi / 6)
    axes = tuple(range(len(patch)))
    stock = nnUNetTrainer.get_training_transforms(np.array(patch), angle, None, axes, False, use_mask_for_norm=[True])
    return with_preset(preset, stock, patch, (0,))


@pytest.mark.parametrize(
    ("preset", "patch"),
    [("nnunet", [24, 28, 20]), ("spad", [24, 28, 28]), ("slices", [64, 48]), ("nnunet", [64, 48]), ("flips", [30, 20])],
)
def test_both_views_show_what_the_segmentation_shows(preset: str, patch: list[int]) -> None:
    """The image is a ball in [-1, 1], its segmentation the ball: the weak view still is, wherever it was moved to."""
    torch.manual_seed(3)
    np.random.seed(3)
    size = patch if preset == "nnunet" else initial_patch_size(preset, patch)
    grid = torch.meshgrid(*(torch.arange(edge) - edge / 2 - 2 for edge in size), indexing="ij")
    ball = (torch.stack(grid).square().sum(0) < (min(patch) / 3) ** 2)[None]
    image = torch.where(ball, 1.0, -1.0)
    views = in_two_views(pipeline(preset, patch), 1)
    changed = 0
    for _ in range(12):
        out = views(image=image.clone(), segmentation=ball.to(torch.int16).clone())
        weak, strong = out["image"].chunk(2)
        shown = out["segmentation"][0] > 0
        assert weak.shape == strong.shape == (1, *patch) and shown.any()
        assert ((weak[0] > 0) == shown).float().mean() > 0.97
        assert weak.min() >= -1.0001 and weak.max() <= 1.0001
        # Noise, blur and lost resolution change the strong view; gamma may invert it; nothing moves it.
        likeness = torch.corrcoef(torch.stack([strong.flatten(), weak.flatten()]))[0, 1].abs()
        assert likeness > 0.7 or strong.std() < 1e-3
        changed += not torch.equal(weak, strong)
    assert (changed == 0) == (preset == "flips")


def test_without_distortion_both_views_are_one() -> None:
    views = in_two_views(pipeline("none", [10, 12]), 1)
    image = torch.randn(1, 10, 12)
    weak, strong = split_views(views(image=image, segmentation=torch.zeros(1, 10, 12))["image"][None])
    assert torch.equal(weak, strong) and torch.equal(weak[0], image)


def test_masked_channels_are_masked_in_both_views() -> None:
    views = in_two_views(pipeline("none", [4, 4]), 1)
    segmentation = torch.zeros(1, 4, 4)
    segmentation[0, 0] = OUTSIDE
    out = views(image=torch.ones(1, 4, 4), segmentation=segmentation)["image"]
    assert out.shape == (2, 4, 4) and not out[:, 0].any() and out[:, 1:].all()


# Hidden labels


class Cases:
    identifiers = ("a", "b")

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        segmentation = np.ones((1, 4, 5, 6), np.int8)
        segmentation[:, 0] = OUTSIDE
        locations = {1: np.array([[0, 3, 3, 3]]), (1, 2): np.array([[0, 3, 3, 3]])}
        return np.zeros((2, 4, 5, 6)), segmentation, None, {"class_locations": locations, "spacing": [1, 1, 1]}


@pytest.mark.parametrize("keep_outside", [False, True])
def test_labels_are_hidden_unless_they_may_be_seen(keep_outside: bool) -> None:
    cases = HiddenLabels(Cases(), ["a"], MARKER, keep_outside=keep_outside)
    shown = cases.load_case("a")
    assert shown[1].max() == 1 and shown[3]["class_locations"][1].tolist() == [[0, 3, 3, 3]]
    _, hidden, _, properties = cases.load_case("b")
    told = {OUTSIDE, MARKER} if keep_outside else {MARKER}
    assert hidden.shape == (1, 4, 5, 6) and set(np.unique(hidden[:])) == told
    patch = hidden[:, 1:3, :, 2:]
    assert patch.shape == (1, 2, 5, 4) and patch.flags.writeable and (patch == MARKER).all()
    drawn = {tuple(cases.load_case("b")[3]["class_locations"][1][0]) for _ in range(20)}
    assert len(drawn) > 5 and all(0 <= i < n for d in drawn for i, n in zip(d, (1, 4, 5, 6), strict=True))
    assert properties["spacing"] == [1, 1, 1]


def test_a_hidden_patch_has_no_background_and_tells_what_is_no_image() -> None:
    """Padding (-1), and the 0 that a rotation brings in; a patch with labels is treated as nnU-Net does."""
    pipeline = keep_hidden(ComposeTransforms([RemoveLabelTransform(-1, 0)]), MARKER)
    seen = torch.tensor([[[OUTSIDE, 1, 2]]])
    assert pipeline(segmentation=seen.clone())["segmentation"].tolist() == [[[0, 1, 2]]]
    hidden = pipeline(segmentation=torch.tensor([[[OUTSIDE, MARKER, 0]]]))["segmentation"]
    assert hidden.tolist() == [[[outside_marker(MARKER), MARKER, outside_marker(MARKER)]]]
    labels, unlabelled = read_target(hidden, MARKER)
    assert pool(labels, unlabelled, torch.full((1, 1, 3), 2)).tolist() == [[[NOT_COUNTED, 2, NOT_COUNTED]]]
    # as regions: one region, without a label, outside
    target = torch.tensor([[[0, 0], [1, 0], [0, 1]]], dtype=torch.bool)
    labels, unlabelled = read_target(target, MARKER, regions=1)
    assert pool(labels, unlabelled, torch.ones(1, 1, 2, dtype=torch.long)).tolist() == [[[1, NOT_COUNTED]]]


# What is trained


def trained(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def segmenter(head: str, adapter: str, model: str = "dinov2_s", channels: int = 1) -> Any:
    with torch.device("meta"):
        entry = official_architecture(get_card(model), head=head)
        return build_network(entry, channels, 3, adapter=adapter)


@pytest.mark.parametrize("adapter", ["freeze", "full", "lora", "rein", "rein_lora", "ladder"])
def test_only_the_head_is_trained_whatever_the_adapter(adapter: str) -> None:
    network = segmenter("linear", adapter, channels=2)
    set_trainable(network, "head")
    assert trained(network) == {f"head.{name}" for name, _ in network.head.named_parameters()}
    network.train()
    modes = {name: module.training for name, module in network.named_modules() if name}
    assert all(mode == name.startswith(("head", "align")) for name, mode in modes.items())


def test_the_head_s_neck_is_trained_where_it_is_the_head_s() -> None:
    counts = {}
    for adapter in ("freeze", "ladder"):  # the ladder leaves SAM's neck in the frozen backbone
        network = segmenter("hqhsam", adapter, "sam_b")
        set_trainable(network, "head")
        counts[adapter] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    # published for three classes: with and without the neck
    assert counts["freeze"] == pytest.approx(12_419_671, abs=40_000)
    assert counts["ladder"] == pytest.approx(11_632_215, abs=40_000)
    assert counts["freeze"] - counts["ladder"] == 787_456


def test_what_aligns_resnet_maps_is_trained_with_the_head() -> None:
    network = segmenter("unetdec_small", "full", "resnet101")
    set_trainable(network, "head")
    assert {name.split(".")[0] for name in trained(network)} == {"head", "align"}


@pytest.mark.parametrize("family", ["stunet", "suprem", "spadnet", "misfm", "swinmm"])
def test_the_decoder_of_a_3d_network_is_its_head(family: str) -> None:
    network = small(family)
    before = trained(network)
    set_trainable(network, "head")
    encoder = {name for name in before if any(name == k or name.startswith(f"{k}.") for k in network.encoder_keys)}
    assert trained(network) == before - encoder and encoder and trained(network)


@pytest.mark.parametrize("model", ["vanilla_unet3d", "vanilla_unet2d", "swin_unet"])
def test_a_network_of_one_part_is_trained_whole(model: str) -> None:
    with torch.device("meta"):
        network = build_network(official_architecture(get_card(model)), 2, 3)
    before = trained(network)
    set_trainable(network, "head")
    assert trained(network) == before == {name for name, _ in network.named_parameters()}


def test_more_can_be_trained() -> None:
    network = segmenter("linear", "rein_lora")
    before = trained(network)
    set_trainable(network, "adapter")
    assert trained(network) == before and any(name.startswith("rein") for name in before)
    set_trainable(network, "all")
    assert len(trained(network)) == len(dict(network.named_parameters())) and network.frozen == ()


def test_norms_only() -> None:
    network = segmenter("linear", "freeze")
    set_trainable(network, "head", norms_only=True)
    assert trained(network) == {"head.batch_norm.weight", "head.batch_norm.bias"}
    with fails("head-norms", "norm"):
        set_trainable(_Without(), "head", norms_only=True)


class _Without(nn.Module):
    """An encoder and a head without norms."""

    encoder_keys = ("encoder",)
    frozen: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x))
