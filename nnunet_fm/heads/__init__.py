"""2D decode heads, one file each; `base.Head` is their interface. Names of heads need no PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nnunet_fm.errors import InvalidValueError

if TYPE_CHECKING:
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

STARTED_FROM_FILES = frozenset({"samdec", "samdec_frozen_pe", "hqsam", "hsam", "hqhsam"})
"""Heads that start from an official file of their own, by ``from_official``."""


def create_head(name: str, features: FeatureMaps, num_classes: int, **changes: Any) -> Head:
    """Build a head with random weights; touches neither the net nor the disk.

    Args:
        name: a key of `HEADS`.
        features: shape of the backbone's feature maps.
        num_classes: output channels.
        changes: arguments of the head's class that differ from `HEADS`.

    Raises:
        ValueError: for an unknown name, or feature maps that the head cannot take.
    """
    found, arguments = _entry(name)
    return found(features, num_classes, **{**arguments, **changes})


def head_class(name: str) -> type[Head]:
    """The class of a head; raises ValueError for an unknown name."""
    return _entry(name)[0]


def needs_official(name: str) -> bool:
    """Whether the head of this name starts from an official file of its own; raises ValueError for an unknown one."""
    _known(name)
    return name in STARTED_FROM_FILES


def _entry(name: str) -> tuple[type[Head], dict[str, Any]]:
    module, class_name, arguments = _known(name)
    return getattr(import_module(f"{__name__}.{module}"), class_name), arguments


def _known(name: str) -> tuple[str, str, dict[str, Any]]:
    if name not in HEADS:
        raise InvalidValueError(f"unknown head '{name}', known are {', '.join(sorted(HEADS))}", code="head-unknown")
    return HEADS[name]
