"""ResNets without their classifier (He et al., arXiv 1512.03385), by torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from torch import Tensor, nn

from nnunet_fm.backbones.base import Backbone, Norm, Refine
from nnunet_fm.errors import InvalidValueError

STEM = ("conv1", "bn1", "relu", "maxpool")
STAGES = ("layer1", "layer2", "layer3", "layer4")
STEM_STRIDE = 4
WIDTH = 64
"""Size in pixels of an element, and channels before expansion, of the first stage; later stages double both."""


class ResNet(Backbone):
    """A torchvision ResNet; its blocks are the residual blocks of all stages.

    Feature maps of different stages differ in channels and grid, see `map_shape`.

    Args:
        layers: 18, 34, 50, 101 or 152.
        skip_last_stage: whether to build the network without its last stage, ``layer4``.
        image_size: size in pixels, or ``(Y, X)``; multiples of 32, of 16 without the last stage, so that the feature
            maps of all stages cover the same pixels.

    Raises:
        ValueError: if a size is no such multiple.
    """

    key_to_patch_embed = "resnet.conv1"
    keys_to_in_proj = ("resnet.conv1",)

    def __init__(self, layers: int, *, image_size: int | tuple[int, int], skip_last_stage: bool = False) -> None:
        super().__init__()
        self.patch_size = self.image_multiple(skip_last_stage=skip_last_stage)
        self.sizes = (image_size, image_size) if isinstance(image_size, int) else image_size
        if any(length < self.patch_size or length % self.patch_size for length in self.sizes):
            raise InvalidValueError(
                f"this ResNet takes image sizes that are multiples of {self.patch_size}, got {image_size}",
                code="image-edges",
            )
        whole = torchvision.models.get_model(f"resnet{layers}", weights=None)
        self.stages = STAGES[:-1] if skip_last_stage else STAGES
        self.resnet = nn.ModuleDict({name: whole.get_submodule(name) for name in (*STEM, *self.stages)})
        self.depth = len(self._blocks())
        self.embed_dim, self.grid = self.map_shape(self.depth - 1)

    @classmethod
    def image_multiple(cls, **arguments: Any) -> int:
        return STEM_STRIDE * 2 ** (len(STAGES) - 1 - arguments.get("skip_last_stage", False))

    def map_shape(self, block: int) -> tuple[int, tuple[int, int]]:
        stage, module = self._blocks()[block]
        stride = STEM_STRIDE * 2**stage
        channels = WIDTH * 2**stage * int(module.expansion)  # type: ignore[arg-type]
        return channels, (self.sizes[0] // stride, self.sizes[1] // stride)

    def features(
        self, x: Tensor, blocks: Sequence[int], *, norm: Norm | None = None, refine: Refine | None = None
    ) -> list[Tensor]:
        """See `Backbone.features`; a ResNet has neither a final norm nor tokens.

        Raises:
            ValueError: if `refine` is given.
        """
        if refine is not None:
            raise InvalidValueError("a ResNet has no tokens to refine", code="adapter-tokens")
        for name in STEM:
            x = self.resnet[name](x)
        by_block: dict[int, Tensor] = {}
        for index, (_, block) in enumerate(self._blocks()[: max(blocks) + 1]):
            x = block(x)
            if index in blocks:
                by_block[index] = x
        return [by_block[block] for block in blocks]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        left_out = tuple(f"{stage}." for stage in STAGES if stage not in self.stages)
        return {f"resnet.{name}": value for name, value in state_dict.items() if not name.startswith(left_out)}

    def _blocks(self) -> list[tuple[int, nn.Module]]:
        """Stage, counted from 0, and module of every residual block."""
        return [(stage, block) for stage, name in enumerate(self.stages) for block in self.resnet[name].children()]
