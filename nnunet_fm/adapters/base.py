"""What a network must offer to be adapted, and what adapters share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn


class Adaptable(Protocol):
    """A network that says where its pre-trained encoder is, and keeps frozen submodules in eval mode."""

    frozen: tuple[str, ...]

    @property
    def encoder_keys(self) -> tuple[str, ...]: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...


def in_encoder(name: str, network: Adaptable) -> bool:
    """True for the name of a parameter or submodule that belongs to the pre-trained encoder."""
    return any(name == key or name.startswith(f"{key}.") for key in network.encoder_keys)
