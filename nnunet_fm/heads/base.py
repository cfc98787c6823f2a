"""What every 2D decode head declares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class FeatureMaps(NamedTuple):
    """What a head is given: maps ``(B, channels, *grid)``, each element of which stands for a patch of the image."""

    channels: int
    grid: tuple[int, int]
    patch_size: int = 16


class Head(nn.Module):
    """Turns feature maps of a backbone into logits; built as ``Head(features: FeatureMaps, num_classes, **own)``.

    Attributes:
        maps: how many feature maps it takes: the last blocks', last first; two stand for the last and an early one.
        loss_weights: weights of its outputs in the training loss; more than one entry for a head of several stages.
        keys_to_classifier: prefixes of the parameters that depend on the number of classes.
        frozen_keys: submodules that are never trained.
        find_unused_parameters: whether trained parameters exist that no output depends on, there for official names.
        neck: turns the last map into what the decoder takes; None where the backbone does.
        neck_in_backbone: whether the neck belongs to the backbone where that officially has one.
        starts_mask_decoder: whether ``from_official`` gives tensors of the mask decoder, too.
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
        self.neck = None  # in a class attribute's shadow a submodule would not be found

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of `maps` feature maps ``(B, C, h, w)``, last block first.

        Returns:
            ``(B, K, h', w')`` of any resolution: in training one per entry of `loss_weights`, in evaluation one.
        """
