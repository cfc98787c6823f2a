"""Reading and writing of checkpoint files; reading never runs code of a file."""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from nnunet_fm.errors import FMError
from nnunet_fm.io.atomic_write import PARTIAL, sync_folder
from nnunet_fm.io.messages import space_left
from nnunet_fm.io.untrusted import is_zip, other_kind
from nnunet_fm.weights.pickled import UNNEEDED, RefusedError, check_pickles

CONTAINERS = ("state_dict", "network_weights", "model_state_dict", "model", "net")
"""Keys of the state dict in checkpoints of training programs, tried in this order after those of the caller."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of names by `DistributedDataParallel` and `torch.compile`."""

WEIGHTS = "network_weights"
"""Key of the state dict in a checkpoint of nnU-Net."""

NOTE = "nnunet_fm_base"
"""Name of the note on left-out tensors in a slim state dict (see `nnunet_fm.weights.slim`)."""

NUMPY_SCALARS: list[Any] = [
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (np.dtype, "numpy.dtype"),
    *(type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "?")),
]
"""Allowed globals beyond PyTorch's own list, for the numpy scalars (losses and scores) in files of nnU-Net v1.
Unpickling ``numpy.dtype`` needs the classes of dtypes; ``_codecs.encode`` is on PyTorch's list."""

NUMPY_ARRAYS: list[Any] = [
    *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    type(np.dtype("u4")),
    type(np.dtype("U1")),
]
"""Further allowed globals for checkpoints of trainings: states of random generators are numpy arrays, and names in
plans may be numpy strings; none of object type."""

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""PyTorch's environment variables: the first overrides nnU-Net's ``weights_only=False``; never set both."""

DAMAGED = (
    pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, AssertionError,
    MemoryError, OverflowError, OSError, struct.error,
)  # fmt: skip
"""Exceptions of `torch.load` for a file that is no checkpoint, or a damaged one."""


class WeightsFileError(FMError, ValueError):
    """A file that is not a readable checkpoint; the message names the file and the reason."""


class NotFiniteWeightsError(WeightsFileError):
    """Weights that are no numbers; the message names file and tensor."""

    code = "weights-not-finite"


class CheckpointError(FMError, OSError):
    """A checkpoint that could not be written; the message names the file and the reason."""

    code = "checkpoint-not-written"


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it, so that a crash leaves the previous one intact.

    Raises:
        CheckpointError: if it cannot be written, for example on a full disk; the temporary file is removed.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as handle:
            torch.save(content, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError for errors of the system
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = "the one before it is kept" if path.exists() else "there was none before it"
        raise CheckpointError(
            f"{path} could not be written ({_first_line(error)}; {space_left(path.parent)}); {kept}. Make "
            "room or give access, then continue the training with --c"
        ) from error


def read_state_dict(path: Path, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, on the CPU, mapped from the disk if the format allows it.

    Args:
        path: a ``torch.save`` file.
        containers: keys that may wrap the state dict, tried before the usual ones.

    Raises:
        WeightsFileError: for a file that is damaged, no checkpoint, or needs code to be run; or one without a
            state dict under any known key.
    """
    content = _read(path, NUMPY_SCALARS)
    keys = [*dict.fromkeys((*containers, *CONTAINERS))]
    while not (_is_state_dict(content) and content):
        inner = next((k for k in keys if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)), None)
        if inner is None:
            raise WeightsFileError(_no_state_dict(path, content, keys), code="weights-content")
        content = content[inner]
    _check_tensors(path, content)
    return unwrapped(content)


def read_trained(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training of nnU-Net, tensors on the CPU and mapped from the disk.

    nnU-Net itself unpickles these files, so that an untrusted file can run any program. Checkpoints of nnU-Net do not
    need that, and this function forbids it.

    Raises:
        WeightsFileError: see `read_state_dict`; also for a file without the weights of a network.
    """
    content = _read(path, [*NUMPY_SCALARS, *NUMPY_ARRAYS])
    weights = content.get(WEIGHTS) if isinstance(content, Mapping) else None
    if not _is_state_dict(weights):
        raise WeightsFileError(f"{path} is no checkpoint of nnU-Net: it has no {WEIGHTS}", code="checkpoint-other")
    _check_tensors(path, weights)
    check_finite(weights, path)
    return dict(content)


def check_finite(tensors: Mapping[str, Tensor], file: Path | str) -> None:
    """Refuse NaN or infinite weights, from an overflow of half precision or a damaged copy.

    Stand-ins for the left-out tensors of a slim state dict are skipped.

    Raises:
        NotFiniteWeightsError: with the first tensor's name.
    """
    slim = any(name.rpartition(".")[2] == NOTE for name in tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or (slim and is_stand_in(tensor)):
            continue
        if not math.isfinite(float(tensor.sum())) and (bad := int((~torch.isfinite(tensor)).sum())):
            raise NotFiniteWeightsError(
                f"{file}: tensor '{name}' has {bad:,} values that are no numbers (NaN or infinite), of "
                f"{tensor.numel():,}: the file is damaged, or its training had diverged; download or copy it again, or "
                "take an earlier one"
            )


def is_stand_in(tensor: Tensor) -> bool:
    """Whether a tensor stands for one that a slim checkpoint leaves out: a NaN, repeated by strides of zero.

    In checkpoints of older versions the NaN may be a tensor of one element, with more in its storage.
    """
    if tensor.is_meta or any(tensor.stride()) or not tensor.is_floating_point() or not tensor.numel():
        return False
    single = tensor.numel() == 1 and tensor.untyped_storage().nbytes() == tensor.element_size()
    return not single and bool(tensor.reshape(-1)[0].isnan())


def shape_mismatch(error: RuntimeError, checkpoint: str) -> WeightsFileError | None:
    """Turn PyTorch's error about weights that do not fit a network, with a line for each tensor, into one sentence.

    Args:
        error: error of ``load_state_dict``; None is returned for any other.
        checkpoint: description of the file, for the message.
    """
    heading, *lines = str(error).splitlines()
    if not heading.startswith("Error(s) in loading state_dict") or not lines:
        return None
    found = [line for line in map(str.strip, lines) if line]
    first = found[0] if len(found[0]) < 300 else f"{found[0][:300]} …"
    more = f"; {len(found) - 1} more like this" if len(found) > 1 else ""
    return WeightsFileError(
        f"the weights of {checkpoint} are not those of the network in its plans ({first.rstrip('.')}{more}): one of "
        "the two files was replaced or edited; put the one back that belongs to the other",
        code="weights-mismatch",
    )


@contextmanager
def data_only() -> Iterator[None]:
    """Context in which `torch.load` never runs code of a file, also when nnU-Net calls it."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals([*NUMPY_SCALARS, *NUMPY_ARRAYS]):
            yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _first_line(error: Exception) -> str:
    reason = error.__context__ if isinstance(error, RuntimeError) and error.__context__ is not None else error
    return (str(reason).splitlines() or [type(error).__name__])[0].rstrip(".")


def _read(path: Path, allowed: Sequence[Any]) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise WeightsFileError(f"{path} cannot be read: {error.strerror or error}", code="weights-unreadable") from None
    if not start:
        raise WeightsFileError(f"{path} is empty: download it again", code="weights-empty")
    zipped = is_zip(path)
    if start == b"PK\x03\x04" and not zipped:
        raise WeightsFileError(f"{path} is cut off before its end: download or copy it again", code="weights-cut-off")
    if not zipped and (kind := _other_kind(path)) is not None:
        raise WeightsFileError(f"{path} is no PyTorch checkpoint: it {kind}", code="weights-kind")
    if zipped:
        _check_stored(path)
    if _is_safetensors(path):
        return _read_safetensors(path)
    check_calls(path, zipped=zipped)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*allowed]):
            warnings.simplefilter("ignore")  # about pickle protocols and storages, which a user cannot change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DAMAGED as error:
        raise _unreadable(path, str(error)) from None


