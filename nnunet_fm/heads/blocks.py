"""Convolution blocks of several decode heads; submodules have the names of the published heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def level_widths(width: int, blocks: int, factor: int, num_classes: int) -> list[int]:
    """Channels of the deepest level and of the ``blocks`` levels above it, each ``factor`` times fewer.

    The deepest level has ``width`` channels, or more, so that the last level has at least one channel per class.
    """
    deepest = max(width, num_classes * factor**blocks)
    return [deepest // factor**block for block in range(blocks + 1)]


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU: ``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class ConvReLUNorm(nn.Module):
    """3x3 convolution, ReLU, batch norm, in this order: ``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.batch_norm(F.relu(self.conv(x), inplace=True))


class RecurrentConv(nn.Module):
    """One 3x3 convolution applied several times, each with its own batch norm after the ReLU.

    From the second time on, a second convolution of the block's input is added: ``(B, channels, h, w)`` -> same shape.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rec_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.batch_norm = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        remembered = self.rec_conv(x)
        for step, norm in enumerate(self.batch_norm):
            y = self.conv(x)
            x = norm(F.relu(y + remembered if step else y, inplace=True))
        return x


class ConvChain(nn.Module):
    """Two convolution blocks with a residual around both if input and output widths are equal, else around the second.

    A block of equal widths is recurrent for ``steps > 1``: ``(B, in_channels, h, w)`` -> ``(B, out_channels, h, w)``.
    """

    def __init__(self, in_channels: int, out_channels: int, steps: int) -> None:
        super().__init__()
        self.conv_blks = nn.ModuleList(_conv_block(c, out_channels, steps) for c in (in_channels, out_channels))
        self.keeps_width = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv_blks
        if self.keeps_width:
            return x + second(first(x))
        x = first(x)
        return x + second(x)


class UpBlock(nn.Module):
    """Transposed convolution and a chain: ``(B, C, h, w)`` -> ``(B, C / factor, factor * h, factor * w)``."""

    def __init__(self, channels: int, factor: int, steps: int) -> None:
        super().__init__()
        self.up = upsampling(channels, factor)
        self.conv_xn = ConvChain(channels // factor, channels // factor, steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_xn(self.up(x))


def upsampling(channels: int, factor: int) -> nn.Sequential:
    """A transposed convolution: ``(B, C, h, w)`` -> ``(B, C / factor, factor * h, factor * w)``."""
    return nn.Sequential(nn.ConvTranspose2d(channels, channels // factor, factor, stride=factor))


def _conv_block(in_channels: int, out_channels: int, steps: int) -> nn.Module:
    if in_channels == out_channels and steps > 1:
        return RecurrentConv(out_channels, steps)
    return ConvReLUNorm(in_channels, out_channels)
