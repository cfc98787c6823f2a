"""Load an official state dict into a network: every key accounted for, or nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_fm.weights.cache import sha256
from nnunet_fm.weights.files import read_state_dict
from nnunet_fm.weights.report import LoadReport, Section

SHOWN = 12
"""Names of a kind that an error message lists; the exception holds all of them."""


class WeightsMismatchError(ValueError):
    """A state dict that does not fit the network.

    Attributes:
        unexpected: names that only the file has.
        missing: names that only the network has.
        shapes: names with ``(shape in the file, shape in the network)``.
    """

    def __init__(
        self,
        section: Section,
        unexpected: list[str],
        missing: list[str],
        shapes: dict[str, tuple[list[int], list[int]]],
    ) -> None:
        self.unexpected, self.missing, self.shapes = unexpected, missing, shapes
        differing = [f"{n} {file} in the file, {own} in the network" for n, (file, own) in shapes.items()]
        kinds = {"only in the file": unexpected, "missing in the file": missing, "other shape": differing}
        found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names)
        hint = ". The file looks like another size of the model" if len(shapes) > SHOWN else ""
        file = section.file or "the state dict"
        super().__init__(f"{file} does not fit the network ({section.part}): {found}{hint}")


@dataclass
class _Match:
    """Pairs of a network's tensor and what to copy into it, and the account of everything else."""

    section: Section
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)


def load_checkpoint(
    network: nn.Module,
    path: Path,
    *,
    containers: Sequence[str] = (),
    drop: Sequence[str] = (),
    part: str = "backbone",
    prefix: str = "",
) -> LoadReport:
    """Read an official file and load it; arguments and errors as in `read_state_dict` and `load_official`."""
    return load_official(network, read_state_dict(path, containers), drop=drop, part=part, prefix=prefix, file=path)


def load_official(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    drop: Sequence[str] = (),
    part: str = "backbone",
    prefix: str = "",
    file: Path | None = None,
) -> LoadReport:
    """Copy an official state dict into a network, tensor by tensor, in place.

    The target is the network's submodule called ``part``, or the whole network where it has none. A target with a
    method ``from_official(state_dict) -> state_dict`` (official to own names, position embeddings) is asked first.
    Weights named in ``network.keys_to_in_proj`` are fitted to the number of input channels (`adapt_channels`), and
    parameters under ``network.key_to_head`` may be missing or made for another number of classes.

    Args:
        drop: regular expressions, searched in the official names, of tensors left out on purpose.
        prefix: only names that start with it belong to this part; it is removed from them.
        file: where the state dict comes from, for report and errors.

    Raises:
        WeightsMismatchError: for names or shapes that are not accounted for; the network is unchanged then.
    """
    inner = getattr(network, part, None)
    target, path = (inner, f"{part}.") if isinstance(inner, nn.Module) else (network, "")
    match = _Match(Section(part, file.name, sha256(file)) if file else Section(part))
    official = {}
    for name, tensor in state_dict.items():
        pattern = next((p for p in drop if re.search(p, name)), None)
        if not name.startswith(prefix):
            match.section.dropped[name] = f"not under '{prefix}'"
        elif pattern is not None:
            match.section.dropped[name] = f"on purpose ('{pattern}')"
        else:
            official[name.removeprefix(prefix)] = tensor
    if hasattr(target, "from_official"):
        official = _converted(target, official, match)
    heads = tuple(f"{h}." for h in getattr(network, "key_to_head", ()))
    projections = {f"{p}.weight" for p in getattr(network, "keys_to_in_proj", ())}
    own = target.state_dict()
    for name in sorted(own.keys() | official.keys()):
        in_head = f"{path}{name}".startswith(heads)
        _account(match, name, own.get(name), official.get(name), in_head, f"{path}{name}" in projections)
    if match.unexpected or match.missing or match.shapes:
        raise WeightsMismatchError(match.section, match.unexpected, match.missing, match.shapes)
    with torch.no_grad():
        for mine, theirs in match.copies:
            mine.copy_(theirs)
    return LoadReport((match.section,))


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit a projection ``(out, N, ...)`` to M input channels: each new one gets the sum of the old ones over M.

    From one channel to M this repeats the weight over M, from N to one it sums, so that an image repeated over all
    channels gives the same activation as before. In general the old channels' order is lost: it carries no meaning
    from photographs or CT to a user's channels.
    """
    return (weight.sum(dim=1, keepdim=True) / channels).expand(-1, channels, *weight.shape[2:])


def _account(
    match: _Match, name: str, mine: Tensor | None, theirs: Tensor | None, in_head: bool, is_projection: bool
) -> None:
    """Enter one name, of the network (``mine``), the file (``theirs``) or both."""
    section = match.section
    if theirs is None:
        if in_head:
            section.missing[name] = "head, stays at its initial values"
        else:
            match.missing.append(name)
    elif mine is None:
        if in_head:
            section.dropped[name] = "head without a counterpart"
        else:
            match.unexpected.append(name)
    elif mine.shape == theirs.shape:
        match.copies.append((mine, theirs))
        if name not in section.adapted:
            section.matched.append(name)
    elif in_head:
        section.dropped[name] = f"head of another size, {list(theirs.shape)} for {list(mine.shape)}"
        section.missing[name] = "head, stays at its initial values"
    elif is_projection and _same_but_channels(mine, theirs):
        match.copies.append((mine, adapt_channels(theirs, mine.shape[1])))
        old, new = theirs.shape[1], mine.shape[1]
        section.adapted[name] = f"input channels {old} -> {new}: sum over the old ones, divided by {new}"
    else:
        match.shapes[name] = (list(theirs.shape), list(mine.shape))


def _same_but_channels(mine: Tensor, theirs: Tensor) -> bool:
    return mine.ndim == theirs.ndim > 1 and mine.shape[0] == theirs.shape[0] and mine.shape[2:] == theirs.shape[2:]


def _converted(target: nn.Module, official: dict[str, Tensor], match: _Match) -> dict[str, Tensor]:
    """The target's own conversion of names and positions, with what it changed entered as adapted."""
    converted: dict[str, Tensor] = target.from_official(dict(official))  # type: ignore[operator]
    by_identity = {id(tensor): name for name, tensor in official.items()}
    used = set()
    for name, tensor in converted.items():
        source = by_identity.get(id(tensor))
        if source is None:
            before = f"from {list(official[name].shape)}" if name in official else "by the network"
            match.section.adapted[name] = f"converted {before} to {list(tensor.shape)}"
            used.add(name)
        else:
            used.add(source)
    for name in official.keys() - used:
        match.section.dropped[name] = "merged into other tensors, or left out, by the network"
    return converted


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
