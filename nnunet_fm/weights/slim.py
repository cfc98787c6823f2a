"""Slim checkpoints: frozen tensors that are equal to those of an official file are left out.

Each left-out tensor is replaced by a stand-in of its shape and type that takes no space: one NaN, repeated by strides
of zero. A further entry of the state dict, the note (`NOTE`, JSON as uint8), names the official file with its SHA-256,
the tensors' names in it, and the SHA-256 of all left-out tensors. A strict load into any other network fails, because
it has no buffer of this name.

`register` adds a hook to a network that fills stand-ins from the weights folder while it loads; `expand_slim` reads a
slim checkpoint as a full one. nnU-Net's ``-pretrained_weights`` would drop the note: the hook refuses such weights, and
our trainers read the file themselves.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_fm.errors import FMError
from nnunet_fm.io.untrusted import plain_name
from nnunet_fm.weights.cache import cache_folder, sha256
from nnunet_fm.weights.files import NOTE, WEIGHTS, WeightsFileError, is_stand_in, read_state_dict, read_trained

MARK = b"nnunet-fm slim checkpoint 1\n"
HEAD = 16
"""Bytes before `MARK` in the note (and in stand-ins) of older checkpoints."""

BASES = "official_bases"
"""Attribute of a network with the `Base` of each official file that was loaded into it."""


class BaseFileError(FMError, FileNotFoundError):
    """The official file of a slim checkpoint is missing or another one; the message says what to do."""


@dataclass(frozen=True)
class Base:
    """An official file, and the tensors of a network that equal those of the file.

    Attributes:
        files: possible names in the weights folder.
        sha256: hash of the file.
        containers: keys that may wrap the state dict.
        page: where a person downloads it.
        tensors: name in the network -> name in the file.
        digest: SHA-256 of the left-out tensors; None if none are left out yet.
    """

    files: tuple[str, ...]
    sha256: str
    containers: tuple[str, ...]
    page: str
    tensors: Mapping[str, str]
    digest: str | None = None


@dataclass(frozen=True)
class _File:
    """A version of a file in the weights folder, identified by size and time."""

    path: Path
    size: int
    mtime_ns: int


def register(network: nn.Module) -> None:
    """Add the hook that fills in left-out tensors when a network loads a slim checkpoint."""
    network.register_load_state_dict_pre_hook(_fill_in)


def remember(network: nn.Module, base: Base) -> None:
    """Note that a network holds tensors of an official file, instead of earlier notes on these tensors."""
    kept = [_without(old, base.tensors) for old in getattr(network, BASES, ())]
    setattr(network, BASES, (*(old for old in kept if old.tensors), base))


def slim_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict without frozen tensors that are byte-identical to those of its official files.

    It is complete if nothing is frozen, no official file was loaded, or the file is missing now.

    Raises:
        ValueError: for a network on the meta device, which has no content.
    """
    content: dict[str, Tensor] = dict(network.state_dict())
    if any(tensor.is_meta for tensor in content.values()):
        raise ValueError("the network is on the meta device: it has shapes, but no weights to save")
    frozen = _frozen(network)
    slim = []
    for base in getattr(network, BASES, ()):
        wanted = {mine: theirs for mine, theirs in base.tensors.items() if mine in frozen}
        if not wanted:
            continue
        try:
            file = _locate(base)
            official = _read(file, base.containers)
        except (OSError, WeightsFileError) as error:
            warnings.warn(f"the checkpoint is written in full: {error}", stacklevel=2)
            continue
        same = {
            mine: theirs
            for mine, theirs in wanted.items()
            if theirs in official and content[mine].numel() > 1 and _same_bytes(content[mine], official[theirs])
        }
        if same:
            slim.append(replace(base, tensors=same, digest=_digest(file, base.containers, _pairs(same))))
    if not slim:
        return content
    for base in slim:
        for name in base.tensors:
            content[name] = _stand_in(content[name])
    content[NOTE] = _note(slim)
    return content


def expand_slim(path: Path) -> tuple[dict[str, Any], tuple[Base, ...]]:
    """Read a checkpoint of nnU-Net with full weights, and the official files whose tensors it had left out.

    Raises:
        WeightsFileError: see `read_trained` and `full_state_dict`.
        BaseFileError: see `full_state_dict`.
    """
    content = read_trained(path)
    return {**content, WEIGHTS: full_state_dict(content[WEIGHTS])}, bases_of(content[WEIGHTS])


