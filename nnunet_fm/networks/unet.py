"""Plain U-Nets without pre-training, the baseline of every comparison (Ronneberger et al., arXiv 1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.slices import RGB, channel_stem, from_square, to_rgb, to_square


class VanillaUNet3D(FoundationNetwork):
    """MONAI's UNet with stride 2 between levels; widths 8-16-32-64 and three residual units: 469,633 parameters.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        channels: width of each level; every level after the first halves the resolution.
        num_res_units: residual units per level.
        deep_supervision: accepted for a common signature; there is one output.
    """

    key_to_head = ("unet.model.2",)
    convolutional = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        channels: Sequence[int],
        num_res_units: int,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        # MONAI nests each level in the one above: encoder and decoder share one container.
        self.key_to_encoder = "unet"
        self.key_to_stem = "unet.model.0"
        self.keys_to_in_proj = ("unet.model.0.conv.unit0.conv", "unet.model.0.residual")
        self.deep_supervision = deep_supervision
        self.levels = len(channels) - 1
        self.unet = UNet(3, input_channels, num_classes, channels, [2] * self.levels, num_res_units=num_res_units)

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return (2**self.levels,) * 3

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        return [self.unet(x)]


class DoubleConv(nn.Module):
    """Two times 3x3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """Max-pooling by two, then `DoubleConv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Transposed convolution by two, zero padding to the skip's size, concatenation (skip first), `DoubleConv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.conv = DoubleConv(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        height, width = (s - o for s, o in zip(skip.shape[2:], x.shape[2:], strict=True))
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.conv(torch.cat((skip, x), dim=1))


class OutConv(nn.Module):
    """1x1 convolution to logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class VanillaUNet2D(FoundationNetwork):
    """The classic 2D U-Net with batch norm; widths 64 to 1024 give 31,038,543 parameters at 15 classes.

    Args:
        input_channels: image channels; mapped to three as in `slices.to_rgb`.
        num_classes: output channels.
        channels: width of each level; every level after the first halves the resolution.
        image_size: size in pixels of the square that slices are resized to, and logits back; None for no resizing.
        deep_supervision: accepted for a common signature; there is one output.
    """

    key_to_head = ("outc",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        channels: Sequence[int],
        image_size: int | None = 224,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        # The levels stand side by side under the network itself: it is its own encoder.
        self.key_to_encoder = ""
        self.stem: nn.Module | None = channel_stem(input_channels)
        self.key_to_stem = "inc" if self.stem is None else "stem"
        self.keys_to_in_proj = ("inc.double_conv.0",) if self.stem is None else ("stem",)
        self.deep_supervision = deep_supervision
        self.image_size = image_size
        self.levels = len(channels) - 1
        self.inc = DoubleConv(RGB, channels[0])
        for level in range(self.levels):
            self.add_module(f"down{level + 1}", Down(channels[level], channels[level + 1]))
        for level in range(self.levels):
            self.add_module(f"up{level + 1}", Up(channels[-1 - level], channels[-2 - level]))
        self.outc = OutConv(channels[0], num_classes)

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return (1, 1)

    def legal_size(self, size: Sequence[int]) -> list[int]:
        smallest = 2**self.levels if self.image_size is None else 1
        return [max(length, smallest) for length in size]

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        if self.image_size is not None:
            x = to_square(x, self.image_size)
        x = self.inc(to_rgb(x, self.stem))
        skips = []
        for level in range(self.levels):
            skips.append(x)
            x = self.get_submodule(f"down{level + 1}")(x)
        for level in range(self.levels):
            x = self.get_submodule(f"up{level + 1}")(x, skips.pop())
        logits = self.outc(x)
        return [logits if self.image_size is None else from_square(logits, size)]
