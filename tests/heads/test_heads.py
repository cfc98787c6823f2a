"""Decode heads that take feature maps: what `HeadTester` asks of all of them, and what is special to each."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from nnunet_fm.heads import create_head
from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.da import DAHead
from tests.helpers.head_tester import HeadTester
from tests.helpers.small_networks import count


class TestLinear(HeadTester):
    name = "linear"
    counts: ClassVar = {(768, 16, 15): 52_239}


class TestResNet(HeadTester):
    name = "resdec"
    counts: ClassVar = {(768, 16, 15): 39_208_143}
    arguments: ClassVar = {"width": 32, "blocks": 2}


class TestUNet(HeadTester):
    name = "unetdec"
    counts: ClassVar = {(768, 16, 15): 39_101_847}
    arguments: ClassVar = {"width": 32, "blocks": 2}


class TestSmallUNet(HeadTester):
    name = "unetdec_small"
    counts: ClassVar = {(768, 16, 15): 7_873_125, (2048, 32, 15): 10_945_125}
    arguments: ClassVar = {"width": 32, "blocks": 2, "group": 1}


class TestDA(HeadTester):
    name = "da"
    counts: ClassVar = {(768, 16, 15): 24_351_791}
    arguments: ClassVar = {"channels": 24, "pam_channels": 8}


class TestSmallDA(HeadTester):
    name = "da_small"
    counts: ClassVar = {(768, 16, 15): 6_944_687}


class TestSegFormer(HeadTester):
    name = "segformer"
    counts: ClassVar = {(768, 16, 15): 4_737_807}


UP_BLOCKS = pytest.mark.parametrize("name", ["resdec", "unetdec", "unetdec_small"])


@UP_BLOCKS
def test_the_last_block_has_a_channel_for_every_class(name: str) -> None:
    widths = {}
    for classes in (2, 15, 16, 36, 37, 97):
        with torch.device("meta"):
            head = create_head(name, FeatureMaps(384, (16, 16), 14), classes)
        widths[classes] = (head.conv_seg.in_channels, head.keys_to_classifier == ("conv_seg",))
    published = {"resdec": 96, "unetdec": 36, "unetdec_small": 15}[name]
    assert widths == {k: (max(published, k), k <= published) for k in widths}


@UP_BLOCKS
@pytest.mark.parametrize(
    ("changes", "maps", "enlarged"),
    [({"blocks": 1}, (4, 4), 2), ({"blocks": 3, "steps": 3}, (4, 8), 8), ({"blocks": 2, "factor": 3}, (4, 6), 9)],
)
def test_up_blocks_enlarge_by_their_factor(
    name: str, changes: dict[str, Any], maps: tuple[int, int], enlarged: int
) -> None:
    head = create_head(name, FeatureMaps(6, (3, 2)), 2, width=54, **changes)
    assert head.maps == maps[name.startswith("unetdec")]
    (logits,) = head([torch.randn(2, 6, 3, 2) for _ in range(head.maps)])
    assert logits.shape == (2, 2, 3 * enlarged, 2 * enlarged)


@UP_BLOCKS
def test_a_single_step_is_a_plain_convolution(name: str) -> None:
    sizes = []
    for steps in (1, 2, 3):
        head = create_head(name, FeatureMaps(6, (3, 2)), 2, width=32, blocks=1, steps=steps)
        sizes.append(count(head))
        names = {key.split(".")[-2] for key, _ in head.named_parameters() if "conv_blks" in key}
        assert ("rec_conv" in names) is (steps > 1)
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_level_of_a_unet_takes_neighbouring_maps_deepest_first() -> None:
    head = create_head("unetdec", FeatureMaps(4, (3, 3)), 2, width=32, blocks=2).eval()
    seen: list[torch.Tensor] = []
    for reducer in head.in_ch_reducer:
        reducer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    maps = [torch.full((1, 4, 3, 3), float(i)) for i in range(6)]
    with torch.no_grad():
        head(maps)
    assert [x[0, :, 0, 0].unique().tolist() for x in seen] == [[0, 1], [2, 3], [4, 5]]


def test_attention_of_positions_and_channels_follows_the_paper() -> None:
    torch.manual_seed(0)
    head = create_head("da", FeatureMaps(8, (4, 3)), 2, channels=6, pam_channels=5).eval()
    assert isinstance(head, DAHead)
    x = torch.randn(2, 6, 4, 3)
    with torch.no_grad():
        assert torch.equal(head.pam(x), x) and torch.equal(head.cam(x), x)  # both start as the identity
        head.pam.gamma.scale.fill_(0.7)
        head.cam.gamma.scale.fill_(-1.3)
        query, key, value = (
            torch.einsum("oc,bcn->bon", conv.weight[..., 0, 0], x.flatten(2)) + conv.bias[:, None]
            for conv in (head.pam.query_project, head.pam.key_project, head.pam.value_project)
        )
        weights = torch.einsum("bdi,bdj->bij", query, key).softmax(dim=2)
        attended = torch.einsum("bij,bdj->bdi", weights, value).view_as(x)
        torch.testing.assert_close(head.pam(x), 0.7 * attended + x)
        gram = torch.einsum("bin,bjn->bij", x.flatten(2), x.flatten(2))
        weights = (gram.amax(dim=2, keepdim=True) - gram).softmax(dim=2)
        attended = torch.einsum("bij,bjn->bin", weights, x.flatten(2)).view_as(x)
        torch.testing.assert_close(head.cam(x), -1.3 * attended + x)


def test_only_the_fused_classifier_of_dual_attention_is_used() -> None:
    head = create_head("da_small", FeatureMaps(8, (4, 3)), 2)
    head([torch.randn(2, 8, 4, 3) for _ in range(4)])[0].sum().backward()
    idle = {name for name, p in head.named_parameters() if p.grad is None}
    assert idle == {f"{branch}_conv_seg.{kind}" for branch in ("pam", "cam") for kind in ("weight", "bias")}
