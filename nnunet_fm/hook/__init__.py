"""Import hook by which stock nnU-Net commands find the planners, trainers and preprocessors of this package.

The start-up line ``nnunet_fm_hook.pth`` calls `install` in every interpreter, so this module costs next to nothing:
it imports only ``sys`` and ``os``. When a nnU-Net module of `TARGETS` is imported, `nnunet_fm.hook.wrap` wraps its
functions. Processes that import nnU-Net have no more threads than usable cores; on a crowded machine waiting threads
sleep. No file of nnU-Net changes, and ``NNUNET_FM_HOOK=0`` turns the hook off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, types and importlib would cost start-up time
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SWITCH = "NNUNET_FM_HOOK"
TARGETS = {
    "nnunetv2.utilities.find_class_by_name": ("recursive_find_python_class",),
    "nnunetv2.run.run_training": ("run_training_entry", "maybe_load_checkpoint"),
}
"""Wrapped functions by nnU-Net module."""
COUNTING = ("nnunetv2.run.run_training", "nnunetv2.inference.predict_from_raw_data")
"""nnU-Net modules that start a thread for each core of the machine."""

_outcomes: dict[str, str] = {}


def _wrap(module: ModuleType) -> None:
    """Wrap the functions of an imported module; an error here must not break the import of nnU-Net."""
    name = module.__name__
    functions = TARGETS.get(name, ())
    try:
        from nnunet_fm.hook.wrap import count_usable_cores, wrap

        if name in COUNTING:
            count_usable_cores(module)
        for function in functions:
            _outcomes[f"{name}.{function}"] = wrap(module, function)
    except Exception as error:
        _outcomes.update({f"{name}.{function}": f"left alone: {error}" for function in functions})


def _before_pytorch() -> None:
    """Choose how PyTorch's threads will wait, before PyTorch is imported."""
    if "torch" not in sys.modules:
        from nnunet_fm.cpu.limits import choose_waiting

        choose_waiting()


class _Loader:
    """Loader that wraps a module's own one until the module is executed."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # get_code for `python -m`, get_source, resource readers, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _wrap(module)


class _Finder:
    """Finder at the start of ``sys.meta_path`` that wraps the loaders which other finders return for the targets."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "nnunetv2":
            _before_pytorch()
        if (name not in TARGETS and name not in COUNTING) or name in self._searching:
            return None
        self._searching.add(name)  # other hooks may call all finders again, including this one
        try:
            for finder in list(sys.meta_path):
                find_spec = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader)  # type: ignore[assignment, arg-type]
                    return spec
            return None
        finally:
            self._searching.discard(name)


class _FormerPaths:
    """Finder at the end of ``sys.meta_path`` for former module paths of this package."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("nnunet_fm.") or name == "nnunet_fm.moved":
            return None
        from nnunet_fm import moved

        return moved.find_spec(name)


_finder = _Finder()


def install() -> None:
    """Put the finder on ``sys.meta_path`` and wrap targets that are already imported; may be called repeatedly."""
    if os.environ.get(SWITCH) == "0":
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        sys.meta_path.append(_FormerPaths)
    for name in {*TARGETS, *COUNTING}:
        if name in sys.modules:
            _wrap(sys.modules[name])


def status() -> dict[str, str]:
    """State of the hook and of each wrapped function in this process, in words."""
    if _finder in sys.meta_path:
        hook = "active"
    elif os.environ.get(SWITCH) == "0":
        hook = f"off ({SWITCH}=0)"
    else:
        hook = "not started: this installation's start-up line is missing or was not read"
    waiting = "waits for its import" if hook == "active" else "as nnU-Net made it"
    functions = [f"{module}.{function}" for module, functions in TARGETS.items() for function in functions]
    return {"hook": hook} | {function: _outcomes.get(function, waiting) for function in functions}
