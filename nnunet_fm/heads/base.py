"""Base class of all 2D decode heads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class FeatureMaps(NamedTuple):
    """Shape of a backbone's feature maps ``(B, channels, *grid)``, and size in pixels of the patch of an element."""

    channels: int
    grid: tuple[int, int]
    patch_size: int = 16


class Head(nn.Module):
    """Decode feature maps of a backbone to logits; built as ``Head(features: FeatureMaps, num_classes, **own)``.

    Attributes:
        maps: number of feature maps; those of the last blocks, last first; two are the last and an early one.
        loss_weights: weights of the outputs in the training loss; more than one entry for a head of several stages.
        keys_to_classifier: prefixes of the parameters that depend on the number of classes.
        frozen_keys: names of submodules that are never trained.
        find_unused_parameters: whether some trained parameters get no gradient, see `published_quirks.IDLE_LAYERS`.
        neck: module between the last feature map and the decoder; None if the backbone has it.
        neck_in_backbone: whether the neck belongs to a backbone that officially has one.
        starts_mask_decoder: whether ``from_official`` also loads the mask decoder.
    """

    maps: int
    loss_weights: tuple[float, ...] = (1.0,)
    keys_to_classifier: tuple[str, ...]
    frozen_keys: tuple[str, ...] = ()
    find_unused_parameters: bool = False
    neck: nn.Module | None
    neck_in_backbone: bool = False
    starts_mask_decoder: bool = False

    def __init__(self, features: FeatureMaps, num_classes: int, **own: Any) -> None:
        super().__init__()
        self.neck = None  # not in the class: a class attribute would hide a submodule registered later

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Decode `maps` feature maps ``(B, C, h, w)``, last block first.

        Returns:
            Logits ``(B, K, h', w')`` of any resolution: in training one per entry of `loss_weights`, in evaluation one.
        """
