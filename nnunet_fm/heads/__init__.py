"""2D decode heads, one file each; `base.Head` is their interface."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnunet_fm.heads.base import Head

HEADS: dict[str, tuple[str, str]] = {"linear": ("linear", "LinearHead")}
"""Name -> module of this package, class."""


def create_head(name: str, channels: int, num_classes: int, grid: tuple[int, int], **arguments: Any) -> Head:
    """Build a head with random weights.

    Args:
        name: a key of `HEADS`.
        channels: channels of each feature map.
        num_classes: output channels.
        grid: ``(h, w)`` of the feature maps.
        arguments: what the head's class takes besides.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in HEADS:
        raise ValueError(f"unknown head '{name}', known are {', '.join(sorted(HEADS))}")
    module, class_name = HEADS[name]
    head: Head = getattr(import_module(f"{__name__}.{module}"), class_name)(channels, num_classes, grid, **arguments)
    return head
