"""STU-Net: a residual 3D U-Net scaled in width and depth (Huang et al., arXiv 2304.06716).

Parameters have the names and numbers of the official code (uni-medical/STU-Net), so that its checkpoints load directly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.cpu.channels_last import Conv3d
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork

SLOPE = 0.01
"""Negative slope of every LeakyReLU and of the He initialisation."""

LEVELS = 5
"""Down-sampling stages; the depth is fixed, so that one checkpoint fits every plan."""


class HeConv3d(Conv3d):
    """Convolution with He initialisation (arXiv 1502.01852), like in the official training from scratch."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ResidualBlock(nn.Module):
    """conv - norm - LeakyReLU - conv - norm, plus shortcut, LeakyReLU.

    The first block of a stage has a strided 1x1x1 convolution without norm as its shortcut, also for equal widths.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: Sequence[int] = (1, 1, 1), first: bool) -> None:
        super().__init__()
        step = (stride[0], stride[1], stride[2])
        self.conv1 = HeConv3d(in_channels, out_channels, 3, step, padding=1)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv2 = HeConv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv3 = HeConv3d(in_channels, out_channels, 1, step) if first else None

    def forward(self, x: Tensor) -> Tensor:
        # In place: autograd keeps the input of instance norm, not its output.
        out = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        out = self.norm2(self.conv2(out))
        out += x if self.conv3 is None else self.conv3(x)
        return F.leaky_relu(out, SLOPE, inplace=True)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by ``stride`` and a 1x1x1 convolution.

    Officially the convolution comes second. The two commute, and on the small feature map the convolution is cheaper.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = [float(s) for s in stride]
        self.conv = HeConv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=self.stride, mode="nearest")


def _stage(in_channels: int, out_channels: int, blocks: int, stride: Sequence[int] = (1, 1, 1)) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride=stride, first=True)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, first=False) for _ in range(blocks - 1)))


class STUNet(FoundationNetwork):
    """STU-Net of any size.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        dims: width of the six encoder stages; 16, 32, 64, 128, 256, 256 is "small".
        depth: residual blocks of the six encoder stages; the decoder stages repeat the first five.
        strides: nnU-Net's strides, one ``(z, y, x)`` per stage, the first all ones. Cut to six entries, and filled up
            with ones: the weights do not depend on them.
        deep_supervision: return logits of all five decoder stages, full resolution first.

    Raises:
        ValueError: if `dims` or `depth` do not have six entries, or the first stride is not all ones.
    """

    key_to_head = ("seg_outputs",)
    convolutional = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        dims: Sequence[int],
        depth: Sequence[int],
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if len(dims) != LEVELS + 1 or len(depth) != LEVELS + 1:
            raise InvalidValueError(
                f"STU-Net has {LEVELS + 1} stages, got dims {list(dims)} and depth {list(depth)}", code="argument-value"
            )
        if any(s != 1 for s in strides[0]):
            raise InvalidValueError(
                f"the first stage of STU-Net does not downsample, got stride {list(strides[0])}", code="argument-value"
            )
        self.key_to_encoder = "conv_blocks_context"
        self.key_to_stem = "conv_blocks_context.0"
        self.keys_to_in_proj = ("conv_blocks_context.0.0.conv1", "conv_blocks_context.0.0.conv3")
        self.deep_supervision = deep_supervision
        self.strides = [[int(s) for s in stride] for stride in strides[1 : LEVELS + 1]]
        self.strides += [[1, 1, 1]] * (LEVELS - len(self.strides))

        self.conv_blocks_context = nn.ModuleList([_stage(input_channels, dims[0], depth[0])])
        self.conv_blocks_localization = nn.ModuleList()
        self.upsample_layers = nn.ModuleList()
        self.seg_outputs = nn.ModuleList()
        for level, stride in enumerate(self.strides):
            self.conv_blocks_context.append(_stage(dims[level], dims[level + 1], depth[level + 1], stride))
        for level in reversed(range(LEVELS)):
            self.upsample_layers.append(Upsample(dims[level + 1], dims[level], self.strides[level]))
            self.conv_blocks_localization.append(_stage(2 * dims[level], dims[level], depth[level]))
            self.seg_outputs.append(HeConv3d(dims[level], num_classes, 1))

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def deep_supervision_scales(self) -> list[list[float]]:
        scales = [[1.0, 1.0, 1.0]]
        for stride in self.strides[: LEVELS - 1]:
            scales.append([scale / s for scale, s in zip(scales[-1], stride, strict=True)])
        return scales

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.conv_blocks_context[:-1]:
            x = stage(x)
            skips.append(x)
        x = self.conv_blocks_context[-1](x)
        outputs = []
        for upsample, stage, head in zip(
            self.upsample_layers, self.conv_blocks_localization, self.seg_outputs, strict=True
        ):
            x = stage(torch.cat((upsample(x), skips.pop()), dim=1))
            if self.deep_supervision or not skips:
                outputs.append(head(x))
        return outputs[::-1]
