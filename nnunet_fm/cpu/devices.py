"""Devices of PyTorch, and whether this machine has them."""

from __future__ import annotations

import torch

from nnunet_fm.errors import FMError

DEVICES = ("cpu", "cuda", "mps")


class DeviceError(FMError, RuntimeError):
    """A device is not one of ours, or not here; the message names those that are."""

    code = "device-missing"


def device_fault(device: torch.device) -> str | None:
    """Reason why a device cannot be used; None if it can."""
    if device.type not in DEVICES:
        return f"device '{device.type}' is not one of {', '.join(DEVICES)}"
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if here[device.type]:
        return None
    others = " or ".join(f"-device {name}" for name, there in here.items() if there)
    return f"PyTorch finds no {device.type} device on this machine: use {others}"