def full_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill in the tensors that a slim state dict leaves out; a full one is unchanged.

    Raises:
        BaseFileError: if the official file is missing in the weights folder, or is another one.
        WeightsFileError: if the note is damaged or missing, or names files outside of the weights folder.
    """
    content = dict(state_dict)
    for base in bases_of(state_dict):
        content.update({n: t for n, t in _tensors(base).items() if n in content})
    content.pop(NOTE, None)
    if name := next((name for name, tensor in content.items() if is_stand_in(tensor)), None):
        raise WeightsFileError(
            f"tensor '{name}' stands for one of an official file, and the note '{NOTE}' that says which one is "
            "missing: run `nnunet-fm weights bundle FOLDER` on the checkpoint's folder, and load the full checkpoint",
            code="checkpoint-note",
        )
    return content


def bases_of(state_dict: Mapping[str, Tensor]) -> tuple[Base, ...]:
    """The official files that a state dict needs; empty for a full one."""
    note = state_dict.get(NOTE)
    return () if note is None else _read_note(note)


def _fill_in(
    module: nn.Module,
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    local_metadata: Mapping[str, Any],
    *_: object,
) -> None:
    """Pre-hook of `load_state_dict`: replace stand-ins by the tensors of the official file."""
    mine = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
    bases = bases_of(mine)
    assigned = local_metadata.get("assign_to_params_buffers", False)
    if bases and not assigned and any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise RuntimeError(
            "a slim checkpoint cannot be loaded into a network on the meta device, which would stay empty: "
            "build the network on a real device, or load with assign=True"
        )
    full = full_state_dict(mine)
    if not bases:
        return
    left_out = {name for base in bases for name in base.tensors}
    for name, tensor in full.items():
        state_dict[f"{prefix}{name}"] = tensor.clone() if assigned and name in left_out else tensor
    state_dict.pop(f"{prefix}{NOTE}", None)
    setattr(module, BASES, ())
    for base in bases:
        remember(module, base)


# Stand-ins and note in a checkpoint


def _stand_in(tensor: Tensor) -> Tensor:
    """One NaN (0 for integers), expanded to a tensor's shape and type."""
    value = float("nan") if tensor.is_floating_point() else 0
    return torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)


def _note(bases: list[Base]) -> Tensor:
    content = bytearray(json.dumps([asdict(base) for base in bases]).encode())
    return torch.frombuffer(content, dtype=torch.uint8).clone()


def _read_note(note: Tensor) -> tuple[Base, ...]:
    content = _bytes(note).numpy().tobytes()
    if content[HEAD:].startswith(MARK):
        content = content[HEAD + len(MARK) :]
    try:
        return tuple(_base(**entry) for entry in json.loads(content))
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsFileError(
            f"the checkpoint's note on left-out weights is damaged ({error})", code="checkpoint-note"
        ) from None


def _base(
    files: list[str],
    sha256: str,
    containers: list[str],
    page: str,
    tensors: dict[str, str],
    digest: str | None = None,
) -> Base:
    """Read a base from an untrusted note: names of its files must not leave the weights folder."""
    words = [*files, *containers, *tensors, *tensors.values(), sha256, page, digest or ""]
    if not files or not isinstance(tensors, dict) or not all(isinstance(word, str) for word in words):
        raise TypeError("entries of another type")
    return Base(tuple(map(plain_name, files)), sha256, tuple(containers), page, dict(tensors), digest)


# The official file


def _tensors(base: Base) -> dict[str, Tensor]:
    """Name in the network -> verified tensor of the official file, which is cached for the next checkpoint."""
    file = _locate(base)
    official = _read(file, base.containers)
    if not all(name in official for name in base.tensors.values()):
        raise BaseFileError(
            f"{file.path} is the right file, but this version finds other names in it: {_cure(base)}",
            code="base-file-changed",
        )
    if _digest(file, base.containers, _pairs(base.tensors)) != base.digest:
        raise BaseFileError(
            f"{file.path} is the right file, but its tensors are not those left out: {_cure(base)}",
            code="base-file-changed",
        )
    return {mine: official[theirs] for mine, theirs in base.tensors.items()}


def _locate(base: Base) -> _File:
    present = [path for name in base.files if (path := cache_folder() / name).is_file()]
    for path in present:
        if sha256(path) == base.sha256:
            status = path.stat()
            return _File(path, status.st_size, status.st_mtime_ns)
    needed = f"a slim checkpoint needs {base.files[0]} with SHA-256 {base.sha256}"
    if present:
        raise BaseFileError(
            f"{needed}, but {present[0]} has {sha256(present[0])}: {_cure(base)}", code="base-file-changed"
        )
    raise BaseFileError(f"{needed}, which is not in {cache_folder()}: {_cure(base)}", code="base-file-missing")


def _cure(base: Base) -> str:
    page = f" from {base.page}" if base.page else ""
    return (
        f"get the file{page} and put it there, or run `nnunet-fm weights bundle FOLDER` on a machine that has it, "
        f"which writes checkpoints that need no other file"
    )


@lru_cache(maxsize=4)
def _read(file: _File, containers: tuple[str, ...]) -> dict[str, Tensor]:
    return read_state_dict(file.path, containers)


@lru_cache(maxsize=16)
def _digest(file: _File, containers: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> str:
    """SHA-256 over tensors of a file with their names in the network, types and shapes."""
    official, digest = _read(file, containers), hashlib.sha256()
    for mine, theirs in pairs:
        tensor = official[theirs]
        digest.update(f"{mine} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _pairs(tensors: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(tensors.items()))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)


def _same_bytes(mine: Tensor, theirs: Tensor) -> bool:
    same_kind = mine.dtype == theirs.dtype and mine.shape == theirs.shape
    return same_kind and torch.equal(_bytes(mine), _bytes(theirs))


def _frozen(network: nn.Module) -> set[str]:
    """Names of parameters that are not trained, and of buffers in frozen modules."""
    modules = tuple(f"{key}." for key in getattr(network, "frozen", ()))
    buffers = {name for name, _ in network.named_buffers() if name.startswith(modules)}
    return buffers | {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def _without(base: Base, names: Mapping[str, str]) -> Base:
    return replace(base, tensors={m: t for m, t in base.tensors.items() if m not in names})
