"""Foundation models for medical image segmentation inside stock nnU-Net v2 commands."""

from __future__ import annotations

__version__ = "0.1.0"

_MODULES = {
    "Predictor": "nnunet_fm.inference.in_memory",
    "create_model": "nnunet_fm.models.create",
    "plan": "nnunet_fm.plans.planner",
}
"""What scripts import from here -> its module, which is imported on first use: the package itself imports nothing."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module  # this module is imported at the start of every interpreter

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
