"""H-SAM's two decoders as a decode head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_fm.cpu.upsample import upsample
from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.hsam_decoder import RefiningDecoder, cross_first_transformer
from nnunet_fm.heads.sam_base import SAMHead
from nnunet_fm.heads.sam_decoder import BatchedMaskDecoder, Decoded, Embedded, dot

NOISE = 0.2
"""Standard deviation of the noise on the second stage's image in training, as a share of the image's range."""


class TwoStageHead(SAMHead):
    """A mask decoder and H-SAM's second stage, which refines its masks; both are supervised.

    Training returns the logits of both stages, each at its own resolution, evaluation their mean. A subclass implements
    `first_stage`.

    Args:
        features: channels and grid of the feature maps; parameters depend on the number of patches.
        num_classes: output channels.
        repaired: see `hsam_decoder.RefiningDecoder`.

    Attributes:
        further_masks: number of masks of each stage beside those of the classes.
        classes: indices of the classes' masks.
    """

    loss_weights = (0.4, 0.6)
    keys_to_classifier = (
        *SAMHead.keys_to_classifier,
        "mask_decoder2.mask_tokens",
        "mask_decoder2.output_hypernetworks_mlps2",
        "mask_decoder2.iou_prediction_head.layers.2",
        "mask_decoder2.med_sel",
    )
    further_masks: int
    classes: slice

    def __init__(self, features: FeatureMaps, num_classes: int, *, repaired: bool = False) -> None:
        super().__init__(features, num_classes)
        height, width = features.grid
        self.mask_decoder2 = RefiningDecoder(num_classes + self.further_masks, height * width, repaired=repaired)

    @abstractmethod
    def first_stage(self, embedded: Embedded, features: Sequence[Tensor]) -> tuple[Decoded, Tensor]:
        """Output of the first stage, and all its masks ``(B, T, 4 h, 4 w)``."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        embedded = self.embed(features[0])
        decoded, masks = self.first_stage(embedded, features)
        if self.training:
            embedded = embedded._replace(image=with_noise(embedded.image))
        refined = self.mask_decoder2(embedded, masks, decoded)
        first = masks[:, self.classes]
        second = dot(self.mask_decoder2.kernels(refined.tokens, self.classes), refined.upscaled)
        if self.training:
            return [first, second]
        return [(upsample(first, second.shape[2:]) + second) / 2]


class HSAMHead(TwoStageHead):
    """H-SAM's decoders (Cheng et al., arXiv 2403.18271): 15,978,153 parameters for 15 classes and 196 patches.

    Like in the thesis, each stage has a mask without a class beside those of the classes, and the loss does not weight
    rare classes.

    Args:
        features: channels and grid of the last feature map; parameters depend on the number of patches.
        num_classes: output channels.
        repaired: see `hsam_decoder.RefiningDecoder`.
    """

    further_masks = 1
    classes = slice(1, None)

    def __init__(self, features: FeatureMaps, num_classes: int, *, repaired: bool = False) -> None:
        super().__init__(features, num_classes, repaired=repaired)
        self.mask_decoder = BatchedMaskDecoder(num_classes, cross_first_transformer())

    def first_stage(self, embedded: Embedded, features: Sequence[Tensor]) -> tuple[Decoded, Tensor]:
        decoded = self.mask_decoder(embedded)
        return decoded, dot(self.mask_decoder.kernels(decoded.tokens), decoded.upscaled)


def with_noise(image: Tensor) -> Tensor:
    """Add Gaussian noise whose standard deviation is a share of the whole tensor's range."""
    low, high = image.detach().aminmax()
    return image + torch.randn_like(image) * (NOISE * (high - low))
