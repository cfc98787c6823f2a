"""SPAD-Nets' segmentation network: a ViT with feature pyramid and U-Net decoder (Luo et al., arXiv 2312.07630).

Structure, names and numbers are those of the official fine-tuning code (function2-llx/PUMIT, conf/downstream), so that
its files load directly. That code has a patch depth of 4; `SPADNet` describes the network for other depths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.spad_convolution import anisotropy_degree, depth_stride, sum_depth
from nnunet_fm.networks.spad_vit import SpadViT, resample_positions

PATCH_SIZE = 16
"""In-plane size of the ViT's patches, and their depth for cubic voxels."""

PLANE_STRIDES = (1, 2, 4, 8, 16, 32)
"""In-plane strides of the feature maps, from the full resolution to half that of the tokens."""

SLOPE = 0.01
"""Negative slope of every LeakyReLU."""

PATCH_KERNEL, POSITIONS = "backbone.patch_embed.proj.weight", "backbone.pos_embed"
IMAGE_KERNEL = "decoder.encode_layers.0.blocks.0.conv1.conv.weight"
"""The second weight that depends on the input channels, beside the patch kernel."""

Stride = tuple[int, int, int]


def _strides(degree: int) -> list[Stride]:
    """Stride ``(z, y, x)`` of each feature map relative to the input, by the rule of adaptive convolutions."""
    return [(depth_stride(s, degree), s, s) for s in PLANE_STRIDES]


