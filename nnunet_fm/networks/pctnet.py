"""PCT-Net: a pyramid of blocks that add a convolution and a Swin transformer path (Wang et al., arXiv 2306.16925).

Parameters have the names and numbers of the official code (openmedlab/MIS-FM), so that its checkpoints load directly.
Like the official code, the network has three stems and three heads, one of which the resolution mode uses, and layer
norms that are never applied; idle layers are never trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.published_quirks import pct_bias_rows

Size = tuple[int, int, int]

WINDOW, SHIFT = 6, 3
"""Size of an attention window in tokens, and its shift in every second block."""

HEADS = (4, 8, 16)
"""Attention heads at the three levels of the pyramid."""

MLP_RATIO = 4
STOCHASTIC_DEPTH = 0.2

RESOLUTIONS: dict[int, tuple[tuple[Size, Size], tuple[Size, Size]]] = {
    0: (((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (2, 2, 2))),
    1: (((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2))),
    2: (((1, 3, 3), (1, 2, 2)), ((1, 3, 3), (1, 2, 2))),
}
"""Resolution mode -> (kernel, reduction) of the two levels above the pyramid: for thin, thicker and thick slices."""

MASKED = -100.0
"""Added to the attention between tokens that are neighbours only because of the shift."""

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"


def _pre_activated(channels: int, convolution: nn.Module) -> nn.Sequential:
    """Batch norm, PReLU with one slope, convolution."""
    return nn.Sequential(nn.BatchNorm3d(channels), nn.PReLU(), convolution)


def _convolution(in_channels: int, out_channels: int, kernel: Size) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))


class ConvBlock(nn.Module):
    """Two pre-activated convolutions of equal width, with dropout before the second one."""

    def __init__(self, channels: int, kernel: Size, dropout: float) -> None:
        super().__init__()
        first = _pre_activated(channels, _convolution(channels, channels, kernel))
        norm, activation, second = _pre_activated(channels, _convolution(channels, channels, kernel))
        self.conv_conv = nn.Sequential(*first, norm, activation, nn.Dropout(dropout), second)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_conv(x)
        return out


class Downsample(nn.Module):
    """Max-pooling by `step`, then a pre-activated convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, step: Size) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(step)
        self.conv = _pre_activated(in_channels, _convolution(in_channels, out_channels, kernel))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.pool(x))
        return out


