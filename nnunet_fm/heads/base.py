"""What every 2D decode head declares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Head(nn.Module):
    """Turns feature maps of a backbone into logits.

    Attributes:
        maps: how many feature maps it takes, counted from the last block.
        loss_weights: weights of its outputs in the training loss; more than one entry for a head of several stages.
        key_to_classifier: prefix of the parameters that depend on the number of classes.
    """

    maps: int
    loss_weights: tuple[float, ...] = (1.0,)
    key_to_classifier: str

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits of `maps` feature maps ``(B, C, h, w)``, last block first.

        Returns:
            ``(B, K, h', w')`` of any resolution: in training one per entry of `loss_weights`, in evaluation one.
        """
