"""3D layers for channels-last memory on a CPU, where convolutions are faster in this order.

A channels-last volume has the shape ``(B, C, Z, Y, X)``, with the channels of a voxel side by side in memory. PyTorch's
instance norm does not keep this order, and its convolutions of one voxel are slow; the layers here replace both. They
have PyTorch's names, parameters and results. In any other order of memory, and on other devices, they call PyTorch.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FORMAT = torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    """Whether a volume is on the CPU with the channels of each voxel side by side."""
    return x.device.type == "cpu" and x.ndim == 5 and x.stride(1) == 1 and x.is_contiguous(memory_format=FORMAT)


def channels_last(x: Tensor) -> Tensor:
    """Convert a volume ``(B, C, Z, Y, X)`` to channels-last order; copied only if needed."""
    if x.shape[1] == 1 and x.is_contiguous():
        # With one channel both orders are equal; convolutions recognise the order by the strides.
        return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x.contiguous(memory_format=FORMAT)


def use_fast_layers(network: nn.Module) -> None:
    """Replace 3D convolutions and instance norms of a network by the layers of this file, in place."""
    for module in network.modules():
        if fast := FAST.get(type(module)):
            module.__class__ = fast


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that keeps the order, with matrix products for kernels of one voxel.

    With one thread, or with few channels or voxels, PyTorch runs 1x1x1 convolutions in unvectorised code that needs
    contiguous order.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._is_product and is_channels_last(input):
            voxels = F.linear(input.permute(0, 2, 3, 4, 1), weight.flatten(1), bias)
            return voxels.permute(0, 4, 1, 2, 3)
        out = super()._conv_forward(input, weight, bias)
        return channels_last(out) if is_channels_last(input) else out

    @property
    def _is_product(self) -> bool:
        ones = (1, 1, 1)
        return self.kernel_size == ones and self.stride == ones and self.padding == (0, 0, 0) and self.groups == 1


class ConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that keeps the order."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        out = super().forward(input, output_size)
        return channels_last(out) if is_channels_last(input) else out


class InstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` that computes channels-last volumes without a copy, forward and backward."""

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_fast_for(input):
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if weight is None and input.dtype == torch.bfloat16:  # keeps mean and variance in float32
            weight, bias = (torch.full((input.shape[1],), value, dtype=torch.float32) for value in (1.0, 0.0))
        return cast(Tensor, _InstanceNorm.apply(input, weight, bias, self.eps))

    def _is_fast_for(self, x: Tensor) -> bool:
        parameters = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        return (
            is_channels_last(x)
            and x.dtype in (torch.float32, torch.float64, torch.bfloat16)
            and (self.weight is None or self.weight.dtype == parameters)
            and not self.track_running_stats
            and x[0, 0].numel() > 1  # else PyTorch refuses
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]
            and not torch.compiler.is_compiling()
        )


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(C,)`` of the channels of an image ``(1, C, Z, Y, X)``, in float32 or float64.

    They are computed from the statistics of slices. PyTorch adds up channels-last volumes number by number, and after a
    million numbers float32 has four correct digits left.
    """
    kind = torch.float64 if image.dtype == torch.float64 else torch.float32
    # Running statistics set the type of the result; with a momentum of 0 they do not change.
    unused = torch.zeros(image.shape[1], dtype=kind), torch.ones(image.shape[1], dtype=kind)
    slices = [torch.batch_norm_update_stats(part, *unused, 0.0) for part in image.split(1, dim=2)]
    means, variances = (torch.stack(values).double() for values in zip(*slices, strict=True))
    return means.mean(0).to(kind), (variances.mean(0) + means.var(0, correction=0)).to(kind)


class _InstanceNorm(torch.autograd.Function):
    """Instance norm as a batch norm of each image, because PyTorch's batch norm supports channels-last volumes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        out = torch.empty_like(x)
        means, deviations = [], []
        nothing = torch.empty(0, dtype=x.dtype if weight is None else weight.dtype)
        for i, image in enumerate(x.split(1)):
            mean, variance = _statistics(image)
            # With given statistics, batch norm only shifts and scales.
            torch.native_batch_norm(
                image, weight, bias, mean, variance, False, 0.0, eps, out=(out[i : i + 1], nothing, nothing.clone())
            )
            means.append(mean)
            deviations.append((variance + eps).rsqrt())
        mean, deviation = torch.stack(means), torch.stack(deviations)
        ctx.save_for_backward(x, weight, mean, deviation)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, deviation = ctx.saved_tensors
        grad = grad.contiguous(memory_format=FORMAT)
        needed = ctx.needs_input_grad[:3]
        # These operations are differentiable, for gradients of gradients.
        each = [
            torch.ops.aten.native_batch_norm_backward(
                grad[i : i + 1], x[i : i + 1], weight, None, None, mean[i], deviation[i], True, ctx.eps, needed
            )
            for i in range(len(x))
        ]
        grad_x, grad_weight, grad_bias = zip(*each, strict=True)
        return (
            (grad_x[0] if len(x) == 1 else torch.cat(grad_x)) if needed[0] else None,
            sum(grad_weight[1:], grad_weight[0]) if needed[1] else None,
            sum(grad_bias[1:], grad_bias[0]) if needed[2] else None,
            None,
        )


FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv3d: Conv3d,
    nn.ConvTranspose3d: ConvTranspose3d,
    nn.InstanceNorm3d: InstanceNorm3d,
}
"""PyTorch's layers -> those of this file."""
