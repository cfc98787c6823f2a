"""HQ-SAM's mask decoder as a decode head: SAM's decoder with finer features of an early block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.sam_base import SAMHead
from nnunet_fm.heads.sam_decoder import (
    WIDTH,
    BatchedMaskDecoder,
    ChannelNorm,
    Decoded,
    Embedded,
    TwoWay,
    dot,
    upscaling,
)


class HQMaskDecoder(BatchedMaskDecoder):
    """SAM's mask decoder with a high-quality token behind the others, and a high-quality feature map.

    Args:
        masks: number of masks beside the first one and the high-quality one.
        early_channels: channels of the early block's feature map.
    """

    def __init__(self, masks: int, early_channels: int) -> None:
        super().__init__(masks, TwoWay())
        narrow = WIDTH // 8
        self.hf_token = nn.Embedding(1, WIDTH)
        self.hf_mlp = MLP(WIDTH, WIDTH, narrow, 3)
        self.compress_vit_feat = upscaling(early_channels, WIDTH, narrow)
        self.embedding_encoder = upscaling(WIDTH, WIDTH // 4, narrow)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(narrow, WIDTH // 4, 3, padding=1),
            ChannelNorm(WIDTH // 4),
            nn.GELU(),
            nn.Conv2d(WIDTH // 4, narrow, 3, padding=1),
        )

    def all_tokens(self) -> Tensor:
        return torch.cat((super().all_tokens(), self.hf_token.weight))

    def kernel_networks(self) -> Iterable[nn.Module]:
        return (*self.output_hypernetworks_mlps, self.hf_mlp)

    def fine(self, embedded: Embedded, early: Tensor) -> Tensor:
        """Fine features ``(B, C / 8, 4 h, 4 w)`` of the embedding and the early block's feature map."""
        return self.embedding_encoder(embedded.image) + self.compress_vit_feat(early)

    def high_quality(self, decoded: Decoded, embedded: Embedded, early: Tensor) -> Tensor:
        """High-quality feature map ``(B, C / 8, 4 h, 4 w)`` beside SAM's own, ``decoded.upscaled``."""
        return self.embedding_maskfeature(decoded.upscaled) + self.fine(embedded, early)


class HQSAMHead(SAMHead):
    """HQ-SAM's decoder (Ke et al., arXiv 2306.01567), all of it trained: 7,606,972 parameters for 15 classes.

    Every class has a high-quality mask, like in the thesis and unlike the official code: the kernels of the classes are
    multiplied with both feature maps. Training uses only the high-quality masks; evaluation adds SAM's. The
    high-quality token has no mask in the output; it acts through the attention of tokens.

    Args:
        features: channels and grid of the last and the early feature map.
        num_classes: output channels.
    """

    maps = 2

    def __init__(self, features: FeatureMaps, num_classes: int) -> None:
        super().__init__(features, num_classes)
        self.mask_decoder = HQMaskDecoder(num_classes, features.channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        last, early = features
        embedded = self.embed(last)
        decoded = self.mask_decoder(embedded)
        maps = self.mask_decoder.high_quality(decoded, embedded, early)
        if not self.training:
            maps = maps + decoded.upscaled
        return [dot(self.mask_decoder.kernels(decoded.tokens, slice(1, -1)), maps)]