def _other_kind(path: Path) -> str | None:
    if path.name.endswith(".model.pkl"):
        weights = path.name.removesuffix(".pkl")
        return f"describes the training that {weights} is from: take {weights}, which lies beside it"
    kind = other_kind(path)
    return f"{kind}, then take the checkpoint inside" if kind is not None and "unpack" in kind else kind


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON object, and the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *DAMAGED) as error:
        raise WeightsFileError(
            f"{path} is a damaged safetensors file: download it again ({error})", code="weights-damaged"
        ) from None


def check_calls(path: Path, *, zipped: bool | None = None) -> None:
    """Refuse a checkpoint whose pickle would allocate too much memory; damaged pickles are left to PyTorch.

    Args:
        path: an archive of ``torch.save``, or a file of its older format.
        zipped: whether it is an archive; None to find out.

    Raises:
        WeightsFileError: naming the refused call.
    """
    try:
        check_pickles(path, zipped=is_zip(path) if zipped is None else zipped)
    except RefusedError as error:
        raise WeightsFileError(f"{path} {error}", code=error.code) from None
    except (*DAMAGED, zipfile.BadZipFile):
        pass


def _check_stored(path: Path) -> None:
    """Refuse compressed members, whose size is unbounded: torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            names = [info.filename for info in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsFileError(
            f"{path} is a damaged archive: download it again ({error})", code="weights-damaged"
        ) from None
    pickles = sum(name.rpartition("/")[2] == "data.pkl" for name in names)
    if pickles and (packed or pickles > 1 or len(names) > len(set(names))):
        what = f"'{packed[0]}' is compressed" if packed else "it has members of the same name"
        raise WeightsFileError(f"{path} was not written by torch.save: {what}. It is refused", code="weights-refused")


def _unreadable(path: Path, message: str) -> WeightsFileError:
    """Error for a message of `torch.load` about a file."""
    refused = re.search(r"GLOBAL (\w\S*) (?:was not an allowed|whose module)", message)
    if refused:
        return WeightsFileError(
            f"{path} asks to run '{refused[1]}' while it is read, which {UNNEEDED}", code="weights-refused"
        )
    if is_zip(path):
        return WeightsFileError(
            f"{path} is an archive, but not one written by torch.save: unpack it and use the checkpoint inside",
            code="weights-kind",
        )
    lines = [line for line in message.splitlines() if line and not line.startswith("Check the documentation")]
    last = (lines or ["?"])[-1][:200]
    return WeightsFileError(
        f"{path} is no PyTorch checkpoint, or a damaged one: download it again ({last})", code="weights-damaged"
    )


def _is_state_dict(content: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _check_tensors(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse sparse, quantised and meta tensors, which no checkpoint of a network needs."""
    for name, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise WeightsFileError(
                f"{path}: tensor '{name}' is {kind}, no plain array of numbers: it is refused", code="weights-refused"
            )


def _no_state_dict(path: Path, content: Any, keys: Sequence[str]) -> str:
    if not isinstance(content, Mapping):
        return f"{path} holds a {type(content).__name__}, not a state dict"
    found = ", ".join(str(k) for k in list(content)[:20]) or "nothing"
    return f"{path} holds no state dict: expected tensors, or one of the keys {', '.join(keys)}; found {found}"


def unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of a wrapper if all names have it."""
    for wrapper in WRAPPERS:
        if state_dict and all(name.startswith(wrapper) for name in state_dict):
            return unwrapped({name.removeprefix(wrapper): tensor for name, tensor in state_dict.items()})
    return dict(state_dict)
