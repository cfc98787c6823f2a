"""Faults of image files in words: why one cannot be read, and a wrong value as the file has it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from nnunet_fm.io.image_files import SKEWED, SKEWED_WORDS

_ITK = re.compile(r"^Exception thrown in SimpleITK .*?(?:sitk::ERROR|ITK ERROR): ")
"""Lines of ITK's source code, which tell a user nothing."""


def why(error: BaseException, printed: str = "") -> str:
    """Message of an error in one line.

    Args:
        error: of a reader.
        printed: what the reader printed, which stands in for an error without a message.
    """
    reason = " ".join(str(error).split()) or " ".join(printed.split()) or type(error).__name__
    return SKEWED_WORDS if SKEWED in reason else _ITK.sub("", reason)


def unreadable(file: object, error: BaseException, printed: str = "") -> str:
    """`why` a file cannot be read, with its name unless the error begins with it."""
    reason = why(error, printed)
    named = any(reason.startswith(Path(name).name) for name in str(file).split(", "))
    return reason if named else f"{file} cannot be read: {reason}"


def exact(value: np.generic) -> str:
    """Write a number with all digits that its type can tell apart: ``2.0000002``, ``0.5``, ``9``."""
    return str(value).removesuffix(".0")
