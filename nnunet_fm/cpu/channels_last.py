"""Networks of volumes that compute channels-last in memory on a CPU, where convolutions are faster so.

A channels-last volume has shape ``(B, C, Z, Y, X)`` like any other, and the channels of a voxel side by side. PyTorch's
convolutions keep that order and its instance norm does not, nor has it a fast convolution of one voxel; the layers here
are for these two. Their names, parameters and results are those of PyTorch's; in any other order of memory, and on
other devices, they are PyTorch's.
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
    """A volume ``(B, C, Z, Y, X)`` in channels-last order, copied if need be."""
    if x.shape[1] == 1 and x.is_contiguous():
        # Both orders are one and the same then; only the stride tells convolutions which is meant.
        return x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    return x.contiguous(memory_format=FORMAT)


def use_fast_layers(network: nn.Module) -> None:
    """Give a network's convolutions and instance norms of volumes the layers of this file, in place."""
    for module in network.modules():
        if fast := FAST.get(type(module)):
            module.__class__ = fast


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` that keeps the order, with matrix products for kernels of one voxel.

    PyTorch's own of these go, with one thread, to code without vectors that wants the other order; and so do those of
    few channels or voxels.
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
    """``nn.ConvTranspose3d`` that keeps the order, as `Conv3d` does."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        out = super().forward(input, output_size)
        return channels_last(out) if is_channels_last(input) else out


class InstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` that takes channels-last volumes as they are, forward and backward."""

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_fast_for(input):
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if weight is None and input.dtype == torch.bfloat16:  # or else mean and variance would be in bfloat16, too
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

    From those of its slices: PyTorch adds up channels-last volumes number by number, and a million of them in float32
    would leave but four digits.
    """
    kind = torch.float64 if image.dtype == torch.float64 else torch.float32
    # Running statistics, which no momentum changes, only say in which type to count.
    unused = torch.zeros(image.shape[1], dtype=kind), torch.ones(image.shape[1], dtype=kind)
    slices = [torch.batch_norm_update_stats(part, *unused, 0.0) for part in image.split(1, dim=2)]
    means, variances = (torch.stack(values).double() for values in zip(*slices, strict=True))
    return means.mean(0).to(kind), (variances.mean(0) + means.var(0, correction=0)).to(kind)


class _InstanceNorm(torch.autograd.Function):
    """Batch norms of the images of a batch, one by one, with the parameters of each channel shared.

    As instance norm is defined; PyTorch's batch norm has code for channels-last volumes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        out = torch.empty_like(x)
        means, deviations = [], []
        nothing = torch.empty(0, dtype=x.dtype if weight is None else weight.dtype)
        for i, image in enumerate(x.split(1)):
            mean, variance = _statistics(image)
            # With given statistics it only shifts and scales.
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
        # Operations that PyTorch can derive again, for gradients of gradients.
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
