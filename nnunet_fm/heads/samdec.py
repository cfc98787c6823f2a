"""SAM's mask decoder as a decode head: one mask for each class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nnunet_fm.heads.base import FeatureMaps
from nnunet_fm.heads.sam_base import SAMHead
from nnunet_fm.heads.sam_decoder import BatchedMaskDecoder, TwoWay, dot


class SAMDecHead(SAMHead):
    """SAM's prompt encoder and mask decoder (Kirillov et al., arXiv 2304.02643), the layers of the IoU frozen.

    5,612,716 trained parameters for 15 classes with the neck in the backbone, 6,400,172 with it here at 768 channels;
    6,220 fewer with a frozen prompt encoder.

    Args:
        features: channels and grid of the last feature map.
        num_classes: output channels.
        train_prompt_encoder: whether the prompt encoder is trained.
    """

    neck_in_backbone = True

    def __init__(self, features: FeatureMaps, num_classes: int, *, train_prompt_encoder: bool = True) -> None:
        super().__init__(features, num_classes)
        self.mask_decoder = BatchedMaskDecoder(num_classes, TwoWay())
        self.frozen_keys = ("mask_decoder.iou_prediction_head",)
        if not train_prompt_encoder:
            self.frozen_keys += ("prompt_encoder",)
        for key in self.frozen_keys:
            self.get_submodule(key).requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        decoded = self.mask_decoder(self.embed(features[0]))
        return [dot(self.mask_decoder.kernels(decoded.tokens, slice(1, None)), decoded.upscaled)]
