"""2D encoders, one file per family."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnunet_fm.backbones.base import Backbone

BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"dinov2_{short}{'_reg' if registers else ''}": ("dinov2", "DINOv2", {"size": size, "registers": registers})
    for short, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
    for registers in (False, True)
}
"""Name -> module of this package, class, arguments."""


def create_backbone(name: str, image_size: int | tuple[int, int]) -> Backbone:
    """Build a backbone with random weights; touches neither the net nor the disk.

    Args:
        name: a key of `BACKBONES`.
        image_size: edge in pixels, or ``(Y, X)``.

    Raises:
        ValueError: for an unknown name, or a size that the backbone cannot take.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone '{name}', known are {', '.join(sorted(BACKBONES))}")
    module, class_name, arguments = BACKBONES[name]
    backbone: Backbone = getattr(import_module(f"{__name__}.{module}"), class_name)(**arguments, image_size=image_size)
    return backbone
