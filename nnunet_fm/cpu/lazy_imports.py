"""Lazy imports of heavy packages that nnU-Net and timm import but a prediction never uses.

PyTorch's compiler, seaborn and scikit-learn take half of the import time.
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
    """Context in which `HEAVY` modules are imported lazily, on first use.

    The garbage collector is off: imports leave next to no garbage, and looking for it takes a third of the time.
    """
    import torch  # before its own parts are replaced by stand-ins

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
    """Context without the garbage collector for reference cycles; other objects are freed as always."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _disable_late(disable: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.disable`` as a decorator that imports the compiler at the first call of the function."""

    def late(function: Callable[..., Any] | None = None, **how: Any) -> Callable[..., Any]:
        if function is None:
            return partial(late, **how)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return disable(function, **how)(*args, **kwargs)

        return call

    return late


class _LateModule(ModuleType):
    """Stand-in for a module; each of its names is a stand-in for the real one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {"module": self})

    def leave(self) -> None:
        """Remove this stand-in, so that the real module can be imported."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _StandIn(type):
    """Stand-in for a class or function of a lazy module; calls and instance checks use the real one."""

    module: _LateModule

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cls.module.leave()
        return getattr(import_module(cls.module.__name__), cls.__name__)(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        real = sys.modules.get(cls.module.__name__, cls.module)
        # Without the real module nothing can be an instance of its classes.
        return real is not cls.module and isinstance(instance, getattr(real, cls.__name__))
