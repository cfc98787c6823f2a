"""Checkpoint files: those that somebody else wrote are read without running any code in them."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONTAINERS = ("state_dict", "network_weights", "model_state_dict", "model", "net")
"""Keys under which training programs keep the state dict; tried in this order after the ones the caller names."""

WRAPPERS = ("module.", "_orig_mod.")
"""What `DistributedDataParallel` and `torch.compile` put before every name."""

NUMPY_SCALARS: list[Any] = [
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (np.dtype, "numpy.dtype"),
    *(type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "?")),
]
"""The globals beyond PyTorch's own list that nnU-Net v1 files need: their losses and scores are numpy scalars.
The classes of dtypes are what unpickling ``numpy.dtype`` builds; ``_codecs.encode`` is on PyTorch's list already."""


DAMAGED = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError)
"""What `torch.load` raises on bytes that are no checkpoint, depending on where it gives up."""


class WeightsFileError(ValueError):
    """A file that is not a readable checkpoint; the message names the file and the reason."""


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it, so that a crash leaves the previous one whole."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as handle:
        torch.save(content, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)


def read_state_dict(path: Path, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, on the CPU, left on disk until used where the format allows it.

    Args:
        path: a ``torch.save`` file.
        containers: keys that may wrap the state dict, tried before the usual ones.

    Raises:
        WeightsFileError: for a file that is damaged, no checkpoint, or needs code to be run; or one without a
            state dict under any known key.
    """
    content = _read(path)
    keys = [*dict.fromkeys((*containers, *CONTAINERS))]
    while not _is_state_dict(content):
        inner = next((k for k in keys if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)), None)
        if inner is None:
            raise WeightsFileError(_no_state_dict(path, content, keys))
        content = content[inner]
    return _unwrapped(dict(content))


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise WeightsFileError(f"{path} is empty: download it again")
    is_zip = zipfile.is_zipfile(path)
    if start == b"PK\x03\x04" and not is_zip:
        raise WeightsFileError(f"{path} is cut off before its end: download it again")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # about pickle protocols and storages, which a user cannot change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except DAMAGED as error:
        raise WeightsFileError(_reason(path, str(error))) from None


def _reason(path: Path, message: str) -> str:
    refused = re.search(r"GLOBAL (\w\S*) (?:was not an allowed|whose module)", message)
    if refused:
        return (
            f"{path} asks to run '{refused[1]}' while it is read, which could be any program. It is refused. Get the "
            "file from its official page, or have someone you trust save its tensors alone with torch.save"
        )
    if zipfile.is_zipfile(path):
        return f"{path} is an archive, but not one written by torch.save: unpack it and use the checkpoint inside"
    return f"{path} is no PyTorch checkpoint, or a damaged one: download it again ({message.splitlines()[-1][:200]})"


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _no_state_dict(path: Path, content: Any, keys: Sequence[str]) -> str:
    if not isinstance(content, Mapping):
        return f"{path} holds a {type(content).__name__}, not a state dict"
    found = ", ".join(str(k) for k in list(content)[:20]) or "nothing"
    return f"{path} holds no state dict: expected tensors, or one of the keys {', '.join(keys)}; found {found}"


def _unwrapped(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of a wrapper that stands before every name."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state_dict):
            return _unwrapped({name.removeprefix(wrapper): tensor for name, tensor in state_dict.items()})
    return state_dict
