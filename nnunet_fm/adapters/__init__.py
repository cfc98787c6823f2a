"""Ways to adapt a pre-trained network to a task, one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnunet_fm.adapters.base import Adaptable
from nnunet_fm.adapters.freeze import freeze
from nnunet_fm.adapters.full import full
from nnunet_fm.adapters.ladder import ladder
from nnunet_fm.adapters.lora import lora
from nnunet_fm.adapters.rein import rein, rein_lora

ADAPTERS: dict[str, Callable[..., None]] = {
    "freeze": freeze,
    "full": full,
    "lora": lora,
    "rein": rein,
    "rein_lora": rein_lora,
    "ladder": ladder,
}
"""Name -> function of a network, and of arguments of its own."""


def apply_adapter(name: str, network: Adaptable, **arguments: Any) -> None:
    """Change `network` in place so that training adapts it in the way called `name`.

    Raises:
        ValueError: for an unknown name, or a network that it is not for.
    """
    if name not in ADAPTERS:
        raise ValueError(f"unknown adapter '{name}', known are {', '.join(sorted(ADAPTERS))}")
    ADAPTERS[name](network, **arguments)
