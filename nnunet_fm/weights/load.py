"""Load an official state dict into a network: every key accounted for, or nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_fm.errors import FMError, code_of
from nnunet_fm.io.messages import listed
from nnunet_fm.weights.cache import sha256
from nnunet_fm.weights.files import WeightsFileError, check_finite, read_state_dict, unwrapped
from nnunet_fm.weights.report import LoadReport, PartReport
from nnunet_fm.weights.slim import Base, bases_of, full_state_dict, remember

WRAPPED_LAYER = ".base_layer."
"""What peft puts into the names of a layer that it wraps."""

ADAPTER_PARTS = (".lora_A.", ".lora_B.")
"""What names of peft's own parameters hold."""

STEM = (r"^stem\.",)
"""The layer of 2D networks that is there for some numbers of input channels only."""

Named = dict[str, tuple[str | None, Tensor]]
"""Name in the network -> (name in the file, tensor); no name in the file for a tensor that the network made."""

SHOWN = 12
"""Names of a kind that an error message lists; the exception holds all of them."""


class WeightsMismatchError(FMError, ValueError):
    """A state dict that does not fit the network.

    Attributes:
        unexpected: names that only the file has.
        missing: names that only the network has.
        shapes: names with ``(shape in the file, shape in the network)``.
    """

    code = "weights-mismatch"

    def __init__(
        self,
        section: PartReport,
        unexpected: list[str],
        missing: list[str],
        shapes: dict[str, tuple[list[int], list[int]]],
    ) -> None:
        self.unexpected, self.missing, self.shapes = unexpected, missing, shapes
        differing = [f"{n} {file} in the file, {own} in the network" for n, (file, own) in shapes.items()]
        kinds = {"only in the file": unexpected, "missing in the file": missing, "other shape": differing}
        found = "; ".join(f"{len(names)} {kind}: {listed(names, most=SHOWN)}" for kind, names in kinds.items() if names)
        hint = ". The file looks like another size of the model" if len(shapes) > SHOWN else ""
        file = section.file or "the state dict"
        super().__init__(f"{file} does not fit the network ({section.part}): {found}{hint}")


@dataclass
class _Match:
    """Name, tensor of a network and what to copy into it, for each that is copied, and the account of all others."""

    section: PartReport
    copies: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    unchanged: dict[str, str] = field(default_factory=dict)
    """Name in the network -> name in the file, of tensors that are copied as they are."""
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Rules:
    """Which names of a target may be missing, and which of its tensors may be adapted."""

    path: str
    heads: tuple[str, ...]
    projections: frozenset[str]
    new: tuple[str, ...]
    adapters: bool = True

    def in_head(self, name: str) -> bool:
        return f"{self.path}{name}".startswith(self.heads)

    def is_projection(self, name: str) -> bool:
        return f"{self.path}{name}" in self.projections

    def may_be_missing(self, name: str) -> str | None:
        """Why the file may lack a tensor of the network; None if it may not."""
        if self.in_head(name):
            return "head, stays at its initial values"
        if self.adapters and any(part in name for part in ADAPTER_PARTS):
            return "adapter, starts at its initial values"
        if any(re.search(pattern, f"{self.path}{name}") or re.search(pattern, name) for pattern in self.new):
            return "not in the file, starts at random"
        return None


def load_checkpoint(
    network: nn.Module,
    path: Path,
    *,
    containers: Sequence[str] = (),
    prefix: str = "",
    drop: Sequence[str] = (),
    new: Sequence[str] = (),
    part: str = "backbone",
    files: Sequence[str] = (),
    page: str = "",
) -> LoadReport:
    """Read an official file and load it, and note on the network what it holds of the file (see `slim`).

    Arguments and errors as in `read_state_dict` and `load_official`; ``files`` are all names of the file in the
    weights folder, and ``page`` is where a person gets it.
    """
    state_dict = read_state_dict(path, containers)
    digest = sha256(path)
    match = _matched(network, state_dict, prefix=prefix, drop=drop, new=new, part=part, file=path, digest=digest)
    _copy(match)
    names = tuple(dict.fromkeys((path.name, *files)))
    remember(network, Base(names, digest, tuple(containers), page, match.unchanged))
    return LoadReport((match.section,))


