"""Base of heads of the SAM family: neck, prompt encoder, positions, and official weights of all parts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.heads.base import FeatureMaps, Head
from nnunet_fm.heads.sam_decoder import WIDTH, BatchedMaskDecoder, ChannelNorm, Embedded

SAM_PATCH = 16
"""Size in pixels of SAM's patches; the prompt encoder has their grid for any backbone."""
MASK_PROMPT_WIDTH = 16


def sam_neck(channels: int) -> nn.Sequential:
    """The end of SAM's image encoder: ``(B, channels, h, w)`` -> ``(B, 256, h, w)``."""
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 1, bias=False),
        ChannelNorm(WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        ChannelNorm(WIDTH),
    )


class SAMHead(Head):
    """A neck, SAM's prompt encoder without a prompt, and a mask decoder.

    A subclass sets the decoder, whose input is that of `embed`. Neck and prompt encoder start from SAM's weights, the
    mask decoder from random ones (as published). There is a mask per class; the first mask, officially for unambiguous
    prompts, is left out of the logits.
    """

    maps = 1
    find_unused_parameters = True  # of embeddings of points, boxes and masks, predicted IoU, kernel of the first mask
    keys_to_classifier: tuple[str, ...] = (
        "mask_decoder.mask_tokens",
        "mask_decoder.output_hypernetworks_mlps",  # all of them: their number is that of the classes
        "mask_decoder.iou_prediction_head.layers.2",
    )
    mask_decoder: BatchedMaskDecoder

    def __init__(self, features: FeatureMaps, num_classes: int) -> None:
        super().__init__(features, num_classes)
        height, width = (max(size * features.patch_size // SAM_PATCH, 1) for size in features.grid)
        self.neck = sam_neck(features.channels)
        self.prompt_encoder = PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(height, width),
            input_image_size=(height * SAM_PATCH, width * SAM_PATCH),
            mask_in_chans=MASK_PROMPT_WIDTH,
        )

    def embed(self, last: Tensor) -> Embedded:
        """Input of the decoder from the last block's feature map ``(B, C, h, w)``, or from the backbone's neck."""
        image = last if self.neck is None else self.neck(last)
        prompt = self.prompt_encoder.no_mask_embed.weight[..., None, None]
        return Embedded(image, prompt, self._positions(image.shape[2:]))

    def _positions(self, grid: torch.Size) -> Tensor:
        """Positions ``(1, 256, *grid)``, resized from those on the prompt encoder's own grid.

        This leaves autocast, because in bfloat16 the phases of the sines would have two digits.
        """
        device = self.prompt_encoder.no_mask_embed.weight.device.type
        available = torch.amp.is_autocast_available(device)  # not on the meta device
        with torch.autocast(device, enabled=False) if available else nullcontext():
            positions: Tensor = self.prompt_encoder.get_dense_pe()
        own = positions.shape[2:]
        if own == grid:
            return positions
        if grid.numel() < own.numel():
            return F.interpolate(positions, size=grid, mode="area")
        return F.interpolate(positions, size=grid, mode="bilinear", align_corners=False)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the tensors of a whole official SAM, MedSAM or HQ-SAM that this head starts from.

        The neck is left out if the file is for a backbone of another width, or if the backbone has the neck. The mask
        decoder is left out unless `starts_mask_decoder` is set, and where shapes differ.

        Raises:
            ValueError: if the file lacks tensors of the neck or the prompt encoder, or a wanted mask decoder.
        """
        own = self.state_dict()
        official = {name: f"image_encoder.{name}" if name.startswith("neck.") else name for name in own}
        needed = [name for name in own if name.startswith(("neck.", "prompt_encoder."))]
        missing = [official[name] for name in needed if official[name] not in state_dict]
        if self.starts_mask_decoder and "mask_decoder.iou_token.weight" not in state_dict:
            missing.append("mask_decoder.iou_token.weight")
        if missing:
            raise InvalidValueError(
                f"a decode head of the SAM family starts from a whole SAM or MedSAM (image_encoder, prompt_encoder, "
                f"mask_decoder); the file lacks {len(missing)} tensors of these, such as {missing[0]}",
                code="weights-decoder",
            )
        fits = [name for name in own if _fits(own[name], state_dict.get(official[name]))]
        wanted = [name for name in needed if name.startswith("prompt_encoder.")]
        if "neck.0.weight" in fits:
            wanted += [name for name in needed if name.startswith("neck.")]
        if self.starts_mask_decoder:
            classes = () if "mask_decoder.mask_tokens.weight" in fits else self.keys_to_classifier
            wanted += [n for n in fits if n.startswith("mask_decoder.") and not n.startswith(classes)]
        return {name: state_dict[official[name]] for name in wanted}


def _fits(mine: Tensor, theirs: Tensor | None) -> bool:
    return theirs is not None and mine.shape == theirs.shape
