"""Teacher of self-training: a copy of the student, updated at intervals or averaged over time."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn


class Teacher:
    """A copy of a network whose trained weights follow those of the network; frozen weights are shared.

    Args:
        student: the network, with the teacher's initial weights.
        momentum: share of the teacher's weights that an update keeps; None copies the student's.
    """

    def __init__(self, student: nn.Module, momentum: float | None = None) -> None:
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        self.network: nn.Module = deepcopy(student, dict(frozen))
        self.momentum = momentum

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Update trained weights with the momentum; buffers (statistics of batch norms) are copied."""
        for weight, of_student in zip(self.network.parameters(), student.parameters(), strict=True):
            if of_student.requires_grad:
                weight.lerp_(of_student, 1 - (self.momentum or 0.0))
        for buffer, followed in zip(self.network.buffers(), student.buffers(), strict=True):
            buffer.copy_(followed)

    def state_dict(self) -> dict[str, Tensor]:
        """Trained weights and buffers by name."""
        trained = {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}
        return trained | dict(self.network.named_buffers())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        mine = self.state_dict()
        for name, tensor in state.items():
            mine[name].copy_(tensor)
