"""Check of the pickle in a checkpoint, without unpickling: its calls, and the memory that they would allocate.

PyTorch's ``weights_only`` runs no foreign code, but a pickle of a few bytes can still make it allocate a bytearray, a
tensor or an array of any size, or encode bytes again and again. Checkpoints of ``torch.save`` need none of that.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nnunet_fm.errors import FMError

OPERATIONS = 3_000_000
"""Instructions that any pickle may have; a checkpoint has about forty per tensor."""
INSTRUCTION_BYTES = 32
"""Bytes of a file per further instruction; nnU-Net logs a number of about fifteen bytes per class and epoch."""

PICKLE_BYTES = 2**28
"""Largest pickle in a zip file; tensors are not in it."""

BUILDERS = frozenset({
    "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "torch.Size", "torch.device",
    "torch.serialization._get_layout", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_from_type_v2",
    *(f"torch._utils._rebuild_{what}" for what in (
        "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "sparse_tensor",
        "meta_tensor_no_storage",
    )),
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
})  # fmt: skip
"""Allowed calls, which allocate no more than their arguments."""

ENCODE = "_codecs.encode"
QUANTIZED = "torch._utils._rebuild_qtensor"
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
ITEM_BYTES = {
    "Double": 8,
    "Long": 8,
    "ComplexDouble": 16,
    "ComplexFloat": 8,
    "Float": 4,
    "Int": 4,
    "Half": 2,
    "Short": 2,
}
"""Bytes of an element in a storage, by the beginning of its name; others have at least one."""

LEGACY_PICKLES = 5
"""Number of pickles at the beginning of a file of the older format; the fourth describes the tensors."""


UNNEEDED = (
    "could be any program, or fill the memory. It is refused. Get the file from its official page, or have someone you "
    "trust save its tensors alone with torch.save"
)


class RefusedError(FMError, ValueError):
    """A pickle with a call that no checkpoint needs; the message is the predicate of a sentence."""


class _Global(str):
    """A class or function that a pickle names."""


class _Built:
    """Stand-in for an object that unpickling would build."""


_BUILT = _Built()


def check_pickles(path: Path, *, zipped: bool) -> None:
    """Check the pickles of a checkpoint without unpickling.

    Raises:
        RefusedError: for a call that could allocate any amount of memory, or a storage larger than the file.
        ValueError, LookupError, struct.error, zipfile.BadZipFile, OSError: for damaged bytes.
    """
    largest = path.stat().st_size
    with path.open("rb") as file:
        if zipped:
            _Reader(largest).read(_pickle_of_zip(path, file))
            return
        for _ in range(LEGACY_PICKLES):
            if not _Reader(largest).read(file):
                return


def _pickle_of_zip(path: Path, file: IO[bytes]) -> IO[bytes]:
    """The bytes of ``data.pkl``, read without its checksum, which PyTorch may omit."""
    with zipfile.ZipFile(path) as archive:
        (entry,) = (info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl")
    if entry.file_size > PICKLE_BYTES:
        raise RefusedError(f"has a pickle of {entry.file_size:,} bytes, which {UNNEEDED}", code="weights-refused")
    file.seek(entry.header_offset)
    name, extra = struct.unpack("<26xHH", file.read(30))
    file.seek(entry.header_offset + 30 + name + extra)
    return io.BytesIO(file.read(entry.file_size))


class _Reader:
    """The stack machine of pickle, with names instead of objects."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.stored: dict[Any, int] = {}
        self.promised = 0

    def read(self, stream: IO[bytes]) -> bool:
        """Read a pickle to its end; False for an instruction that PyTorch also refuses."""
        most = max(OPERATIONS, self.largest // INSTRUCTION_BYTES)
        for done, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            if done > most:
                raise RefusedError(
                    f"has a pickle of more than {most:,} instructions, which {UNNEEDED}", code="weights-refused"
                )
            name = operation.name
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _ARGUMENTS:
                self.stack.append(argument)
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in ("PROTO", "STOP"):
                return False
        return True

    def name(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        self.stack.append(_Global(f"{module}.{name}"))

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pair_up(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ValueError("too few values for a tuple")
        self.stack[-count:] = [items]

    def drop(self, count: int) -> None:
        for _ in range(count):
            self.stack.pop()

    def call(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.check_call(function, arguments)
        self.stack.append(_BUILT)

    def check_call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Global):
            raise RefusedError(
                f"calls something without a name while it is read, which {UNNEEDED}", code="weights-refused"
            )
        if function in RECONSTRUCT:
            allowed = isinstance(arguments, tuple) and len(arguments) == 3 and arguments[1] == (0,)
        elif function == ENCODE:  # the protocol of torch.save writes bytes as an encoded string
            allowed = isinstance(arguments, tuple) and len(arguments) == 2 and type(arguments[0]) is str
            allowed = allowed and arguments[1] in ("latin1", "latin-1")
        elif function == QUANTIZED:
            shape: Any = arguments[2] if isinstance(arguments, tuple) and len(arguments) > 2 else None
            allowed = isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
            allowed = allowed and math.prod(shape) <= self.largest
        else:
            allowed = function in BUILDERS
        if not allowed:
            name = function.removeprefix("builtins.")
            raise RefusedError(f"asks to run '{name}' while it is read, which {UNNEEDED}", code="weights-refused")
        if function.endswith("_rebuild_from_type_v2"):
            self.check_call(arguments[0], arguments[2])

    def storage(self, _: None) -> None:
        """Check that all storages together are no larger than the file, which holds them uncompressed."""
        identity = self.stack.pop()
        if isinstance(identity, tuple) and len(identity) >= 5:
            kind, key, count = identity[1], identity[2], identity[4]
            if isinstance(count, int) and isinstance(key, (str, bytes, int)):
                size = count * ITEM_BYTES.get(str(kind).rpartition(".")[2].removesuffix("Storage"), 1)
                self.promised += size - self.stored.get(key, 0)
                self.stored[key] = size
                if size < 0 or self.promised > self.largest:
                    raise RefusedError(
                        f"is cut off, or no checkpoint: it promises {self.promised:,} bytes and has {self.largest:,}; "
                        "download or copy it again",
                        code="weights-cut-off",
                    )
        self.stack.append(_BUILT)


_CONSTANTS: dict[str, Any] = {
    "NONE": None, "NEWFALSE": False, "NEWTRUE": True, "EMPTY_TUPLE": (),
    "EMPTY_LIST": _BUILT, "EMPTY_DICT": _BUILT, "EMPTY_SET": _BUILT,
}  # fmt: skip
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"})
_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "GLOBAL": _Reader.name,
    "MARK": _Reader.mark,
    "TUPLE": lambda r, _: _append(r, tuple(r.since_mark())),
    "TUPLE1": lambda r, _: r.pair_up(1),
    "TUPLE2": lambda r, _: r.pair_up(2),
    "TUPLE3": lambda r, _: r.pair_up(3),
    "APPEND": lambda r, _: r.drop(1),
    "APPENDS": lambda r, _: _ignore(r.since_mark()),
    "SETITEM": lambda r, _: r.drop(2),
    "SETITEMS": lambda r, _: _ignore(r.since_mark()),
    "BUILD": lambda r, _: r.drop(1),
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "BINPERSID": _Reader.storage,
    "BINGET": lambda r, index: _append(r, r.memo[index]),
    "LONG_BINGET": lambda r, index: _append(r, r.memo[index]),
    "BINPUT": lambda r, index: _put(r, index),
    "LONG_BINPUT": lambda r, index: _put(r, index),
}


def _append(reader: _Reader, value: Any) -> None:
    reader.stack.append(value)


def _put(reader: _Reader, index: int) -> None:
    reader.memo[index] = reader.stack[-1]


def _ignore(_: list[Any]) -> None:
    pass
