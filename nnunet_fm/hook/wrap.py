"""Wrappers around functions of nnU-Net."""

from __future__ import annotations

import functools
import importlib
import inspect
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from nnunet_fm.hook.names import TRAINERS, home, resembles_ours
from nnunet_fm.hook.own_classes import later_folders, mentions

Function = Callable[..., Any]

_SEARCH_PARAMETERS = ("folder", "class_name", "current_module")
_LOAD_PARAMETERS = ("nnunet_trainer", "continue_training", "validation_only", "pretrained_weights_file")
_MARK = "_wrapped_by_nnunet_fm"


def resolve(name: str, module_name: str) -> Any:
    """Import an object from a module of this package by its name.

    Raises:
        HostVersionError: for an nnU-Net that is too old for this package.
        UnknownNameError: if there is none; the message names the nearest.

    Without a handler, either error ends the command with one line and exit code 1.
    """
    from nnunet_fm.host import check_host

    _print_our_errors_without_traceback()
    check_host()
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError as error:
        from nnunet_fm.models.names import UnknownNameError

        if isinstance(error, UnknownNameError) or hasattr(module, "__getattr__"):
            raise
        raise UnknownNameError(name, [n for n in dir(module) if home(n) == module_name]) from None


@functools.cache
def _print_our_errors_without_traceback() -> None:
    """Print only the message of uncaught exceptions of the given classes, without a traceback.

    ``NNUNET_FM_DEBUG=1`` brings the traceback back.
    """
    previous = sys.excepthook

    def excepthook(type_: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if type_.__module__.startswith("nnunet_fm.") and os.environ.get("NNUNET_FM_DEBUG") != "1":
            from nnunet_fm.errors import one_line

            print(f"Error: {one_line(value)}", file=sys.stderr)
        else:
            previous(type_, value, traceback)

    sys.excepthook = excepthook


def _refuse(name: str) -> None:
    """Raise the UnknownNameError of a misspelt name, with the nearest legal ones."""
    from nnunet_fm.models.registry import grammar

    _print_our_errors_without_traceback()
    (grammar().planner if "plan" in name.lower() else grammar().trainer)(name)


def _wrap_search(original: Function) -> Function:
    @functools.wraps(original)
    def recursive_find_python_class(
        folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        module_name = home(class_name)
        if module_name is None or mentions(folder, class_name):
            found = original(folder, class_name, current_module, *args, **kwargs)
            if found is None and module_name is None and resembles_ours(class_name):
                if any(mentions(path, class_name) for path in later_folders(folder)):
                    return None  # nnU-Net searches these folders next
                _refuse(class_name)
            if found is not None or module_name is None:
                return found
        if class_name.startswith(TRAINERS) and any(mentions(path, class_name) for path in later_folders(folder)):
            return None  # nnU-Net searches these folders next
        return resolve(class_name, module_name)

    return recursive_find_python_class


def _wrap_entry(original: Function) -> Function:
    @functools.wraps(original)
    def run_training_entry() -> Any:
        if not any(argument.startswith(TRAINERS) or resembles_ours(argument) for argument in sys.argv[1:]):
            return original()
        from nnunet_fm.hook.training import run

        return run(original)

    return run_training_entry


def _wrap_load(original: Function) -> Function:
    @functools.wraps(original)
    def maybe_load_checkpoint(
        nnunet_trainer: Any,
        continue_training: bool,
        validation_only: bool,
        pretrained_weights_file: str | None = None,
    ) -> Any:
        start_from = getattr(nnunet_trainer, "start_from", None)
        ours = any(base.__module__.startswith("nnunet_fm.") for base in type(nnunet_trainer).__mro__)
        if not ours or start_from is None or pretrained_weights_file is None or continue_training or validation_only:
            return original(nnunet_trainer, continue_training, validation_only, pretrained_weights_file)
        return start_from(Path(pretrained_weights_file))

    return maybe_load_checkpoint


def _search_fits(parameters: dict[str, inspect.Parameter]) -> bool:
    first, rest = list(parameters)[:3], list(parameters.values())[3:]
    return tuple(first) == _SEARCH_PARAMETERS and all(p.default is not p.empty for p in rest)


def _entry_fits(parameters: dict[str, inspect.Parameter]) -> bool:
    return not parameters


def _load_fits(parameters: dict[str, inspect.Parameter]) -> bool:
    return tuple(parameters) == _LOAD_PARAMETERS


_WRAPPERS = {
    "recursive_find_python_class": (_search_fits, _wrap_search),
    "run_training_entry": (_entry_fits, _wrap_entry),
    "maybe_load_checkpoint": (_load_fits, _wrap_load),
}


class _Multiprocessing(ModuleType):
    """``multiprocessing`` with a ``cpu_count`` of the cores that this process may use."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def cpu_count(self) -> int:
        from nnunet_fm.cpu.limits import threads, usable_cores

        count, usable = threads(), usable_cores()
        if count < usable:
            print(f"Computing with {count} of {usable} cores, as OMP_NUM_THREADS says.", file=sys.stderr)
        return count


def count_usable_cores(module: ModuleType) -> None:
    """Let a module of nnU-Net count only the cores that this process may use."""
    if getattr(module, "multiprocessing", None) is multiprocessing:
        module.multiprocessing = _Multiprocessing("multiprocessing")  # type: ignore[attr-defined]


def wrap(module: ModuleType, function: str) -> str:
    """Replace a function in its module, and in nnU-Net modules that already hold it by name.

    Returns:
        ``"wrapped"``, or why the function was left alone.
    """
    original = getattr(module, function, None)
    if original is None:
        return "left alone: this nnU-Net has no such function"
    if hasattr(original, _MARK):
        return "wrapped"
    fits, make = _WRAPPERS[function]
    signature = inspect.signature(original)
    if not fits(dict(signature.parameters)):
        return f"left alone: this nnU-Net gives it the parameters {signature}"
    wrapper = make(original)
    setattr(wrapper, _MARK, True)
    for name, holder in list(sys.modules.items()):
        if name.startswith("nnunetv2.") and getattr(holder, "__dict__", {}).get(function) is original:
            setattr(holder, function, wrapper)
    setattr(module, function, wrapper)
    return "wrapped"
