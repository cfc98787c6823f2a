"""Spatially adaptive convolution: one kernel for volumes of any slice thickness (Luo et al., arXiv 2312.07630).

A volume whose slices are thicker than its pixels are wide is halved in-plane only, until its voxels are about cubic.
How often that is needed is its degree of anisotropy; kernels made for cubic voxels are summed along depth meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError

ROUNDING = 1e-5
"""Relative error of spacings that is forgiven: files hold them in single precision, and 3 / 0.75 must count as 4."""


def anisotropy_degree(spacing: Sequence[float], stride: int) -> int:
    """floor(log2(slice spacing / smallest in-plane spacing)), from 0 (cubic) to log2(2 * stride).

    Args:
        spacing: voxel edges ``(z, y, x)`` in mm, slices along z.
        stride: in-plane stride of the layer that is to adapt, a power of two.
    """
    ratio = min(max(spacing[0] / min(spacing[1:]) * (1 + ROUNDING), 1.0), 2.0 * stride)
    return int(ratio).bit_length() - 1


def depth_stride(stride: int, degree: int, halvings: int = 0) -> int:
    """Stride along depth that goes with an in-plane stride, in a volume already halved in-plane `halvings` times."""
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
    """Convolution that adapts to the anisotropy of its input; a plain one while that is 0.

    The output has been halved in-plane ``log2(stride)`` times more than the input, which callers of a chain count.
    """

    def forward(self, x: Tensor, degree: int = 0, halvings: int = 0) -> Tensor:
        """Convolve ``(B, C, Z, Y, X)``.

        Args:
            x: the volume, or a feature map of it.
            degree: the volume's degree of anisotropy.
            halvings: how often the map has been halved in-plane.

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
