"""DiceCE is MONAI's, to the sixth digit; ignored voxels count for nothing; outputs are enlarged to one target."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.losses.dice_ce import DiceCE, FusedDiceCE, OutputSupervision, fused

SHAPE = (2, 5, 6, 7)
"""Batch and voxels."""

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def label_map(classes: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randint(0, classes, (shape[0], 1, *shape[1:]), dtype=torch.int16)


def value_and_gradient(loss: Loss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def assert_same(ours: Loss, theirs: Loss, logits: Tensor, target: Tensor, reference: Tensor | None = None) -> None:
    value, gradient = value_and_gradient(ours, logits, target)
    expected, expected_gradient = value_and_gradient(theirs, logits, target if reference is None else reference)
    assert abs(value - expected) < 1e-6
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, (3, 9, 8), (1, 32, 48, 48)])
@pytest.mark.parametrize("classes", [2, 24])
def test_equals_monais(classes: int, shape: tuple[int, ...]) -> None:
    theirs = DiceCELoss(softmax=True, to_onehot_y=True, include_background=True)
    logits = 3 * torch.randn(shape[0], classes, *shape[1:])
    assert_same(DiceCE(), theirs, logits, label_map(classes, shape))
    absent = torch.zeros_like(label_map(classes, shape))
    assert_same(DiceCE(), theirs, logits, absent)


def test_half_precision_logits_are_summed_in_full() -> None:
    logits, target = 3 * torch.randn(1, 4, 32, 32, 32).half(), label_map(4, (1, 32, 32, 32))
    assert abs(DiceCE()(logits, target) - DiceCE()(logits.float(), target)) == 0


def test_regions_are_sigmoids() -> None:
    logits, target = 2 * torch.randn(2, 3, *SHAPE[1:]), torch.rand(2, 3, *SHAPE[1:]) < 0.3
    dice, entropy = DiceLoss(sigmoid=True), torch.nn.BCEWithLogitsLoss()
    assert_same(DiceCE(regions=True), lambda x, y: dice(x, y) + entropy(x, y), logits, target, target.float())
    assert_same(DiceCE(regions=True), DiceCELoss(sigmoid=True), logits[:, :1], target[:, :1], target[:, :1].float())


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_contribute_nothing(regions: bool) -> None:
    logits = 2 * torch.randn(2, 3, *SHAPE[1:])
    ignored = torch.rand(2, 1, *SHAPE[1:]) < 0.4
    target = label_map(3).where(~ignored, 3)
    if regions:
        target = torch.cat([torch.rand(2, 3, *SHAPE[1:]) < 0.5, ignored], 1)
    loss = DiceCE(regions=regions, ignore_label=3)
    other = torch.where(ignored, 50 * torch.randn_like(logits), logits)
    value, gradient = value_and_gradient(loss, logits, target)
    assert torch.equal(value, loss(other, target))
    assert not gradient[ignored.expand_as(gradient)].any() and gradient[~ignored.expand_as(gradient)].all()
    # means are taken over what is labelled: one image cut into its labelled voxels has the same loss
    kept = ~ignored[0, 0]
    cut = target[:1, :3] if regions else target[:1]
    single = loss(logits[:1], target[:1])
    expected = DiceCE(regions=regions)(logits[:1, :, kept], cut[:, :, kept])
    assert abs(single - expected) < 1e-6


@pytest.mark.parametrize("regions", [False, True])
def test_without_a_labelled_voxel_the_loss_is_finite_and_moves_nothing(regions: bool) -> None:
    channels = 4 if regions else 1
    target = torch.ones(2, channels, *SHAPE[1:], dtype=torch.bool) if regions else torch.full((2, 1, *SHAPE[1:]), 3)
    value, gradient = value_and_gradient(DiceCE(regions=regions, ignore_label=3), torch.randn(2, 3, *SHAPE[1:]), target)
    assert torch.isfinite(value) and not gradient.any()


def test_outputs_are_enlarged_and_weighted() -> None:
    target = label_map(3, (2, 8, 8, 8))
    outputs = [torch.randn(2, 3, *[8 // 2**i] * 3, requires_grad=True) for i in range(4)]
    level = DiceCE()
    total = OutputSupervision(level)(outputs, [target])
    weights = [8 / 15, 4 / 15, 2 / 15, 1 / 15]
    expected = sum(
        w * level(F.interpolate(out, (8, 8, 8), mode="trilinear", align_corners=False), target)
        for w, out in zip(weights, outputs, strict=True)
    )
    assert abs(total - expected) < 1e-6
    total.backward()
    assert all(out.grad is not None and out.grad.any() for out in outputs)  # DDP wants every output in the graph
    one = OutputSupervision(level)(outputs[:1], [target])
    assert abs(one - level(outputs[0], target)) < 1e-6


def test_outputs_of_2d_networks() -> None:
    outputs = [torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)]
    assert torch.isfinite(OutputSupervision(DiceCE())(outputs, [label_map(2, (1, 8, 8))]))


def stock_loss(ignore_label: int | None = None, *, batch: bool = False, background: bool = False) -> DC_and_CE_loss:
    dice = {"batch_dice": batch, "smooth": 1e-5, "do_bg": background, "ddp": False}
    return DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("ignore_label", [None, 5])
@pytest.mark.parametrize(("ce", "dice"), [(1, 1), (1, 0), (0, 2)])
def test_few_passes_equal_nnunets_loss(
    batch: bool, background: bool, ignore_label: int | None, ce: float, dice: float
) -> None:
    theirs, ours = (stock_loss(ignore_label, batch=batch, background=background) for _ in range(2))
    for loss in (theirs, ours):
        loss.weight_ce, loss.weight_dice = ce, dice
    assert isinstance(fused(ours), FusedDiceCE)
    logits = 4 * torch.randn(SHAPE[0], 5, *SHAPE[1:])
    target = label_map(5 if ignore_label is None else 6)
    assert_same(ours, theirs, logits, target)
    assert_same(ours, theirs, logits, torch.zeros_like(target))


def test_few_passes_of_nothing_but_ignored_voxels() -> None:
    ours = fused(stock_loss(5))
    value, gradient = value_and_gradient(ours, torch.randn(1, 5, 4, 4, 4), torch.full((1, 1, 4, 4, 4), 5))
    assert value.isfinite()
    assert gradient.abs().max() == 0


def test_other_losses_of_nnunet_stay_as_they_are() -> None:
    other = DC_and_CE_loss({"smooth": 1e-5}, {}, dice_class=SoftDiceLoss)
    assert type(fused(other)) is DC_and_CE_loss
