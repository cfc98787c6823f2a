"""Supervision of a decode head that works in stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn


class StagesLoss(nn.Module):
    """Weighted sum of a loss over the stages of a head; in evaluation, the loss of the only output."""

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss, self.weights = loss, tuple(weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Logits ``(B, K, Y, X)`` of each stage, and nnU-Net's target -> scalar."""
        if isinstance(outputs, Tensor):
            return cast(Tensor, self.loss(outputs, target))
        parts = [w * self.loss(out, target) for w, out in zip(self.weights, outputs, strict=True)]
        return cast(Tensor, sum(parts[1:], parts[0]))
