"""Float32 matrix products by oneDNN, forward and backward, for CPUs on which it is faster.

PyTorch includes oneDNN but uses it for bfloat16 only, and MKL for float32. Results differ by rounding, 10^-6 of their
size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nnunet_fm.cpu.cpu_features import uses_onednn

SMALL = 2**21
"""Fewest multiplications for which oneDNN is faster; a call costs 12 microseconds."""
THIN = 16
"""Smallest matrix size (rows, columns, channels) for which oneDNN is faster."""

MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def fast_products(device: torch.device) -> AbstractContextManager[object]:
    """Context in which ``F.linear`` and products with a matrix use oneDNN if it is faster; so do their gradients.

    It only affects float32 tensors on a CPU, and has no effect under autocast or while a network is compiled or traced.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return _FastProducts() if device.type == "cpu" and not recorded and uses_onednn() else nullcontext()


class _FastProducts(TorchFunctionMode):
    """Call `linear` instead of PyTorch's functions in this context."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if types:  # subclasses of tensors with functions of their own
            return func(*args, **kwargs)
        if func is F.linear:
            return _linear_or(func, *args, **kwargs)
        if func in MATMULS and len(args) == 2 and isinstance(args[1], Tensor) and args[1].ndim == 2:
            x, matrix = args
            if isinstance(x, Tensor) and x.ndim > 1 and is_faster(x, matrix.t()):
                return linear(x, matrix.t())
        return func(*args, **kwargs)


def _linear_or(usual: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` if it is faster, else ``F.linear``; arguments have the names of the latter."""
    if is_faster(input, weight, bias):
        return linear(input, weight, bias)
    return usual(input, weight, bias)


def is_faster(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `linear` takes these tensors and is faster than PyTorch; call only if `uses_onednn` is True."""
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] == 0:
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    columns, channels = weight.shape
    rows = x.numel() // x.shape[-1]
    return (
        rows * channels * columns >= SMALL
        and min(rows, channels, columns) >= THIN
        and x.shape[-1] == channels
        and all(t.dtype == torch.float32 and t.device.type == "cpu" and t.layout == torch.strided for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by oneDNN: ``(…, channels)`` and ``(columns, channels)`` -> ``(…, columns)``, all float32."""
    matrix = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        out = cast(Tensor, _Product.apply(matrix, weight.t(), bias))
    else:
        out = _product(matrix, weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a b^T + bias``, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Copy a matrix that has gaps between rows or columns, because oneDNN is a thousand times slower with gaps."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Product(torch.autograd.Function):
    """``a b + bias`` for ``(M, K)``, ``(K, N)`` and ``(N,)``.

    It saves the same tensors as PyTorch's own product, in the same order, for ``torch.utils.checkpoint``: that computes
    a part of a network a second time outside of this context, and expects the same saved tensors.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        kept = [a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None]
        ctx.swapped = bias is None
        ctx.save_for_backward(*(reversed(kept) if ctx.swapped else kept))
        return _product(a, b.t(), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = reversed(ctx.saved_tensors) if ctx.swapped else ctx.saved_tensors
        # PyTorch computes gradients of gradients.
        product = _with_gradient if torch.is_grad_enabled() else _product
        needs_a, needs_b, needs_bias = ctx.needs_input_grad
        return (
            product(grad, b) if needs_a else None,
            product(grad.t(), a.t()).t() if needs_b else None,
            grad.sum(0) if needs_bias else None,
        )


def _with_gradient(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.t()