def load_official(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str = "",
    drop: Sequence[str] = (),
    new: Sequence[str] = (),
    part: str = "backbone",
    file: Path | None = None,
) -> LoadReport:
    """Copy an official state dict into a network, tensor by tensor, in place.

    The target is the network itself if it has a method ``from_official``, else its submodule called ``part``, else
    the whole network. ``from_official(state_dict) -> state_dict`` turns official names and positions into the
    target's own; what it passes on must be the same objects. Weights named in ``network.keys_to_in_proj`` are fitted
    to the number of input channels (`adapt_channels`), and parameters under ``network.key_to_head`` may be missing
    or made for another number of classes. Layers that peft has wrapped are found under their official names, and its
    low-rank updates are new.

    Args:
        prefix: only names that start with it belong to the network, and lose it; a file without any is taken as is.
        drop: regular expressions, searched in the official names, of tensors left out on purpose.
        new: regular expressions, searched in the network's names, of tensors that the file may lack.
        file: where the state dict comes from, for report and errors.

    Raises:
        WeightsMismatchError: for names or shapes that are not accounted for; the network is unchanged then.
        WeightsFileError: for a file that the network recognises as another model's.
        NotFiniteWeightsError: for a tensor with values that are no numbers.
    """
    match = _matched(network, state_dict, prefix=prefix, drop=drop, new=new, part=part, file=file)
    _copy(match)
    return LoadReport((match.section,))


def check_official(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str = "",
    drop: Sequence[str] = (),
    new: Sequence[str] = (),
    part: str = "backbone",
    file: Path | None = None,
) -> LoadReport:
    """The account that `load_official` would give, with its errors, and nothing copied.

    The network may be on the meta device.
    """
    match = _matched(network, state_dict, prefix=prefix, drop=drop, new=new, part=part, file=file)
    return LoadReport((match.section,))


def load_trained(
    network: nn.Module, weights: Mapping[str, Tensor], *, file: Path, same_classes: bool | None = None
) -> LoadReport:
    """Copy what a training of the same model has learned into a network, in place.

    The output layers start anew unless the classes are the same, the input layer is fitted to the number of channels,
    and what depends on the patch size is fitted by ``network.refit``. Head, adapter and size of the model must agree.

    Args:
        weights: of the checkpoint, full or slim.
        file: the checkpoint, for report and errors.
        same_classes: whether classes are the same; None where nobody knows: their number decides.

    Raises:
        WeightsMismatchError, WeightsFileError: as `load_official`, and for the official file of a slim checkpoint.
        BaseFileError: if that file is not at hand.
    """
    weights = unwrapped(weights)
    heads = tuple(rf"^{re.escape(key)}\." for key in getattr(network, "key_to_head", ()))
    drop = heads if same_classes is False else ()
    if getattr(network, "stem", None) is None:
        drop += STEM
    match = _matched(
        network, full_state_dict(weights), prefix="", drop=drop, new=STEM, part="network", file=file,
        convert=getattr(network, "refit", dict), adapters=False,
    )  # fmt: skip
    _copy(match)
    for base in bases_of(weights):
        remember(network, base)
    return LoadReport((match.section,))


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit a projection ``(out, N, ...)`` to M input channels: each new one gets the sum of the old ones over M.

    From one channel to M this repeats the weight over M, from N to one it sums, so that an image repeated over all
    channels gives the same activation as before. In general the old channels' order is lost: it carries no meaning
    from photographs or CT to a user's channels.
    """
    return (weight.sum(dim=1, keepdim=True) / channels).expand(-1, channels, *weight.shape[2:])


def _copy(match: _Match) -> None:
    with torch.no_grad():
        for _, mine, theirs in match.copies:
            mine.copy_(theirs)


def _matched(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str,
    drop: Sequence[str],
    new: Sequence[str],
    part: str,
    file: Path | None,
    digest: str | None = None,
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    adapters: bool = True,
) -> _Match:
    """Pair every tensor of a file with one of the network, or account for it; raises as `load_official`.

    ``convert`` takes the place of the target's ``from_official``; ``adapters`` may be new to the file.
    """
    target, path = _target(network, part)
    match = _Match(PartReport(part, file.name if file else None, digest))
    official = _selected(state_dict, prefix, drop, match.section)
    convert = convert or getattr(target, "from_official", None)
    converted = official if convert is None else _converted(convert, official, match, file)
    rules = _Rules(
        path=path,
        heads=tuple(f"{h}." for h in getattr(network, "key_to_head", ())),
        projections=frozenset(f"{p}.weight" for p in getattr(network, "keys_to_in_proj", ())),
        new=tuple(new),
        adapters=adapters,
    )
    own = {_plain(name): (name, tensor) for name, tensor in target.state_dict().items()}
    for plain in sorted(own.keys() | converted.keys()):
        name, mine = own.get(plain, (plain, None))
        source, theirs = converted.get(plain, (None, None))
        _account(match, rules, name, mine, theirs, source)
    if match.unexpected or match.missing or match.shapes:
        raise WeightsMismatchError(match.section, match.unexpected, match.missing, match.shapes)
    check_finite({name: theirs for name, _, theirs in match.copies}, file or "the state dict")
    return match


def _target(network: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The module to load into, and what its names start with in the network."""
    inner = getattr(network, part, None)
    if isinstance(inner, nn.Module) and not hasattr(network, "from_official"):
        return inner, f"{part}."
    return network, ""


