"""Spatially adaptive convolution: one kernel for volumes of any slice thickness (Luo et al., arXiv 2312.07630).

A volume with slices thicker than its pixels is only halved in-plane until its voxels are about cubic. The number of
these halvings is its degree of anisotropy. Until then, kernels for cubic voxels are summed along depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError

ROUNDING = 1e-5
"""Tolerated relative error of spacings, which files store in single precision: 3 / 0.75 must count as 4."""


def anisotropy_degree(spacing: Sequence[float], stride: int) -> int:
    """floor(log2(slice spacing / smallest in-plane spacing)), from 0 (cubic) to log2(2 * stride).

    Args:
        spacing: voxel spacing ``(z, y, x)`` in mm, slices along z.
        stride: in-plane stride of the adaptive layer, a power of two.
    """
    ratio = min(max(spacing[0] / min(spacing[1:]) * (1 + ROUNDING), 1.0), 2.0 * stride)
    return int(ratio).bit_length() - 1


def depth_stride(stride: int, degree: int, halvings: int = 0) -> int:
    """Stride along depth for an in-plane stride, in a volume that was halved in-plane ``halvings`` times before."""
    return max(stride >> max(degree - halvings, 0), 1)


def sum_depth(kernel: Tensor, depth: int) -> Tensor:
    """Sum groups of consecutive slices of a kernel ``(out, in, Z, Y, X)``, so that `depth` slices remain.

    Raises:
        ValueError: if the slices cannot be grouped evenly.
    """
    if kernel.shape[2] % depth:
        raise InvalidValueError(
            f"a kernel of {kernel.shape[2]} slices cannot be summed to {depth}", code="argument-value"
        )
    return kernel.unflatten(2, (depth, -1)).sum(dim=3)


class SpatiallyAdaptiveConv3d(nn.Conv3d):
    """Convolution that adapts to the anisotropy of its input; for cubic voxels a plain convolution.

    It halves the input in-plane ``log2(stride)`` times; callers of several layers add that to ``halvings``.
    """

    def forward(self, x: Tensor, degree: int = 0, halvings: int = 0) -> Tensor:
        """Convolve ``(B, C, Z, Y, X)``.

        Args:
            x: the volume, or a feature map of it.
            degree: the volume's degree of anisotropy.
            halvings: number of in-plane halvings before this layer.

        Raises:
            ValueError: for a kernel that has no summed form at this anisotropy.
        """
        if degree <= halvings:
            return super().forward(x)
        depth, kernel, stride = depth_stride(self.stride[0], degree, halvings), self.kernel_size[0], self.stride[0]
        if kernel != stride and (depth > 1 or kernel != 3):
            raise InvalidValueError(
                f"a kernel of {kernel} slices with stride {stride} cannot adapt to a depth stride {depth}",
                code="argument-value",
            )
        _, *in_plane = cast(tuple[int, ...], self.padding)
        return F.conv3d(x, sum_depth(self.weight, depth), self.bias, (depth, *self.stride[1:]), (0, *in_plane))
