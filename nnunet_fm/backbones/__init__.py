"""2D encoders, one file per family."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnunet_fm.backbones.base import Backbone
from nnunet_fm.errors import InvalidValueError

BACKBONES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"dinov2_{short}{'_reg' if registers else ''}": ("dinov2", "DINOv2", {"size": size, "registers": registers})
        for short, size in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
        for registers in (False, True)
    },
    **{f"mae_{size[0]}": ("mae", "MAE", {"size": size}) for size in ("base", "large", "huge")},
    **{f"resnet{layers}": ("resnet", "ResNet", {"layers": layers}) for layers in (18, 34, 50, 101, 152)},
    "sam_b": ("sam", "SAM", {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_blocks": (2, 5, 8, 11)}),
    "sam_l": ("sam", "SAM", {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_blocks": (5, 11, 17, 23)}),
    "sam_h": ("sam", "SAM", {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_blocks": (7, 15, 23, 31)}),
    "medsam_b": ("sam", "SAM", {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_blocks": (2, 5, 8, 11)}),
}
"""Name -> module of this package, class, arguments."""


def create_backbone(name: str, image_size: int | tuple[int, int], **changes: Any) -> Backbone:
    """Build a backbone with random weights; touches neither the net nor the disk.

    Args:
        name: a key of `BACKBONES`.
        image_size: size in pixels, or ``(Y, X)``.
        changes: arguments of the backbone's class that differ from `BACKBONES`.

    Raises:
        ValueError: for an unknown name, or a size that the backbone cannot take.
    """
    backbone_class, arguments = _entry(name)
    return backbone_class(**{**arguments, **changes}, image_size=image_size)


def image_multiple(name: str) -> int:
    """Number of pixels of which the image size of a backbone must be a multiple.

    Raises:
        ValueError: for an unknown name.
    """
    backbone_class, arguments = _entry(name)
    return backbone_class.image_multiple(**arguments)


def native_size(name: str) -> int:
    """Image size in pixels that a backbone's official file was trained on; raises ValueError for an unknown name."""
    return _entry(name)[0].native_size


def _entry(name: str) -> tuple[type[Backbone], dict[str, Any]]:
    if name not in BACKBONES:
        raise InvalidValueError(
            f"unknown backbone '{name}', known are {', '.join(sorted(BACKBONES))}", code="backbone-unknown"
        )
    module, class_name, arguments = BACKBONES[name]
    return getattr(import_module(f"{__name__}.{module}"), class_name), arguments