def _selected(state_dict: Mapping[str, Tensor], prefix: str, drop: Sequence[str], section: PartReport) -> Named:
    """Tensors that belong to the network: name without prefix -> (name in the file, tensor)."""
    spellings = (prefix, prefix.removeprefix("module."))  # the file's wrapper may be off already
    prefix = next((p for p in spellings if any(name.startswith(p) for name in state_dict)), "")
    official: Named = {}
    for name, tensor in state_dict.items():
        pattern = next((p for p in drop if re.search(p, name)), None)
        if not name.startswith(prefix):
            section.dropped[name] = f"not under '{prefix}'"
        elif pattern is not None:
            section.dropped[name] = f"on purpose ('{pattern}')"
        else:
            official[name.removeprefix(prefix)] = (name, tensor)
    return official


def _account(
    match: _Match, rules: _Rules, name: str, mine: Tensor | None, theirs: Tensor | None, source: str | None
) -> None:
    """Enter one name, of the network (``mine``), the file (``theirs``) or both.

    ``source`` is the name of ``theirs`` in the file, None for a tensor that the target made.
    """
    section, plain = match.section, _plain(name)
    if mine is None:
        if rules.in_head(plain):
            section.adapted.pop(plain, None)
            section.dropped[plain] = "head without a counterpart"
        else:
            match.unexpected.append(plain)
    elif theirs is None:
        reason = rules.may_be_missing(name)
        if reason is None:
            match.missing.append(name)
        else:
            section.missing[name] = reason
    elif mine.shape == theirs.shape:
        match.copies.append((source or name, mine, theirs))
        if source is not None:
            section.matched.append(name)
            match.unchanged[f"{rules.path}{name}"] = source
    elif rules.in_head(plain):
        section.adapted.pop(plain, None)
        section.dropped[plain] = f"head of another size, {list(theirs.shape)} for {list(mine.shape)}"
        section.missing[name] = "head, stays at its initial values"
    elif rules.is_projection(plain) and _same_but_channels(mine, theirs):
        match.copies.append((source or name, mine, adapt_channels(theirs, mine.shape[1])))
        old, new = theirs.shape[1], mine.shape[1]
        section.adapted[plain] = f"input channels {old} -> {new}: sum over the old ones, divided by {new}"
    else:
        match.shapes[name] = (list(theirs.shape), list(mine.shape))


def _plain(name: str) -> str:
    """A name of the network without what peft has put into it."""
    return name.replace(WRAPPED_LAYER, ".")


def _same_but_channels(mine: Tensor, theirs: Tensor) -> bool:
    return mine.ndim == theirs.ndim > 1 and mine.shape[0] == theirs.shape[0] and mine.shape[2:] == theirs.shape[2:]


def _converted(
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    official: Named,
    match: _Match,
    file: Path | None,
) -> Named:
    """The target's own conversion of names and positions, with what it changed entered as adapted.

    A tensor that the conversion passes on unchanged is the same object, which tells where it comes from.
    """
    given = {name: tensor for name, (_, tensor) in official.items()}
    try:
        converted = dict(convert(dict(given)))
    except ValueError as error:
        raise WeightsFileError(f"{file or 'the state dict'}: {error}", code=code_of(error, "weights-other")) from error
    except (RuntimeError, LookupError, TypeError) as error:
        raise WeightsFileError(
            f"{file or 'the state dict'} looks like another model's: its tensors cannot be converted ({error})",
            code="weights-other",
        ) from error
    unchanged = {id(tensor): name for name, tensor in given.items()}
    named: Named = {}
    used = set()
    for name, tensor in converted.items():
        source = unchanged.get(id(tensor))
        named[name] = (None if source is None else official[source][0], tensor)
        if source is None:
            source = _origin(name, given)
            before = f"from {list(given[source].shape)}" if source in given else "by the network"
            match.section.adapted[name] = f"converted {before} to {list(tensor.shape)}"
        used.add(source)
    for name in given.keys() - used:
        match.section.dropped[name] = "merged into other tensors, or left out, by the network"
    return named


def _origin(name: str, official: Mapping[str, Tensor]) -> str:
    """The official name of a converted tensor: its own, or, of file and network, what the deeper one puts before it."""
    inner = name
    while inner not in official and "." in inner:
        inner = inner.partition(".")[2]
    if inner in official:
        return inner
    return next((longer for longer in official if longer.endswith(f".{name}")), name)
