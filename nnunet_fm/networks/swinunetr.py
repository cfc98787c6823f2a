"""SwinUNETR (Hatamizadeh et al., arXiv 2201.01266) as its official checkpoints were trained: SuPreM and DAE.

Blocks are MONAI's. Parameters have the names and numbers of the official code (MrGiovanni/SuPreM, and DAE in
Project-MONAI/research-contributions), so that its checkpoints load directly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.window_attention import WindowAttention
from nnunet_fm.published_quirks import MERGED, merging_padding

LEVELS = 5
"""Halvings from the image to the bottleneck: the patch embedding and four stages."""

UNUSED = re.compile(r"^encoder(2|3|4|10)\.layer\.conv3\.")
"""Shortcut convolutions that MONAI 0.8 created for blocks of equal widths, saved, and never applied."""

PRETEXT = re.compile(r"^(encoder\.mask_token$|encoder\.norm\.|out\.)")
"""Names of self-supervised training only; its ``out`` reconstructs the image."""


class PatchMerging(nn.Module):
    """Halve every axis of ``(B, D, H, W, C)`` and double the channels, like MONAI's layer up to version 1.4.

    Args:
        dim: channels C of the input.
        norm_layer: class of the norm over the concatenated channels.
        spatial_dims: 3, passed by MONAI.
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise InvalidValueError(
                f"patch merging of volumes, got {spatial_dims} spatial dimensions", code="argument-value"
            )
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        odd = [size % 2 for size in x.shape[1:4]]
        if any(odd):
            x = F.pad(x, merging_padding(odd))
        x = torch.cat([x[:, d::2, h::2, w::2] for d, h, w in MERGED], dim=-1)
        return self.reduction(self.norm(x))


def swin_transformer(input_channels: int, feature_size: int = 48) -> SwinTransformer:
    """The encoder: MONAI's Swin transformer with the official patch merging and our attention.

    ``(B, C, D, H, W)`` in; five feature maps out, at 1/2 to 1/32 of the resolution, the first with `feature_size`
    channels, each next one with twice as many.
    """
    default = torch.get_default_device()
    with torch.device("cpu"):  # the constructor reads values of a tensor, which the meta device lacks
        swin = SwinTransformer(
            in_chans=input_channels,
            embed_dim=feature_size,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            downsample=PatchMerging,
        )
        for stage in (swin.layers1, swin.layers2, swin.layers3, swin.layers4):
            for block in stage[0].blocks:
                block.attn = WindowAttention(block.dim, block.num_heads, block.window_size, qkv_bias=True)
    return swin.to(default)


def residual_block(in_channels: int, out_channels: int) -> UnetrBasicBlock:
    """Two 3x3x3 convolutions with a shortcut, and instance norms without parameters."""
    return UnetrBasicBlock(3, in_channels, out_channels, 3, 1, "instance", res_block=True)


def up_block(in_channels: int, out_channels: int) -> UnetrUpBlock:
    """A transposed convolution, and a residual block of its output and a skip connection."""
    return UnetrUpBlock(3, in_channels, out_channels, 3, 2, "instance", res_block=True)


def swin_groups(coarse: bool = False) -> dict[str, Any]:
    """Layers of ``swinViT`` from the input on, in timm's format for layer decay; all others come after them."""
    stage = r"^swinViT\.layers(\d+)"
    # 99999 is timm's mark for a module of the previous layer: a merging has the learning rate of the block before it.
    blocks = [(rf"{stage}\.0\.blocks\.(\d+)", None), (rf"{stage}\.0\.downsample", (99999,))]
    return {"stem": r"^swinViT\.patch_embed", "blocks": stage if coarse else blocks}


