"""Attention of vision transformers in bfloat16 on a CPU: timm's results, gradients and names."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.backbones import create_backbone
from nnunet_fm.cpu import attention
from nnunet_fm.cpu.attention import FastAttention, attend, use_fast_attention

AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture
def pair() -> tuple[Attention, FastAttention]:
    """timm's attention, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = Attention(32, num_heads=4, qkv_bias=True).eval()
    ours = nn.ModuleList([copy.deepcopy(theirs)])
    use_fast_attention(ours)
    assert isinstance(ours[0], FastAttention)
    return theirs, ours[0]


def tokens() -> Tensor:
    return torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(1))


def error(x: Tensor, reference: Tensor) -> float:
    return float((x.float() - reference).norm() / reference.norm())


@torch.inference_mode()
def test_in_float32_nothing_changes(pair: tuple[Attention, FastAttention]) -> None:
    theirs, ours = pair
    mask = torch.zeros(17, 17).masked_fill(torch.eye(17) > 0, -torch.inf)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()), rtol=0, atol=0)
    torch.testing.assert_close(ours(tokens(), mask), theirs(tokens(), mask), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 8.0])
def test_in_bfloat16_errors_are_those_of_attention_written_out_under_autocast(sharpness: float) -> None:
    q, k, v = torch.randn(3, 2, 3, 65, 16, generator=torch.Generator().manual_seed(2)).mul(sharpness).bfloat16()
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    with torch.autocast(**AUTOCAST):
        written_out = (q @ k.transpose(2, 3) / 4).softmax(dim=-1) @ v
    assert error(attend(q, k, v), exact) < 1.5 * error(written_out, exact) + 2**-9
    if sharpness == 1:  # of scores that are usual
        assert error(attend(q, k, v), exact) < 2**-7


def test_heads_are_done_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 16, generator=torch.Generator().manual_seed(3)).bfloat16()
    together = attend(q, k, v)
    monkeypatch.setattr(attention, "SCORES", 2 * 9 * 9)
    torch.testing.assert_close(attend(q, k, v), together, rtol=2**-7, atol=2**-7)


def test_plain_products_only_where_nothing_is_stored_for_gradients(
    pair: tuple[Attention, FastAttention], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair
    called: list[int] = []
    monkeypatch.setattr(attention, "attend", lambda q, k, v: called.append(1) or attend(q, k, v))
    with torch.autocast(**AUTOCAST):
        for module in (theirs, ours):
            module(tokens()).sum().backward()
        assert not called
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad)
        frozen = ours.requires_grad_(False)(tokens())  # a frozen backbone in training
        assert called
        assert not frozen.requires_grad
        with torch.inference_mode():
            assert error(frozen, theirs(tokens()).float()) < 2**-6


@pytest.mark.parametrize(("name", "edge"), [("dinov2_s", 28), ("mae_b", 32)])
def test_backbones_have_it(name: str, edge: int) -> None:
    blocks = create_backbone(name, edge).vit.blocks  # type: ignore[union-attr]
    assert all(type(block.attn) is FastAttention for block in blocks)  # type: ignore[union-attr]
