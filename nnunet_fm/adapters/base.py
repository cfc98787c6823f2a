"""What a network must offer to be adapted."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class Adaptable(Protocol):
    """A network that says where its pre-trained encoder is, and keeps frozen submodules in eval mode."""

    key_to_encoder: str
    frozen: tuple[str, ...]

    def get_submodule(self, target: str) -> nn.Module: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