class PctUpsample(nn.Module):
    """Transposed convolution by `step` and, with the skip in front of its result, a convolution; both pre-activated."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size, step: Size) -> None:
        super().__init__()
        self.up = _pre_activated(in_channels, nn.ConvTranspose3d(in_channels, out_channels, step, step))
        self.conv = _pre_activated(2 * out_channels, _convolution(2 * out_channels, out_channels, kernel))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat((skip, self.up(x)), dim=1))
        return out


class Output(nn.Module):
    """Pre-activated 1x1x1 convolution to logits."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = _pre_activated(channels, nn.Conv3d(channels, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a cubic window, int64 ``(window**3, window**3)``.

    The weights were trained with the numbering of `pct_bias_rows`, in which different offsets share a row.
    """
    return pct_bias_rows(_offsets(window), window)


def _offsets(window: int) -> Tensor:
    """Offsets along z, y, x between all pairs of tokens of a cubic window, int64 ``(3, window**3, window**3)``."""
    axis = torch.arange(window)
    tokens = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).flatten(1)
    return tokens[:, :, None] - tokens[:, None, :]


def fit_bias_table(table: Tensor, old: int, new: int) -> Tensor:
    """Fit a bias table ``(rows, heads)`` for windows of size ``old`` to windows of size ``new``.

    A row gets the mean of the old biases over all pairs of tokens that share it, the least-squares fit. Offsets outside
    the old window get the bias of the nearest one. Unused rows are zero.
    """
    offsets = _offsets(new)
    pairs = table[pct_bias_rows(offsets.clamp(1 - old, old - 1), old).flatten()].double()
    rows = pct_bias_rows(offsets, new).flatten()
    total = pairs.new_zeros((2 * new - 1) ** 3, table.shape[1]).index_add_(0, rows, pairs)
    count = torch.bincount(rows, minlength=len(total)).clamp(min=1)
    return (total / count[:, None]).to(table.dtype)


def _window_of(table: Tensor) -> int | None:
    """Window size of a bias table with ``(2 * window - 1)**3`` rows; None for any other number of rows."""
    offsets = round(len(table) ** (1 / 3))
    return (offsets + 1) // 2 if offsets % 2 and offsets**3 == len(table) else None


def shift_masks(window: int, shift: int) -> Tensor:
    """Masks to add to the attention within shifted windows, ``(8, window**3, window**3)``.

    Tokens from both ends of an axis meet only in the last window along it. Which axes a window is the last of makes
    eight kinds of window, counted as binary digits z, y, x.
    """
    wrapped = torch.arange(window) >= window - shift
    tokens = torch.stack(torch.meshgrid(wrapped, wrapped, wrapped, indexing="ij")).flatten(1)
    differing = tokens[:, :, None] != tokens[:, None, :]
    last = torch.tensor(list(product((False, True), repeat=3)))
    return (last[:, :, None, None] & differing).any(dim=1) * MASKED


def window_kinds(counts: Sequence[int]) -> Tensor:
    """Index into `shift_masks` for each of the windows ``(Z, Y, X)``, int64, flat."""
    z, y, x = torch.meshgrid(*(torch.arange(count) == count - 1 for count in counts), indexing="ij")
    return (4 * z + 2 * y + x).flatten()


class PctWindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias per relative position.

    Args:
        channels: width of the tokens.
        heads: attention heads.
        window: size of the cubic windows in tokens.
        shift: shift of the windows in tokens, 0 for none.
        counts: windows along z, y, x.
        dropout: share of attention weights, and of outputs, set to zero in training.
    """

    relative_position_index: Tensor
    shift_masks: Tensor
    window_kinds: Tensor

    def __init__(
        self, channels: int, heads: int, *, window: int, shift: int, counts: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.shift, self.dropout = heads, shift, dropout
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(INDEX, relative_position_index(window))
        if shift:
            self.register_buffer("shift_masks", shift_masks(window, shift), persistent=False)
            self.register_buffer("window_kinds", window_kinds(counts), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Windows ``(B, W, N, C)`` to windows of the same shape."""
        batch, windows, tokens, channels = x.shape
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        leading = (batch * windows, self.heads)
        if self.shift:
            # The windows' masks differ. With the windows beside the heads, the bias is made once for a whole batch.
            bias = (bias + self.shift_masks[:, None])[self.window_kinds].flatten(0, 1)
            leading = (batch, windows * self.heads)
        qkv = self.qkv(x).view(batch, windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, *leading, tokens, channels // self.heads).unbind()
        out = F.scaled_dot_product_attention(q, k, v, bias[None], self.dropout if self.training else 0.0)
        out = out.view(batch, windows, self.heads, tokens, -1).transpose(2, 3).reshape(x.shape)
        dropped: Tensor = self.proj_drop(self.proj(out))
        return dropped


class MLP(nn.Module):
    """Two linear layers with GELU between them, and dropout after both."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return out


class SwinBlock(nn.Module):
    """Window attention and MLP, each after a layer norm and with a residual, on feature maps ``(B, Z, Y, X, C)``.

    If the smallest size of the feature map is at most `WINDOW`, it is the window size, and nothing is shifted. Feature
    maps are padded with zeros to whole windows after the norm; the padding is not masked.
    """

    def __init__(self, channels: int, heads: int, size: Sequence[int], *, shifted: bool, dropout: float) -> None:
        super().__init__()
        self.window = min(WINDOW, *size)
        self.shift = SHIFT if shifted and min(size) > WINDOW else 0
        self.counts = [-(-length // self.window) for length in size]
        z, y, x = (count * self.window - length for count, length in zip(self.counts, size, strict=True))
        self.padding = [0, 0, 0, x, 0, y, 0, z]
        self.norm1 = nn.LayerNorm(channels)
        self.attn = PctWindowAttention(
            channels, heads, window=self.window, shift=self.shift, counts=self.counts, dropout=dropout
        )
        self.drop_path = DropPath(STOCHASTIC_DEPTH)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attended(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out

    def _attended(self, x: Tensor) -> Tensor:
        batch, *size, channels = x.shape
        if any(self.padding):
            x = F.pad(x, self.padding)
        if self.shift:
            x = x.roll((-self.shift,) * 3, (1, 2, 3))
        w, (z, y, x_) = self.window, self.counts
        windows = x.view(batch, z, w, y, w, x_, w, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
        out = self.attn(windows.reshape(batch, z * y * x_, w**3, channels))
        out = out.view(batch, z, y, x_, w, w, w, channels).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)
        if self.shift:
            out = out.roll((self.shift,) * 3, (1, 2, 3))
        cropped: Tensor = out[:, : size[0], : size[1], : size[2]]
        return cropped


class Transformer(nn.Module):
    """Two Swin blocks, the second one with shifted windows."""

    def __init__(self, channels: int, heads: int, size: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, size, shifted=shifted, dropout=dropout) for shifted in (False, True)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 4, 1).contiguous()
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.permute(0, 4, 1, 2, 3)


class ConvTransBlock(nn.Module):
    """Sum of a convolution block and a transformer on the same feature map ``(B, C, Z, Y, X)``."""

    def __init__(self, channels: int, heads: int, size: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.conv = ConvBlock(channels, (3, 3, 3), dropout)
        self.trans = Transformer(channels, heads, size, dropout)
        self.norm_layer = nn.LayerNorm(channels)  # never applied, see the module's docstring

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.trans(x)
        return out


class Pyramid(nn.Module):
    """A U-Net of three levels of convolution and transformer blocks.

    Args:
        widths: of the three levels.
        dropout: of the three levels.
        size: edges of the map at the first level.
        num_classes: outputs at the two upper levels.
    """

    def __init__(self, widths: Sequence[int], dropout: Sequence[float], size: Sequence[int], num_classes: int) -> None:
        super().__init__()
        kernel, step = (3, 3, 3), (2, 2, 2)
        sizes = [[edge // factor for edge in size] for factor in (1, 2, 4)]

        def block(level: int) -> ConvTransBlock:
            return ConvTransBlock(widths[level], HEADS[level], sizes[level], dropout[level])

        self.down3 = Downsample(widths[0], widths[1], kernel, step)
        self.down4 = Downsample(widths[1], widths[2], kernel, step)
        self.up3 = PctUpsample(widths[1], widths[0], kernel, step)
        self.up4 = PctUpsample(widths[2], widths[1], kernel, step)
        self.convtrans_e2, self.convtrans_d2 = block(0), block(0)
        self.convtrans_e3, self.convtrans_d3 = block(1), block(1)
        self.convtrans_e4 = block(2)
        self.out_conv2 = Output(widths[0], num_classes)
        self.out_conv3 = Output(widths[1], num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded feature maps at the first and second level."""
        e2 = self.convtrans_e2(x)
        e3 = self.convtrans_e3(self.down3(e2))
        e4 = self.convtrans_e4(self.down4(e3))
        d3 = self.convtrans_d3(self.up4(e4, e3))
        d2 = self.convtrans_d2(self.up3(d3, e2))
        return d2, d3


class Stem(nn.Module):
    """Two levels of convolutions from the image to the first level of the pyramid."""

    def __init__(self, input_channels: int, widths: Sequence[int], dropout: Sequence[float], mode: int) -> None:
        super().__init__()
        (kernel0, step0), (kernel1, step1) = RESOLUTIONS[mode]
        self.proj = _convolution(input_channels, widths[0], kernel0)
        self.conv0 = ConvBlock(widths[0], kernel0, dropout[0])
        self.conv1 = ConvBlock(widths[1], kernel1, dropout[1])
        self.down1 = Downsample(widths[0], widths[1], kernel1, step0)
        self.down2 = Downsample(widths[1], widths[2], (3, 3, 3), step1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps of the two levels, and the input of the pyramid."""
        x0 = self.conv0(self.proj(x))
        x1 = self.conv1(self.down1(x0))
        return x0, x1, self.down2(x1)


class PctHead(nn.Module):
    """Decoder from the pyramid's feature map back to the resolution of the image."""

    def __init__(self, num_classes: int, widths: Sequence[int], dropout: Sequence[float], mode: int) -> None:
        super().__init__()
        (kernel0, step0), (kernel1, step1) = RESOLUTIONS[mode]
        self.up1 = PctUpsample(widths[1], widths[0], kernel0, step0)
        self.up2 = PctUpsample(widths[2], widths[1], kernel1, step1)
        self.conv0 = ConvBlock(widths[0], kernel0, dropout[0])
        self.conv1 = ConvBlock(widths[1], kernel1, dropout[1])
        self.out_conv0 = Output(widths[0], num_classes)
        self.out_conv1 = Output(widths[1], num_classes)

    def forward(self, x: Tensor, skip1: Tensor, skip0: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded feature maps at full resolution and one level below."""
        d1 = self.conv1(self.up2(x, skip1))
        return self.conv0(self.up1(d1, skip0)), d1


class PCTNet(FoundationNetwork):
    """PCT-Net for patches of one size.

    Smaller inputs are padded to ``patch_size``. The attention windows depend on it: a level with a smallest size of at
    most `WINDOW` tokens has windows of this size, and smaller bias tables.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        widths: channels of the five levels; those of the pyramid's three must be divisible by `HEADS`.
        dropout: shares of the five levels, in convolution blocks, attention and MLPs.
        resolution_mode: levels above the pyramid that keep the resolution of the first axis: 0 none, 1 the first, 2
            both.
        patch_size: largest input, in voxels (z, y, x).
        deep_supervision: return logits of the first four levels, full resolution first.

    Raises:
        ValueError: for arguments that break the rules above, or a patch that the levels do not divide.
    """

    convolutional = True
    key_to_head = (
        *(f"pred_heads.{mode}.out_conv{level}" for mode in RESOLUTIONS for level in (0, 1)),
        "pyramid_ct.out_conv2",
        "pyramid_ct.out_conv3",
    )

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        widths: Sequence[int],
        dropout: Sequence[float],
        resolution_mode: int,
        patch_size: Sequence[int],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if resolution_mode not in RESOLUTIONS:
            raise InvalidValueError(
                f"PCT-Net's resolution_mode is one of {', '.join(map(str, RESOLUTIONS))}", code="argument-value"
            )
        if len(widths) != 5 or len(dropout) != 5:
            raise InvalidValueError(
                f"PCT-Net has 5 levels, got widths {list(widths)} and dropout {list(dropout)}", code="argument-value"
            )
        if any(width % heads for width, heads in zip(widths[2:], HEADS, strict=True)):
            raise InvalidValueError(
                f"the last three widths of PCT-Net are multiples of {HEADS}, got {list(widths)}", code="argument-value"
            )
        self.mode = resolution_mode
        self.patch_size = [int(edge) for edge in patch_size]
        if any(edge < 1 or edge % step for edge, step in zip(self.patch_size, self.size_multiple, strict=True)):
            raise InvalidValueError(
                f"patch {self.patch_size} is not a multiple of {list(self.size_multiple)}", code="patch-illegal"
            )
        self.deep_supervision = deep_supervision
        self.key_to_encoder = "pyramid_ct"
        self.key_to_stem = f"embeddings.{resolution_mode}"
        self.keys_to_in_proj = tuple(f"embeddings.{mode}.proj" for mode in RESOLUTIONS)

        size = [edge // reduction for edge, reduction in zip(self.patch_size, self.scales[2], strict=True)]
        self.embeddings = nn.ModuleList(Stem(input_channels, widths, dropout, mode) for mode in RESOLUTIONS)
        self.pyramid_ct = Pyramid(widths[2:], dropout[2:], size, num_classes)
        self.pred_heads = nn.ModuleList(PctHead(num_classes, widths, dropout, mode) for mode in RESOLUTIONS)
        self.requires_grad_()

    @classmethod
    def resolve_arguments(
        cls, arguments: Mapping[str, Any], *, patch_size: Sequence[int], spacing: Sequence[float]
    ) -> dict[str, Any]:
        """Set ``patch_size`` to the plan's patch, rounded up to a legal size."""
        multiple = _reductions(arguments["resolution_mode"])[-1]
        legal = [-(-size // step) * step for size, step in zip(patch_size, multiple, strict=True)]
        if legal == list(multiple):  # batch norm needs more than one element per channel
            legal[-1] *= 2
        return {**arguments, "patch_size": legal}

    @property
    def scales(self) -> list[Size]:
        """Reduction of each of the five levels along z, y, x."""
        return _reductions(self.mode)

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return self.scales[-1]

    @property
    def deep_supervision_scales(self) -> list[list[float]]:
        return [[1 / factor for factor in reduction] for reduction in self.scales[:4]]

    @property
    def encoder_keys(self) -> tuple[str, ...]:
        blocks = ("down3", "down4", "convtrans_e2", "convtrans_e3", "convtrans_e4")
        return (self.key_to_stem, *(f"pyramid_ct.{block}" for block in blocks))

    @property
    def unused_keys(self) -> tuple[str, ...]:
        others = [mode for mode in RESOLUTIONS if mode != self.mode]
        norms = [f"pyramid_ct.convtrans_{level}.norm_layer" for level in ("e2", "d2", "e3", "d3", "e4")]
        coarse = [f"pred_heads.{self.mode}.out_conv1", "pyramid_ct.out_conv2", "pyramid_ct.out_conv3"]
        return (
            *(f"{part}.{mode}" for part in ("embeddings", "pred_heads") for mode in others),
            *norms,
            *(() if self.deep_supervision else coarse),
        )

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(TABLE)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups for layer decay: stem, the pyramid's encoder level by level, and all others."""
        levels = ("convtrans_e2", "down3|convtrans_e3", "down4|convtrans_e4")
        blocks = [(rf"^pyramid_ct\.(?:{level})\.", (depth,)) for depth, level in enumerate(levels)]
        return {"stem": r"^embeddings\.", "blocks": blocks}

    def legal_size(self, size: Sequence[int]) -> list[int]:
        """The patch size.

        Raises:
            ValueError: for a larger input.
        """
        if any(length > limit for length, limit in zip(size, self.patch_size, strict=True)):
            raise InvalidValueError(
                f"an input of {list(size)} exceeds {self.patch_size}, the patch that this PCT-Net was built for; "
                "plan for a patch of that size",
                code="patch-exceeded",
            )
        return list(self.patch_size)

    def from_official(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit bias tables of another window size, with the network's own index.

        Raises:
            ValueError: if the state dict is not a PCT-Net's.
        """
        if not any(name.startswith("pyramid_ct.") for name in state_dict):
            raise InvalidValueError(
                "the file holds no PCT-Net: no name starts with 'pyramid_ct.'. "
                "MIS-FM's PCT-Net is pctnet_ct10k_volf.pt; the file of its FMUNet does not fit",
                code="weights-other",
            )
        own, fitted = self.state_dict(), dict(state_dict)
        for name, table in state_dict.items():
            mine = own.get(name)
            if mine is None or not name.endswith(TABLE) or table.shape == mine.shape:
                continue
            old, new = _window_of(table), _window_of(mine)
            if old is not None and new is not None and table.shape[1:] == mine.shape[1:]:
                fitted[name] = fit_bias_table(table, old, new)
                fitted[name.replace(TABLE, INDEX)] = relative_position_index(new)
        return fitted

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        head = self.pred_heads[self.mode]
        assert isinstance(head, PctHead)
        x0, x1, x = self.embeddings[self.mode](x)
        d2, d3 = self.pyramid_ct(x)
        d0, d1 = head(d2, x1, x0)
        outputs = [head.out_conv0(d0)]
        if self.deep_supervision:
            outputs += [head.out_conv1(d1), self.pyramid_ct.out_conv2(d2), self.pyramid_ct.out_conv3(d3)]
        return outputs


def _reductions(mode: int) -> list[Size]:
    """Reduction of each of the five levels along z, y, x, relative to the image."""
    steps = [(1, 1, 1), *(step for _, step in RESOLUTIONS[mode]), (2, 2, 2), (2, 2, 2)]
    totals = [[math.prod(axis) for axis in zip(*steps[: level + 1], strict=True)] for level in range(5)]
    return [(z, y, x) for z, y, x in totals]