class SwinUNETR(FoundationNetwork):
    """SwinUNETR as fine-tuned by SuPreM.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        feature_size: channels at full resolution; each halving after the first doubles them.
        axes: order of the spatial axes in which the weights were trained, ``zyx`` or ``xyz``.
        deep_supervision: without effect, there is one output.
    """

    key_to_head = ("out",)
    convolutional = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        feature_size: int = 48,
        axes: Literal["zyx", "xyz"] = "zyx",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.key_to_encoder = "swinViT"
        self.key_to_stem = "swinViT.patch_embed"
        self.keys_to_in_proj: Sequence[str] = (
            "swinViT.patch_embed.proj",
            "encoder1.layer.conv1.conv",
            "encoder1.layer.conv3.conv",
        )
        self.key_to_lpe = None
        self.deep_supervision = deep_supervision
        self.reversed_axes = axes == "xyz"

        width = feature_size
        self.swinViT = swin_transformer(input_channels, width)
        self.encoder1 = residual_block(input_channels, width)
        self.encoder2 = residual_block(width, width)
        self.encoder3 = residual_block(2 * width, 2 * width)
        self.encoder4 = residual_block(4 * width, 4 * width)
        self.encoder10 = residual_block(16 * width, 16 * width)
        self.decoder5 = up_block(16 * width, 8 * width)
        self.decoder4 = up_block(8 * width, 4 * width)
        self.decoder3 = up_block(4 * width, 2 * width)
        self.decoder2 = up_block(2 * width, width)
        self.decoder1 = up_block(width, width)
        self.out = UnetOutBlock(3, width, num_classes)

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return (2**LEVELS,) * 3

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        hidden = self.swinViT(x)
        out = self.decoder5(self.encoder10(hidden[4]), hidden[3])
        out = self.decoder4(out, self.encoder4(hidden[2]))
        out = self.decoder3(out, self.encoder3(hidden[1]))
        out = self.decoder2(out, self.encoder2(hidden[0]))
        out = self.decoder1(out, self.encoder1(x))
        return [self.out(out)]

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers in timm's format, see `swin_groups`."""
        return swin_groups(coarse)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert names of a fine-tuned network or of a self-supervised file.

        Tensors of the pretext task, and idle convolutions of MONAI 0.8, are left out.

        Raises:
            ValueError: for the weights of DAE.
        """
        if _has_two_convolutions(state_dict):
            raise InvalidValueError(
                "these are the weights of DAE, whose patch embedding has two convolutions (patch_embed.proj.conv1): "
                "the model 'dae' takes them",
                code="weights-other",
            )
        return own_names(state_dict)


class DAE(SwinUNETR):
    """SwinUNETR with two convolutions as its patch embedding (Valanarasu et al., DAE, arXiv 2307.16896).

    Arguments are those of `SwinUNETR`.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        feature_size: int = 48,
        axes: Literal["zyx", "xyz"] = "zyx",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(
            input_channels, num_classes, feature_size=feature_size, axes=axes, deep_supervision=deep_supervision
        )
        norm = ("instance", {"affine": True})
        self.swinViT.patch_embed.proj = UnetBasicBlock(3, input_channels, feature_size, 3, 2, norm)
        self.keys_to_in_proj = ("swinViT.patch_embed.proj.conv1.conv", *self.keys_to_in_proj[1:])

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `SwinUNETR.from_official`.

        Raises:
            ValueError: for weights of a SwinUNETR with the plain patch embedding.
        """
        if any(name.endswith("patch_embed.proj.weight") for name in state_dict):
            self_supervised = any(name.startswith("encoder.") for name in state_dict)
            kind = "the self-supervised" if self_supervised else "those of SuPreM or another"
            checkpoint = "swinunetr_ssl_50000" if self_supervised else "suprem_swinunetr"
            raise InvalidValueError(
                f"these are not the weights of DAE but {kind} SwinUNETR with one convolution as its patch embedding "
                f"(patch_embed.proj.weight): the model 'suprem' takes them, as its checkpoint '{checkpoint}'",
                code="weights-other",
            )
        return own_names(state_dict)


def own_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict to the network's names, without tensors that the network does not have.

    Self-supervised files call the transformer ``encoder``, have a further index for its stages (``layers1.0.0``), and
    some call the layers of its MLPs ``fc1`` and ``fc2``.
    """
    self_supervised = any(name.startswith("encoder.") for name in state_dict)
    own = {}
    for name, tensor in state_dict.items():
        if UNUSED.search(name) or (self_supervised and PRETEXT.search(name)):
            continue
        name = re.sub(r"^encoder\.(layers\d\.0)\.0\.", r"swinViT.\1.", name)
        name = re.sub(r"^encoder\.", "swinViT.", name)
        own[re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name)] = tensor
    return own


def _has_two_convolutions(state_dict: Mapping[str, Tensor]) -> bool:
    return any("patch_embed.proj.conv1." in name for name in state_dict)