def _degree(patch_depth: int) -> int:
    """Degree of anisotropy for patches of this depth."""
    if patch_depth not in (16, 8, 4, 2, 1):
        raise InvalidValueError(
            f"spad_patch_depth is {patch_depth}, legal are 16, 8, 4, 2 and 1 (in plans also auto)",
            code="argument-value",
        )
    return (PATCH_SIZE // patch_depth).bit_length() - 1


def _between(fine: Stride, coarse: Stride) -> Stride:
    """Stride from one feature map to the next coarser one."""
    return coarse[0] // fine[0], coarse[1] // fine[1], coarse[2] // fine[2]


def _upsampling(in_channels: int, out_channels: int, stride: Stride) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(in_channels, out_channels, stride, stride)


class ConvNormAct(nn.Module):
    """Convolution without bias, affine instance norm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Stride, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        norm, act = nn.InstanceNorm3d(out_channels, affine=True), nn.LeakyReLU(SLOPE, inplace=True)
        self.adn = nn.Sequential(OrderedDict(N=norm, A=act))

    def forward(self, x: Tensor) -> Tensor:
        return self.adn(self.conv(x))


class SpadDoubleConv(nn.Module):
    """Two convolutions, the first with the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Stride, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNormAct(out_channels, out_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class EncodeLayer(nn.Module):
    """A downsampling step of the full-resolution branch."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Stride, stride: Stride) -> None:
        super().__init__()
        self.blocks = nn.Sequential(SpadDoubleConv(in_channels, out_channels, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class UpLayer(nn.Module):
    """Upsample a feature map, concatenate it with the next finer one, convolve twice."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Stride, stride: Stride) -> None:
        super().__init__()
        self.upsample = _upsampling(in_channels, out_channels, stride)
        self.conv = SpadDoubleConv(2 * out_channels, out_channels, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat((self.upsample(x), skip), dim=1))


class SegmentationViT(SpadViT):
    """The ViT with a feature pyramid: four feature maps of one width, at in-plane strides 4, 8, 16 and 32.

    Args:
        in_channels: image channels.
        degree: fixed degree of anisotropy of the network.
        pos_embed_shape, width, num_heads: see `SpadViT`.
        out_blocks: the four blocks, counted from 0, whose tokens become feature maps; the last is the network's last.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        degree: int,
        pos_embed_shape: Sequence[int],
        width: int,
        num_heads: int,
        out_blocks: Sequence[int],
    ) -> None:
        super().__init__(
            in_channels,
            patch_size=(depth_stride(PATCH_SIZE, degree), PATCH_SIZE, PATCH_SIZE),
            pos_embed_shape=pos_embed_shape,
            width=width,
            depth=out_blocks[-1] + 1,
            num_heads=num_heads,
        )
        self.out_blocks = tuple(out_blocks)
        self.norms = nn.ModuleList(nn.InstanceNorm3d(width, affine=True) for _ in out_blocks)
        by_4, by_8, by_16, by_32 = _strides(degree)[2:]
        to_8, to_4 = _upsampling(width, width, _between(by_8, by_16)), _upsampling(width, width, _between(by_4, by_8))
        self.fpn = nn.ModuleList(
            [
                nn.Sequential(to_8, nn.InstanceNorm3d(width, affine=True), nn.GELU(), to_4),
                _upsampling(width, width, _between(by_8, by_16)),
                nn.Identity(),
                nn.MaxPool3d(_between(by_16, by_32)),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of ``(B, C, Z, Y, X)``, finest first."""
        tokens, grid = self.forward_blocks(x)
        patches = [tokens[block][:, 1:].transpose(1, 2).unflatten(2, grid) for block in self.out_blocks]
        return [scale(norm(p)) for p, norm, scale in zip(patches, self.norms, self.fpn, strict=True)]


class PyramidDecoder(nn.Module):
    """U-Net decoder over the feature maps of the pyramid.

    Args:
        in_channels: channels of the pyramid's feature maps.
        channels: channels of the decoder's feature maps, finest first.
        kernels: kernel sizes of its convolutions, finest first.
        strides: strides of the feature maps relative to the input, finest first.
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], kernels: Sequence[Stride], strides: Sequence[Stride]
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNormAct(in_channels, c, (1, 1, 1)) for c in channels)
        self.layers = nn.ModuleList(
            UpLayer(channels[i + 1], channels[i], kernels[i], _between(strides[i], strides[i + 1]))
            for i in range(len(channels) - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The three upsampled feature maps, finest first."""
        *skips, x = [lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)]
        out = []
        for layer, skip in zip(reversed(self.layers), reversed(skips), strict=True):
            x = layer(x, skip)
            out.append(x)
        return out[::-1]


class FullResolutionDecoder(nn.Module):
    """The pyramid's decoder, continued to full resolution with a convolutional branch of the image itself.

    Args:
        input_channels: image channels.
        width: channels of the pyramid's feature maps.
        channels: channels of the feature maps at in-plane strides 1 to 32.
        degree: see `SegmentationViT`.
    """

    deep_supervision: bool = False
    """Flag that nnU-Net sets, see `SPADNet.deep_supervision`."""

    def __init__(self, input_channels: int, width: int, channels: Sequence[int], degree: int) -> None:
        super().__init__()
        strides = _strides(degree)
        # Thick slices are not mixed: a kernel has depth 3 only once voxels are about cubic.
        kernels: list[Stride] = [(3 if s >> degree else 1, 3, 3) for s in PLANE_STRIDES]
        self.inner = PyramidDecoder(width, channels[2:], kernels[2:], strides[2:])
        ins = (input_channels, channels[0])
        steps = (strides[0], _between(strides[0], strides[1]))
        self.encode_layers = nn.ModuleList(EncodeLayer(ins[i], channels[i], kernels[i], steps[i]) for i in range(2))
        self.decode_layers = nn.ModuleList(
            UpLayer(channels[i + 1], channels[i], kernels[i], _between(strides[i], strides[i + 1])) for i in range(2)
        )

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps at in-plane strides 1, 2, 4 and 8."""
        full = self.encode_layers[0](image)
        half = self.encode_layers[1](full)
        quarter, eighth, _ = self.inner(maps)
        half = self.decode_layers[1](quarter, half)
        return [self.decode_layers[0](half, full), half, quarter, eighth]


class SPADNet(FoundationNetwork):
    """SPAD-Nets (PUMIT) for segmentation.

    The patch depth sets the anisotropy for which the network is built: 16 voxels, halved for every power of two in the
    ratio of slice thickness to pixel size. It determines the depth stride of every layer by the rule of spatially
    adaptive convolutions, max(s * patch depth / 16, 1) for the in-plane stride s. The published network has depth 4.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        spad_patch_depth: 16, 8, 4, 2 or 1 voxels.
        pos_embed_shape: grid ``(z, y, x)`` to which pre-trained position embeddings are resampled on loading.
        num_outputs: outputs with a segmentation head, 1 (full resolution only) to 4.
        width: channels of a token.
        num_heads: attention heads.
        out_blocks: blocks of the ViT, counted from 0, for the four levels of the pyramid.
        channels: channels of the decoder's feature maps, from full resolution down.
        unit_channels: image channels in [0, 1], which the network scales to [-1, 1]; others are not changed. So voxels
            that nnU-Net pads with 0 are the darkest, not the middle of the range.
        deep_supervision: return logits of all heads, full resolution first.

    Raises:
        ValueError: for an illegal patch depth or number of outputs.
    """

    key_to_head = ("seg_heads",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spad_patch_depth: int = 4,
        pos_embed_shape: Sequence[int] = (12, 12, 12),
        num_outputs: int = 4,
        width: int = 768,
        num_heads: int = 12,
        out_blocks: Sequence[int] = (3, 5, 7, 11),
        channels: Sequence[int] = (32, 64, 128, 256, 512, 512),
        unit_channels: Sequence[int] = (),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= num_outputs <= 4:
            raise InvalidValueError(f"num_outputs is {num_outputs}, legal are 1 to 4", code="argument-value")
        degree = _degree(spad_patch_depth)
        self.strides = _strides(degree)
        self.unit_channels = list(unit_channels)
        self.key_to_encoder = "backbone"
        self.key_to_stem = "backbone.patch_embed"
        self.keys_to_in_proj = ("backbone.patch_embed.proj",)
        self.key_to_lpe = "backbone.pos_embed"
        self.backbone = SegmentationViT(
            input_channels,
            degree=degree,
            pos_embed_shape=pos_embed_shape,
            width=width,
            num_heads=num_heads,
            out_blocks=out_blocks,
        )
        self.add_module("decoder", FullResolutionDecoder(input_channels, width, channels, degree))
        self.seg_heads = nn.ModuleList(nn.Conv3d(c, num_classes, 1) for c in channels[:num_outputs])
        self.deep_supervision = deep_supervision
        self.requires_grad_()

    @classmethod
    def resolve_arguments(
        cls, arguments: Mapping[str, Any], *, patch_size: Sequence[int], spacing: Sequence[float]
    ) -> dict[str, Any]:
        """Replace ``spad_patch_depth: auto`` by the depth for the plan's spacing.

        Raises:
            ValueError: for an illegal patch depth.
        """
        resolved = dict(arguments)
        if resolved.get("spad_patch_depth") == "auto":
            resolved["spad_patch_depth"] = depth_stride(PATCH_SIZE, anisotropy_degree(spacing, PATCH_SIZE))
        _degree(resolved.get("spad_patch_depth", 4))
        return resolved

    @property
    def decoder(self) -> FullResolutionDecoder:
        """The official submodule of this name, whose flag for deep supervision nnU-Net sets."""
        return self.__getattr__("decoder")  # torch's look-up of submodules, which this property hides

    @property
    def deep_supervision(self) -> bool:
        """Whether to return logits of all heads."""
        return self.decoder.deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, value: bool) -> None:
        self.decoder.deep_supervision = value

    @property
    def encoder_keys(self) -> tuple[str, ...]:
        """The pre-trained part of the backbone; its pyramid starts at random."""
        return tuple(f"backbone.{part}" for part in ("cls_token", "pos_embed", "patch_embed", "blocks"))

    @property
    def unused_keys(self) -> tuple[str, ...]:
        coarse = range(1, 1 if self.deep_supervision else len(self.seg_heads))
        return ("backbone.norm", *(f"seg_heads.{i}" for i in coarse))

    def no_weight_decay(self) -> set[str]:
        biases = {
            f"backbone.blocks.{i}.attn.{b}" for i in range(len(self.backbone.blocks)) for b in ("q_bias", "v_bias")
        }
        return {"backbone.cls_token", "backbone.pos_embed", *biases}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups for layer decay: the embeddings, every block of the ViT, and all others."""
        stem = r"^backbone\.(?:cls_token|pos_embed|patch_embed)"
        return {"stem": stem, "blocks": [(r"^backbone\.blocks\.(\d+)\.", None)]}

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return self.strides[-1]

    @property
    def deep_supervision_scales(self) -> list[list[float]] | None:
        scales = [[1 / s for s in stride] for stride in self.strides[: len(self.seg_heads)]]
        return scales if len(scales) > 1 else None

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        if self.unit_channels:
            x = x.clone()
            x[:, self.unit_channels] = 2 * x[:, self.unit_channels] - 1
        maps = self.decoder(x, self.backbone(x))
        count = len(self.seg_heads) if self.deep_supervision else 1
        return [head(m) for head, m in zip(self.seg_heads[:count], maps, strict=False)]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fit an official state dict to this network.

        A pre-training file has the backbone's names without a prefix, a fine-tuned one the names of this network. Patch
        kernels are summed along depth to the network's patch depth, and position embeddings are resampled.

        Raises:
            ValueError: for a file of another model, or one with a smaller patch depth than the network's.
        """
        prefix = "" if any(name.startswith("backbone.") for name in state_dict) else "backbone."
        ours = {prefix + name: tensor for name, tensor in state_dict.items()}
        kernel, positions = ours.get(PATCH_KERNEL), ours.get(POSITIONS)
        if kernel is None or positions is None or kernel.ndim != 5 or positions.ndim != 5:
            raise InvalidValueError(
                "this is no file of SPAD-Nets (PUMIT), which holds a patch kernel 'patch_embed.proj.weight' and "
                "positions 'pos_embed' of five dimensions each",
                code="weights-other",
            )
        depth, own = kernel.shape[2], self.backbone.patch_embed.proj.kernel_size[0]
        if depth % own:
            raise InvalidValueError(
                f"the file's patches are {depth} voxels deep, the network's {own}, and patch kernels can be summed but "
                f"not divided: build the network with spad_patch_depth {depth} or less",
                code="weights-depth",
            )
        if depth != own:
            ours[PATCH_KERNEL] = sum_depth(kernel, own)
        ours[POSITIONS] = resample_positions(positions, self.backbone.pos_embed.shape[2:])
        stem, channels = ours.get(IMAGE_KERNEL), self.backbone.patch_embed.proj.in_channels
        if stem is not None and stem.shape[1] != channels:
            ours[IMAGE_KERNEL] = (stem.sum(dim=1, keepdim=True) / channels).expand(-1, channels, -1, -1, -1)
        return ours
