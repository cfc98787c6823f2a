"""SwinMM: SwinUNETR with several views of a volume (Wang et al., MICCAI 2023).

Parameters have the names and numbers of the official code (UCSC-VLAA/SwinMM), so that its checkpoints load directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.networks.swinunetr import SwinUNETR, residual_block

VIEWS = 3
"""View 0 is the volume itself, view 1 has its first two axes exchanged, view 2 the first and the last."""

FLOOR = -80.0
"""Smallest logarithm of a probability after fusion; that of float32 is -87."""

Views = tuple[int, int]

REGIONS_MARK = "regions"
"""Entry of the state dict of a network trained on overlapping regions; all others have exactly the official names."""


def exchange(x: Tensor, view: int) -> Tensor:
    """Transform ``(B, C, X, Y, Z)`` from the volume's frame to that of a view; the same exchange transforms it back."""
    return x.transpose(2, 2 + view)


class CrossAttention(nn.Module):
    """Multi-head attention from the tokens of one view, ``(B, N, C)``, to those of the other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(other), self.value(other))
        )
        out = F.scaled_dot_product_attention(query, key, value)
        return self.out(out.transpose(1, 2).flatten(2))


class FusionLayer(nn.Module):
    """Attention of both views to one another with shared weights, without residual and MLP (like the official code)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossAttention(dim, heads)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.attention_norm(a), self.attention_norm(b)
        return self.attn(a, b), self.attn(b, a)


