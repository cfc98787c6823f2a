"""HQHSAM: HQ-SAM's decoder as the first stage of H-SAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.hqsam import HQMaskDecoder
from nnunet_fm.heads.hsam import TwoStageHead
from nnunet_fm.heads.sam_decoder import Decoded, Embedded, dot


class HQHSAMHead(TwoStageHead):
    """The thesis's own head (arXiv 2409.07960): 17,317,051 parameters for 15 classes and 196 patches of 768 channels.

    The first stage's mask of a class is the mean of SAM's mask and the high-quality mask. The second stage gets two
    further masks: SAM's mask of the first token and the high-quality mask of the last.

    Args:
        features: channels and grid of the last and the early feature map; parameters depend on the number of patches.
        num_classes: output channels.
        repaired: see `hsam_decoder.RefiningDecoder`.
    """

    maps = 2
    further_masks = 2
    classes = slice(1, -1)

    def __init__(self, features: FeatureMaps, num_classes: int, *, repaired: bool = False) -> None:
        super().__init__(features, num_classes, repaired=repaired)
        self.mask_decoder = HQMaskDecoder(num_classes, features.channels)

    def first_stage(self, embedded: Embedded, features: Sequence[Tensor]) -> tuple[Decoded, Tensor]:
        decoded = self.mask_decoder(embedded)
        sam, fine = decoded.upscaled, self.mask_decoder.high_quality(decoded, embedded, features[1])
        mean = (sam + fine) / 2  # with the same kernels, the mean of feature maps gives the mean of masks
        kernels = self.mask_decoder.kernels(decoded.tokens)
        masks = (dot(kernels[:, :1], sam), dot(kernels[:, 1:-1], mean), dot(kernels[:, -1:], fine))
        return decoded._replace(upscaled=mean), torch.cat(masks, dim=1)
