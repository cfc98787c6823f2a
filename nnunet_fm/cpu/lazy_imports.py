"""Imports of nnU-Net and timm without the heavy packages that they name and a prediction never uses.

These are PyTorch's compiler, seaborn and scikit-learn, half of the time that the imports take.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

from nnunet_fm.insides import replaced

HEAVY = ("torch._dynamo", "torch._dynamo.utils", "seaborn", "sklearn.model_selection")


@contextmanager
def importing_lightly() -> Iterator[None]:
    """Whatever is imported meanwhile takes from `HEAVY` modules only names; what they are is imported when used.

    Garbage is not looked for meanwhile: modules leave next to none, and going through their hundreds of thousands of
    objects again and again takes a third of the time.
    """
    import torch  # it must not meet a stand-in of a part of itself

    missing = {name: _LateModule(name) for name in HEAVY if name not in sys.modules}
    compiler = torch.compiler
    disable = _disable_late(compiler.disable) if "torch._dynamo" in missing else compiler.disable
    sys.modules.update(missing)
    try:
        with replaced(compiler, "disable", disable), without_collection():
            yield
    finally:
        for module in missing.values():
            module.leave()


@contextmanager
def without_collection() -> Iterator[None]:
    """Python looks for no garbage meanwhile; what nothing refers to is freed all the same."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _disable_late(disable: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.disable`` as a decorator that asks for the compiler when the function is called."""

    def late(function: Callable[..., Any] | None = None, **how: Any) -> Callable[..., Any]:
        if function is None:
            return partial(late, **how)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return disable(function, **how)(*args, **kwargs)

        return call

    return late


class _LateModule(ModuleType):
    """A module of which every name is a stand-in for the real module's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {"module": self})

    def leave(self) -> None:
        """Leave the name to the real module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _StandIn(type):
    """A class or function of a late module: can be called, and asked what is an instance of it."""

    module: _LateModule

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cls.module.leave()
        return getattr(import_module(cls.module.__name__), cls.__name__)(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        real = sys.modules.get(cls.module.__name__, cls.module)
        # Without the real module nothing can be an instance of its classes.
        return real is not cls.module and isinstance(instance, getattr(real, cls.__name__))