class Fusion(nn.Module):
    """Exchange of information between the bottlenecks of two views, ``(B, C, D, H, W)`` each, in one common frame.

    Args:
        dim: channels C.
        heads: attention heads.
        grid: size of the cubic token grid of the learned positions, which are resampled to any other grid.
        depth: layers.
    """

    def __init__(self, dim: int, heads: int, grid: int, depth: int) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embeddings = nn.Conv3d(dim, dim, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid**3, dim))
        self.layer = nn.ModuleList(FusionLayer(dim, heads) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        size = a.shape[2:]
        positions = resampled(self.position_embeddings, size)
        a, b = (self.patch_embeddings(x).flatten(2).transpose(1, 2) + positions for x in (a, b))
        for layer in self.layer:
            a, b = layer(a, b)
        a, b = (self.encoder_norm(x).transpose(1, 2).unflatten(2, size) for x in (a, b))
        return a, b


def resampled(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Resample positions ``(1, N, C)`` of a cubic grid trilinearly to another grid: ``(1, D*H*W, C)``."""
    length = round(positions.shape[1] ** (1 / 3))
    if tuple(size) == (length, length, length):
        return positions
    cube = positions.transpose(1, 2).unflatten(2, (length, length, length))
    return F.interpolate(cube, size=tuple(size), mode="trilinear").flatten(2).transpose(1, 2)


class MutualLoss(nn.Module):
    """Supervision of two views, and their divergence from one another.

    The divergence is the mean of both Kullback-Leibler divergences, averaged over all elements (like the official
    code), with gradients through both sides; ignored voxels count. The sum of both divergences is
    ``sum((p - q) * (logits of p - logits of q))``, because the normalisation of the logits cancels. With regions, each
    output is a distribution over inside and outside, two elements.

    Args:
        loss: supervision of one output.
        regions: whether outputs are independent probabilities (sigmoid) instead of exclusive classes (softmax).
    """

    def __init__(self, loss: nn.Module, regions: bool) -> None:
        super().__init__()
        self.loss = loss
        self.regions = regions

    def forward(self, outputs: Tensor | list[Tensor], target: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.loss(outputs, target)
        a, b = (out.float() for out in outputs)
        difference = a.sigmoid() - b.sigmoid() if self.regions else a.softmax(1) - b.softmax(1)
        divergence = (difference * (a - b)).mean() / (4 if self.regions else 2)
        return (self.loss(a, target) + self.loss(b, target)) / 2 + divergence


def mean_probability(outputs: Iterable[Tensor], regions: bool) -> Tensor:
    """Float32 logits whose softmax (sigmoid with ``regions``) is the mean of the outputs' probabilities.

    Logarithms are clamped at `FLOOR`, because nnU-Net adds up weighted logits in half precision, where larger values
    would become infinite. Outputs are read one after the other, to save memory.
    """
    sums: list[Tensor] = []
    count = 0
    for out in outputs:
        x = out.float()
        parts = [x.sigmoid(), (-x).sigmoid()] if regions else [x.softmax(1)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        count += 1
    logs = [(p / count).clamp_min(math.exp(FLOOR)).log() for p in sums]
    return logs[0] - logs[1] if regions else logs[0]


class SwinMM(SwinUNETR):
    """SwinMM. Training uses two of three views at random, evaluation all three pairs.

    In training mode the output is a list of two logits, both in the frame of the input. In eval mode the softmax of the
    output is the mean of six: two for each of the pairs ``(i, i + 1 mod 3)``. It is taken in every window, while the
    official code blends windows view by view and averages the six volumes.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        grid: size of the token grid of the learned positions at the bottleneck, patch size / 32: 2 for 64, 3 for 96.
        fusion_depth: layers of cross attention; the official scripts build one, the default of the official class is
            two.
        in_origin_view: whether views are fused in the volume's own frame instead of that of the first view.
        feature_size: channels at full resolution; each halving after the first doubles them.
        axes: order of the spatial axes in which the weights were trained, ``zyx`` or ``xyz``.
        deep_supervision: without effect, there is one resolution.
    """

    regions: bool = False
    """Whether outputs are independent probabilities of overlapping regions (sigmoid).

    `wrap_loss` sets it in training; the state dict passes it on to prediction.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        grid: int = 2,
        fusion_depth: int = 1,
        in_origin_view: bool = False,
        feature_size: int = 48,
        axes: Literal["zyx", "xyz"] = "zyx",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(
            input_channels, num_classes, feature_size=feature_size, axes=axes, deep_supervision=deep_supervision
        )
        self.in_origin_view = in_origin_view
        self.encoder5 = residual_block(8 * feature_size, 8 * feature_size)
        self.cross_atte6 = Fusion(16 * feature_size, 24, grid, fusion_depth)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Feature maps of one view, full resolution first, the bottleneck last."""
        hidden = self.swinViT(x)
        encoders = (self.encoder2, self.encoder3, self.encoder4, self.encoder5, self.encoder10)
        return [self.encoder1(x), *(encoder(h) for encoder, h in zip(encoders, hidden, strict=True))]

    def fuse(self, a: Tensor, b: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """Fuse the bottlenecks of two views in a common frame; input and output are each in the frame of its view."""
        first, second = views
        if self.in_origin_view:
            a, b = self.cross_atte6(exchange(a, first), exchange(b, second))
            return exchange(a, first), exchange(b, second)
        a, b = self.cross_atte6(a, exchange(exchange(b, second), first))
        return a, exchange(exchange(b, first), second)

    def decode(self, bottleneck: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Logits of one view in its own frame, from its fused bottleneck and its feature maps of `encode`."""
        x = bottleneck
        decoders = (self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1)
        for decoder, skip in zip(decoders, reversed(features[:-1]), strict=True):
            x = decoder(x, skip)
        return self.out(x)

    def forward_views(self, a: Tensor, b: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """The official forward pass: logits of two inputs, each in the frame of its view."""
        features = self.encode(a), self.encode(b)
        fused = self.fuse(features[0][-1], features[1][-1], views)
        return self.decode(fused[0], features[0]), self.decode(fused[1], features[1])

    @property
    def several_outputs(self) -> bool:
        return self.training

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        if self.training:
            first, second = views = draw_views()
            a, b = self.forward_views(exchange(x, first), exchange(x, second), views)
            return [exchange(a, first), exchange(b, second)]
        return [mean_probability(self._all_outputs(x), self.regions)]

    def _all_outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The six outputs of three pairs of views, in the frame of `x`, each view encoded once."""
        features = [self.encode(exchange(x, view)) for view in range(VIEWS)]
        for first in range(VIEWS):
            second = (first + 1) % VIEWS
            fused = self.fuse(features[first][-1], features[second][-1], (first, second))
            for view, bottleneck in zip((first, second), fused, strict=True):
                yield exchange(self.decode(bottleneck, features[view]), view)

    def wrap_loss(self, loss: nn.Module, *, regions: bool = False) -> nn.Module:
        self.regions = regions
        return MutualLoss(loss, regions)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"cross_atte6.position_embeddings"}

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert names of the pre-training file (only the Swin encoder) or of a fine-tuned network.

        Raises:
            ValueError: for the file of another network.
        """
        names = {name: name.replace("swin_vit", "swinViT").replace("backbone.", "") for name in state_dict}
        own = {names[name]: tensor for name, tensor in state_dict.items()}
        parts = {name.split(".")[0] for name in own}
        if "swinViT" not in parts:
            raise InvalidValueError("no SwinMM file: it holds no 'swinViT' (SwinMM's encoder)", code="weights-other")
        if "decoder1" in parts and "cross_atte6" not in parts:
            raise InvalidValueError(
                "no SwinMM file: it holds a SwinUNETR without 'cross_atte6' (SwinMM's fusion of views)",
                code="weights-other",
            )
        positions = own.get("cross_atte6.position_embeddings")
        if positions is not None and positions.shape[1] != self.cross_atte6.grid**3:
            own["cross_atte6.position_embeddings"] = resampled(positions, [self.cross_atte6.grid] * 3)
        own.pop(REGIONS_MARK, None)  # the new training decides
        if self.regions:
            own[REGIONS_MARK] = torch.tensor(True, device="cpu")
        return own

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.regions:
            destination[prefix + REGIONS_MARK] = torch.tensor(True, device="cpu")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.regions = state_dict.pop(prefix + REGIONS_MARK, None) is not None
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def draw_views() -> Views:
    """Draw two different views from the CPU's generator, which does not wait for a GPU."""
    first, second, _ = torch.randperm(VIEWS, device="cpu").tolist()
    return first, second
