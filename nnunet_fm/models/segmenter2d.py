"""A 2D backbone and a decode head as one segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from nnunet_fm.backbones import create_backbone
from nnunet_fm.heads import create_head
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.networks.slices import channel_stem, from_square, imagenet_normalise, to_rgb, to_square

InputRange = Literal["unit", "standardised"]


class FoundationSegmenter2D(FoundationNetwork):
    """Slices ``(B, C, Y, X)`` of any size to logits ``(B, K, Y, X)``, through a backbone of one square size.

    Args:
        input_channels: image channels; mapped to three as in `slices.to_rgb`.
        num_classes: output channels.
        backbone: name of a backbone.
        head: name of a decode head.
        image_size: slices are resized to this edge in pixels, keeping their aspect ratio, and logits back.
        input_range: "unit" for data in [0, 1], which get ImageNet's mean and standard deviation; "standardised" for
            data of about zero mean and unit variance, which are fed as they are.
        deep_supervision: accepted for a common signature; there is one output.
        head_arguments: further arguments of the head.

    Raises:
        ValueError: for an unknown backbone, head or input range, or a size that the backbone cannot take.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        backbone: str,
        head: str = "linear",
        image_size: int = 224,
        input_range: InputRange = "unit",
        deep_supervision: bool = False,
        head_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if input_range not in ("unit", "standardised"):
            raise ValueError(f"input_range is 'unit' or 'standardised', got '{input_range}'")
        self.image_size = image_size
        self.input_range = input_range
        self.deep_supervision = deep_supervision
        self.stem = channel_stem(input_channels)
        self.backbone = create_backbone(backbone, image_size)
        channels, grid = self.backbone.embed_dim, self.backbone.grid
        self.head = create_head(head, channels, num_classes, grid, **(head_arguments or {}))
        self.blocks = self.backbone.default_blocks[: self.head.maps]
        self.key_to_encoder = "backbone"
        if self.stem is None:
            self.key_to_stem = f"backbone.{self.backbone.key_to_patch_embed}"
            self.keys_to_in_proj = tuple(f"backbone.{key}" for key in self.backbone.keys_to_in_proj)
        else:
            self.key_to_stem, self.keys_to_in_proj = "stem", ("stem",)
        self.key_to_lpe = f"backbone.{self.backbone.key_to_lpe}" if self.backbone.key_to_lpe else None
        self.key_to_head = (f"head.{self.head.key_to_classifier}",)

    @property
    def size_multiple(self) -> tuple[int, ...]:
        return (1, 1)

    def forward_logits(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        x = to_rgb(to_square(x, self.image_size), self.stem)
        if self.input_range == "unit":
            x = imagenet_normalise(x)
        return [from_square(logits, size) for logits in self.head(self.backbone.features(x, self.blocks))]
