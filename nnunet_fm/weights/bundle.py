"""Rewrite the slim checkpoints of a trained folder as full ones, which need no official file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from nnunet_fm.errors import MissingFileError
from nnunet_fm.weights.files import WEIGHTS, WeightsFileError, write_checkpoint
from nnunet_fm.weights.slim import expand_slim


@dataclass(frozen=True)
class Bundled:
    """A checkpoint, and the names of the official files whose tensors were added; none if it was full before."""

    path: Path
    bases: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def checkpoints_of(folder: Path) -> list[Path]:
    """nnU-Net's checkpoints in a fold's folder, or in the folder of a trainer with its folds.

    Raises:
        FileNotFoundError: if there are none.
    """
    found = sorted([*folder.glob("checkpoint_*.pth"), *folder.glob("fold_*/checkpoint_*.pth")])
    if not found:
        raise MissingFileError(
            f"{folder} has no checkpoint_*.pth: give the folder of a fold, or that of a trainer with its fold_* "
            "folders",
            code="checkpoint-missing",
        )
    return found


def bundle(folder: Path) -> Iterator[Bundled]:
    """Rewrite one checkpoint after the other, each in one step; full ones are not changed.

    Raises:
        FileNotFoundError: for a folder without checkpoints, or a base that is not in the weights folder.
        WeightsFileError: for a checkpoint that is damaged, or needs code to be run.
    """
    for path in checkpoints_of(folder):
        before = path.stat().st_size
        content, bases = expand_slim(path)
        if bases:
            content[WEIGHTS] = {name: _alone(name, tensor, path) for name, tensor in content[WEIGHTS].items()}
            write_checkpoint(content, path)
        yield Bundled(path, tuple(base.files[0] for base in bases), before, path.stat().st_size)


def _alone(name: str, tensor: Tensor, path: Path) -> Tensor:
    """Copy a tensor to a storage of its own size, because ``torch.save`` writes whole storages."""
    size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > stored:
        raise WeightsFileError(
            f"{path}: tensor '{name}' claims {size:,} bytes where {stored:,} are stored", code="weights-damaged"
        )
    return tensor if size == stored else tensor.clone()
