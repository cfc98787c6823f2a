"""2D decode heads, one file each; `base.Head` is their interface."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nnunet_fm.heads.base import FeatureMaps, Head

HEADS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "linear": ("linear", "LinearHead", {}),
    "resdec": ("resdec", "ResNetHead", {}),
    "unetdec": ("unetdec", "UNetHead", {}),
    "unetdec_small": ("unetdec", "UNetHead", {"width": 240}),
    "da": ("da", "DAHead", {}),
    "da_small": ("da", "DAHead", {"channels": 120}),
    "segformer": ("segformer", "SegFormerHead", {}),
    "samdec": ("samdec", "SAMDecHead", {}),
    "samdec_frozen_pe": ("samdec", "SAMDecHead", {"train_prompt_encoder": False}),
    "hqsam": ("hqsam", "HQSAMHead", {}),
    "hsam": ("hsam", "HSAMHead", {}),
    "hqhsam": ("hqhsam", "HQHSAMHead", {}),
}
"""Name -> module of this package, class, arguments."""


def create_head(name: str, features: FeatureMaps, num_classes: int, **changes: Any) -> Head:
    """Build a head with random weights; touches neither the net nor the disk.

    Args:
        name: a key of `HEADS`.
        features: what the backbone gives.
        num_classes: output channels.
        changes: arguments of the head's class that differ from `HEADS`.

    Raises:
        ValueError: for an unknown name, or feature maps that the head cannot take.
    """
    found, arguments = _entry(name)
    return found(features, num_classes, **{**arguments, **changes})


def head_class(name: str) -> type[Head]:
    """The class of a head; raises as `create_head`."""
    return _entry(name)[0]


def needs_official(name: str) -> bool:
    """Whether the head of this name starts from an official file of its own; raises as `create_head`."""
    return head_class(name).needs_official


def _entry(name: str) -> tuple[type[Head], dict[str, Any]]:
    if name not in HEADS:
        raise ValueError(f"unknown head '{name}', known are {', '.join(sorted(HEADS))}")
    module, class_name, arguments = HEADS[name]
    return getattr(import_module(f"{__name__}.{module}"), class_name), arguments
