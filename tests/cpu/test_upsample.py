"""Bilinear upsampling by matrix products: PyTorch's results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.cpu.upsample import upsample


def maps(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("size", [(48, 64), (33, 50)])
@torch.inference_mode()
def test_bfloat16_errs_as_pytorch_does(size: tuple[int, int]) -> None:
    x = maps(torch.bfloat16)[:, 1:]  # part of a larger array, as masks of classes are
    exact = F.interpolate(x.float(), size=size, mode="bilinear")
    found, usual = upsample(x, size), F.interpolate(x, size=size, mode="bilinear")
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).norm() < 2 * (usual.float() - exact).norm()
    # Twice rounded: in between, and in the end.
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=2**-8 * float(exact.abs().max()))


def test_float32_and_gradients_are_pytorchs() -> None:
    x = maps(torch.float32).requires_grad_()
    usual = F.interpolate(x, size=(48, 64), mode="bilinear")
    assert torch.equal(upsample(x, (48, 64)), usual)
    low = maps(torch.bfloat16).requires_grad_()
    upsample(low, (48, 64)).sum().backward()
    assert low.grad is not None
