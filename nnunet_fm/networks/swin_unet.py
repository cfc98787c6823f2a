"""Swin-Unet: a U-Net of Swin transformer blocks (Cao et al., arXiv 2105.05537), trained from scratch.

The blocks are timm's; layers have the names of the published network's state dict.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.slices import RGB, channel_stem, from_square, to_rgb, to_square

PATCH_SIZE = 4


class PatchExpand(nn.Module):
    """Upsampling, the inverse of patch merging: a linear layer expands each token to `factor`² tokens; then a norm.

    ``(B, h, w, C)`` -> ``(B, factor * h, factor * w, out_channels)``.
    """

    def __init__(self, channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels, factor**2 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        x = self.expand(x).view(batch, height, width, self.factor, self.factor, -1).transpose(2, 3)
        return self.norm(x.reshape(batch, height * self.factor, width * self.factor, -1))


class Stage(nn.Module):
    """Swin blocks at one resolution, every second one with shifted windows, and an optional change of resolution.

    Args:
        channels: channels of the feature map.
        grid: size of the square feature map; a multiple of ``window_size``, or no larger.
        num_heads: attention heads of each block.
        window_size: size of the windows in tokens.
        drop_path: probability of skipping each block in training.
        downsample, upsample: modules after the blocks.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        *,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                channels,
                (grid, grid),
                num_heads,
                window_size=window_size,
                shift_size=index % 2 * (window_size // 2),
                drop_path=probability,
            )
            for index, probability in enumerate(drop_path)
        )
        for module in self.blocks.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer)  # persistent like in the official code, unlike in timm's
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        for change in (self.downsample, self.upsample):
            if change is not None:
                x = change(x)
        return x


class SwinUNet(FoundationNetwork):
    """Swin-Unet; the published widths give 27,169,476 parameters at 15 classes.

    Args:
        input_channels: image channels; mapped to three as in `slices.to_rgb`.
        num_classes: output channels.
        embed_dim: channels of the first stage; every later one has twice as many.
        depths: blocks of each stage, of the encoder and, in reverse, of the decoder.
        num_heads: attention heads of each stage's blocks.
        window_size: size of the attention windows in tokens.
        drop_path: probability of skipping the encoder's last block in training; it rises linearly from 0 for the first
            block. A decoder stage has the probabilities of the encoder's stage.
        image_size: size in pixels of the square that slices are resized to, and logits back.
        deep_supervision: accepted for a common signature; there is one output.

    Raises:
        ValueError: for an image size that does not halve evenly down to the last stage.
    """

    key_to_head = ("output",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path: float = 0.1,
        image_size: int = 224,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        # Encoder and decoder have no common parent but the network itself, which counts as the encoder.
        self.key_to_encoder = ""
        self.stem: nn.Module | None = channel_stem(input_channels)
        self.key_to_stem = "patch_embed" if self.stem is None else "stem"
        self.keys_to_in_proj = ("patch_embed.proj",) if self.stem is None else ("stem",)
        self.deep_supervision = deep_supervision
        self.image_size = image_size
        last = len(depths) - 1
        multiple = PATCH_SIZE * 2**last
        if image_size < multiple or image_size % multiple:
            raise InvalidValueError(
                f"this Swin-Unet takes an image size that is a multiple of {multiple}, got {image_size}",
                code="image-edges",
            )
        widths = [embed_dim * 2**i for i in range(last + 1)]
        probabilities = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))

        def stage(i: int, **change: nn.Module) -> Stage:
            grid = image_size // (PATCH_SIZE * 2**i)
            return Stage(widths[i], grid, num_heads[i], window_size, probabilities[i].tolist(), **change)

        self.patch_embed = PatchEmbed(
            image_size, PATCH_SIZE, RGB, embed_dim, norm_layer=nn.LayerNorm, output_fmt="NHWC"
        )
        self.layers = nn.ModuleList(stage(i, downsample=PatchMerging(widths[i])) for i in range(last))
        self.layers.append(stage(last))
        self.norm = nn.LayerNorm(widths[last])
        self.layers_up = nn.ModuleList([PatchExpand(widths[last], widths[last - 1], 2)])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for i in reversed(range(last)):
            self.concat_back_dim.append(nn.Linear(2 * widths[i], widths[i]))
            self.layers_up.append(stage(i, **({"upsample": PatchExpand(widths[i], widths[i - 1], 2)} if i else {})))
        self.norm_up = nn.LayerNorm(embed_dim)
        self.up = PatchExpand(embed_dim, embed_dim, PATCH_SIZE)
        self.output = nn.Conv2d(embed_dim, num_classes, 1, bias=False)
        self.apply(_initialise)

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return (1, 1)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        x = self.patch_embed(to_rgb(to_square(x, self.image_size), self.stem))
        skips = []
        for layer in self.layers:
            skips.append(x)
            x = layer(x)
        x = self.layers_up[0](self.norm(x))
        for layer, fuse, skip in zip(self.layers_up[1:], self.concat_back_dim[1:], skips[-2::-1], strict=True):
            x = layer(fuse(torch.cat((x, skip), dim=-1)))
        logits = self.output(self.up(self.norm_up(x)).permute(0, 3, 1, 2))
        return [from_square(logits, size)]


def _initialise(module: nn.Module) -> None:
    """Initialise linear layers like the published network; timm's initial norms and position biases are the same."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
