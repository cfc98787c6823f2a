"""Interface of networks for adapters, and functions that adapters share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

from torch import nn

from nnunet_fm.errors import InvalidValueError


class Adaptable(Protocol):
    """A network that names its pre-trained encoder, and keeps frozen submodules in eval mode."""

    frozen: tuple[str, ...]

    @property
    def encoder_keys(self) -> tuple[str, ...]: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...


class Adaptable2D(Adaptable, Protocol):
    """A 2D backbone and a decode head, with attributes for a module that refines tokens and for a second branch."""

    backbone: Any
    head: Any
    blocks: tuple[int, ...]
    rein: nn.Module | None
    ladder: nn.Module | None
    feature_norm: Any

    def neck_to_backbone(self) -> None: ...

    def second_branch(self, name: str) -> Any: ...


def with_backbone(network: Adaptable, place: str) -> Adaptable2D:
    """Check that a network has the attribute ``place`` for an adapter's module, and return the network.

    Raises:
        ValueError: for a network without this attribute.
    """
    if not hasattr(network, place):
        raise InvalidValueError(
            f"the adapter '{place}' is for 2D backbones with a decode head, not {type(network).__name__}",
            code="adapter-dimension",
        )
    return cast(Adaptable2D, network)


def in_encoder(name: str, network: Adaptable) -> bool:
    """Whether the parameter or submodule of this name belongs to the pre-trained encoder."""
    return any(name == key or name.startswith(f"{key}.") for key in network.encoder_keys)
