"""Ways to adapt a pre-trained network to a task, one file each. Names of adapters need no PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nnunet_fm.errors import InvalidValueError

if TYPE_CHECKING:
    from nnunet_fm.adapters.base import Adaptable

ADAPTERS = {
    "freeze": ("freeze", "freeze"),
    "full": ("full", "full"),
    "lora": ("lora", "lora"),
    "rein": ("rein", "rein"),
    "rein_lora": ("rein", "rein_lora"),
    "ladder": ("ladder", "ladder"),
}
"""Name -> module of this package, and its function, which takes a network and arguments of the adapter."""

DEFAULT_BRANCH = "dinov2_s"
"""The second backbone of a ladder, as in the thesis."""


def apply_adapter(name: str, network: Adaptable, **arguments: Any) -> None:
    """Apply the adapter ``name`` to a network, in place.

    Raises:
        ValueError: for an unknown name, or a network without the parts that the adapter needs.
    """
    if name not in ADAPTERS:
        raise InvalidValueError(
            f"unknown adapter '{name}', known are {', '.join(sorted(ADAPTERS))}", code="adapter-unknown"
        )
    module, function = ADAPTERS[name]
    getattr(import_module(f"{__name__}.{module}"), function)(network, **arguments)
