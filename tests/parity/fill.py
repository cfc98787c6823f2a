"""Deterministic weights and inputs, so that a parity case needs no weights file.

A parity case names an official implementation's state dict, key by key. Every parameter and every batch-norm
statistic in it took the value that `value` gives for its official name and shape; integer buffers kept what the model
computes for itself. NumPy's legacy random stream, on which this rests, is frozen.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def _stream(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def value(name: str, shape: Sequence[int]) -> Array:
    """Float32 array of `shape` for the parameter called `name`."""
    x: npt.NDArray[Any] = np.asarray(_stream(name).standard_normal(tuple(shape)), dtype=np.float32)
    if name.endswith("running_var"):
        x = 1.0 + 0.1 * np.abs(x)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif len(shape) <= 1:
        x = 1.0 + 0.1 * x if name.endswith("weight") else 0.05 * x
    else:
        x = x / np.sqrt(max(int(np.prod(shape[1:])), 1))
    return np.asarray(x, dtype=np.float32)


def inputs(shape: Sequence[int], name: str = "input") -> Array:
    """Float32 standard-normal input of `shape`."""
    return _stream(name).standard_normal(tuple(shape)).astype(np.float32)
