"""Reading of parity cases: a JSON file and an ``.npz`` of the same stem, in one of two layouts.

* ``{"model", "official_file", "cases": [...]}``: several cases, outputs sub-sampled by a stride per axis;
* flat: one case, outputs flattened in C order and sub-sampled by one stride.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity import fill


class NotSupportedError(Exception):
    """A case that no network of ours corresponds to; the message says why."""


@dataclass(frozen=True)
class Output:
    """One output of the official code: the shape of the full tensor, its standard deviation and a sub-sample of it."""

    name: str
    shape: tuple[int, ...]
    std: float
    stride: int | tuple[int, ...]
    start: tuple[int, ...]
    file: Path
    key: str

    def sample(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The stored sub-sample's elements of a full tensor."""
        array = tensor.detach().float().numpy()
        if isinstance(self.stride, int):
            return array.reshape(-1)[:: self.stride]
        start = self.start or (0,) * len(self.stride)
        return array[tuple(slice(a, None, s) for a, s in zip(start, self.stride, strict=True))]

    def error(self, tensor: Tensor) -> float:
        """max |ours - official| / std(official); infinite where shapes differ or values are not finite."""
        if tuple(tensor.shape) != self.shape:
            return float("inf")
        with np.load(self.file) as stored:
            official = stored[self.key]
        ours = self.sample(tensor)
        if ours.shape != official.shape or not np.isfinite(ours).all():
            return float("inf")
        return float(np.abs(ours.astype(np.float64) - official).max() / (self.std or 1.0))


@dataclass(frozen=True)
class Case:
    """One case: which official module, how it was built, what went in and what came out.

    Attributes:
        name: file stem, and the case's own name where a file holds several.
        module: text that tells which official module this is: its import path, or model and file.
        constructor: arguments of the official constructor.
        given: what the file states of each input, in order: ``shape``, ``name`` for `fill.inputs`, and more.
        outputs: what to compare.
        meta: the whole JSON content of the case.
    """

    name: str
    module: str
    constructor: dict[str, Any]
    given: list[dict[str, Any]]
    outputs: list[Output]
    meta: dict[str, Any] = field(repr=False)

    def inputs(self) -> list[Tensor]:
        """The case's inputs in order: the position says what an input is, its name only how it was drawn."""
        return [torch.from_numpy(fill.inputs(tuple(i["shape"]), i.get("name", "input"))) for i in self.given]

    def prefix(self, part: str | None = None) -> str:
        """The prefix that keys of `part` (of the whole module, if None) had when their values were drawn."""
        stated = str(self.meta.get("key_prefix", "")).split("(")[0]
        prefixes = re.findall(r"\b[a-z]\w*\.(?=[\s,]|$)", stated)
        if part is not None:
            return f"{part}." if f"{part}." in prefixes else ""
        return prefixes[0] if len(prefixes) == 1 else ""

    def gain(self, key: str, part: str | None = None) -> float:
        """The factor on the value of `key`, 1 if none is stated."""
        gains: Mapping[str, Any] = self.meta.get("gains") or {}
        if part is not None and isinstance(gains.get(part), Mapping):
            gains = gains[part]
        factor = 1.0
        for pattern, number in gains.items():
            if not isinstance(number, Mapping) and re.search(pattern, key):
                factor *= number
        return factor

    def value(self, key: str, shape: Sequence[int], part: str | None = None) -> Tensor:
        """Value of the floating-point tensor with the official name `key`."""
        tensor = torch.from_numpy(fill.value(self.prefix(part) + key, shape))
        gain = self.gain(key, part)
        return tensor if gain == 1.0 else tensor.mul_(gain)

    def state_dict(self, shapes: Mapping[str, Sequence[int]], part: str | None = None) -> dict[str, Tensor]:
        """An official state dict, given names and shapes of its floating-point tensors."""
        return {key: self.value(key, shape, part) for key, shape in shapes.items()}

    def fill(self, module: nn.Module, part: str | None = None) -> None:
        """Set the weights of a module that has the official names, in place and tensor by tensor.

        A module on the meta device gets its memory here; it must not have buffers that it computes for itself.
        """
        if any(tensor.is_meta for tensor in module.state_dict().values()):
            module.to_empty(device="cpu")
        skipped = set(self.meta.get("skip", ()))
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and key not in skipped:
                tensor.copy_(self.value(key, tensor.shape, part))

    def expect_names(self, module: nn.Module) -> None:
        """Compare names and shapes of a module's state dict with those the case lists.

        Raises:
            NotSupportedError: where they differ.
        """
        listed = {key: tuple(shape) for key, shape in self.meta.get("state_dict", {}).items()}
        ours = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        if listed and listed != ours:
            differing = sorted(key for key in listed.keys() | ours.keys() if listed.get(key) != ours.get(key))
            raise NotSupportedError(f"state dict differs from the official one in {', '.join(differing[:5])}")


def _given(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a case states of its inputs: a list, or an object whose keys are the official names of arguments."""
    inputs = case["inputs"]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def _cases_of_layout(content: dict[str, Any], file: Path) -> Iterator[Case]:
    npz = file.with_suffix(".npz")
    if "cases" not in content:
        outputs = [
            Output(name, tuple(o["shape"]), o["std"], o["stride"], (), npz, name)
            for name, o in content["outputs"].items()
        ]
        yield Case(file.stem, content["module"], content.get("constructor", {}), _given(content), outputs, content)
        return
    module = f"{content['model']} {content.get('official_file', '')}"
    for entry in content["cases"]:
        outputs = [
            Output(
                o["name"], tuple(o["shape"]), o["std"], tuple(o["stride"]), tuple(o.get("start", ())), npz, o["npz_key"]
            )
            for o in entry["outputs"]
        ]
        meta = {**content, **entry}
        yield Case(f"{file.stem}/{entry['name']}", module, entry.get("constructor", {}), _given(entry), outputs, meta)


def read_cases(folder: Path) -> list[Case]:
    """All cases of the JSON files in `folder`, in the order of their names."""
    files = sorted(folder.glob("*.json"))
    return [case for file in files for case in _cases_of_layout(json.loads(file.read_text(encoding="utf-8")), file)]
