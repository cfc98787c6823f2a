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
"""Part of the names of layers that peft has wrapped."""

ADAPTER_PARTS = (".lora_A.", ".lora_B.")
"""Parts of the names of peft's own parameters."""

STEM = (r"^stem\.",)
"""Layer of 2D networks that only exists for some numbers of input channels."""

Named = dict[str, tuple[str | None, Tensor]]
"""Name in the network -> (name in the file, tensor); None instead of a name for a tensor that a conversion made."""

SHOWN = 12
"""Most names of a kind in an error message; the exception has all of them."""


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


@dataclass(frozen=True)
class FileRules:
    """Rules that relate the names of an official file to those of a network.

    Attributes:
        prefix: only names that start with it belong to the network, and lose it; a file without any is taken as is.
        drop: regular expressions, searched in the official names, of tensors left out on purpose.
        new: regular expressions, searched in the network's names, of tensors that the file may lack.
        part: submodule that the file is loaded into, if the network has no method ``from_official``.
    """

    prefix: str = ""
    drop: Sequence[str] = ()
    new: Sequence[str] = ()
    part: str = "backbone"


@dataclass
class Match:
    """Tensors of a network paired with those of a file, and the account of all others."""

    section: PartReport
    copies: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    """Name, tensor of the network, and tensor to copy into it."""
    unchanged: dict[str, str] = field(default_factory=dict)
    """Name in the network -> name in the file, of tensors that are copied without a change."""
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    @property
    def report(self) -> LoadReport:
        """The account as a load report."""
        return LoadReport((self.section,))

    def copy(self) -> LoadReport:
        """Copy the tensors of the file into the network, in place."""
        with torch.no_grad():
            for _, mine, theirs in self.copies:
                mine.copy_(theirs)
        return self.report


@dataclass(frozen=True)
class _Target:
    """Rules for the tensors of a network that may be missing in the file, or adapted."""

    path: str
    heads: tuple[str, ...]
    projections: frozenset[str]
    new: tuple[str, ...]
    adapters: bool = True

    def in_head(self, name: str) -> bool:
        return f"{self.path}{name}".startswith(self.heads)

    def is_projection(self, name: str) -> bool:
        return f"{self.path}{name}" in self.projections

    def be_missing(self, name: str) -> str | None:
        """Reason why the file may lack a tensor of the network; None if it may not."""
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
    rules: FileRules = FileRules(),
    *,
    containers: Sequence[str] = (),
    files: Sequence[str] = (),
    page: str = "",
) -> LoadReport:
    """Load an official file into a network, and note on the network which of its tensors are the file's (see `slim`).

    Args:
        network: changed in place.
        path: the file.
        rules: how its names relate to those of the network.
        containers: keys that may wrap the state dict, see `read_state_dict`.
        files: all names of the file in the weights folder.
        page: where a person downloads it.

    Raises:
        WeightsFileError, WeightsMismatchError: see `read_state_dict` and `match_official`.
    """
    state_dict = read_state_dict(path, containers)
    digest = sha256(path)
    match = match_official(network, state_dict, rules, file=path, digest=digest)
    match.copy()
    names = tuple(dict.fromkeys((path.name, *files)))
    remember(network, Base(names, digest, tuple(containers), page, match.unchanged))
    return match.report


def load_trained(
    network: nn.Module, weights: Mapping[str, Tensor], *, file: Path, same_classes: bool | None = None
) -> LoadReport:
    """Copy the weights of another training of the same model into a network, in place.

    Output layers start anew unless the classes are the same. The input layer is fitted to the number of channels, and
    weights that depend on the patch size by ``network.refit``. Head, adapter and size of the model must agree.

    Args:
        network: changed in place.
        weights: state dict of the checkpoint, full or slim.
        file: the checkpoint, for report and errors.
        same_classes: whether the classes are the same; if None (unknown), their number decides.

    Raises:
        WeightsMismatchError, WeightsFileError: see `match_official`; also for the official file of a slim checkpoint.
        BaseFileError: if that file is not in the weights folder.
    """
    weights = unwrapped(weights)
    heads = tuple(rf"^{re.escape(key)}\." for key in getattr(network, "key_to_head", ()))
    drop = heads if same_classes is False else ()
    if getattr(network, "stem", None) is None:
        drop += STEM
    rules, convert = FileRules(drop=drop, new=STEM, part="network"), getattr(network, "refit", dict)
    match = match_official(network, full_state_dict(weights), rules, file=file, convert=convert, adapters=False)
    match.copy()
    for base in bases_of(weights):
        remember(network, base)
    return match.report


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit a projection ``(out, N, ...)`` to M input channels: each new weight is the sum of the old ones, over M.

    An image repeated over all channels gives the same activation as before. The order of the old channels is lost; it
    has no meaning for a user's channels.
    """
    return (weight.sum(dim=1, keepdim=True) / channels).expand(-1, channels, *weight.shape[2:])


def match_official(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    rules: FileRules = FileRules(),
    *,
    file: Path | None = None,
    digest: str | None = None,
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    adapters: bool = True,
) -> Match:
    """Pair every tensor of an official state dict with one of a network, or account for it; nothing is copied.

    The target is the network itself if it has a method ``from_official``, else its submodule ``rules.part``, else the
    whole network. ``from_official(state_dict) -> state_dict`` converts official names and positions to the target's; a
    tensor that it does not change must stay the same object. Weights in ``network.keys_to_in_proj`` are fitted to the
    number of input channels (`adapt_channels`). Parameters under ``network.key_to_head`` may be missing, or have
    another number of classes. Layers wrapped by peft are found under their official names.

    Args:
        network: may be on the meta device.
        state_dict: of the file.
        rules: how its names relate to those of the network.
        file: where the state dict comes from, for report and errors.
        digest: SHA-256 of the file, for the report.
        convert: used instead of the target's ``from_official``.
        adapters: whether parameters of adapters may be missing in the file.

    Raises:
        WeightsMismatchError: for names or shapes that are not accounted for.
        WeightsFileError: for a file that the network recognises as another model's.
        NotFiniteWeightsError: for a tensor with NaN or infinite values.
    """
    target, path = _find_target(network, rules.part)
    match = Match(PartReport(rules.part, file.name if file else None, digest))
    official = _selected(state_dict, rules, match.section)
    convert = convert or getattr(target, "from_official", None)
    converted = official if convert is None else _converted(convert, official, match, file)
    may = _Target(
        path=path,
        heads=tuple(f"{h}." for h in getattr(network, "key_to_head", ())),
        projections=frozenset(f"{p}.weight" for p in getattr(network, "keys_to_in_proj", ())),
        new=tuple(rules.new),
        adapters=adapters,
    )
    own = {_plain(name): (name, tensor) for name, tensor in target.state_dict().items()}
    for plain in sorted(own.keys() | converted.keys()):
        name, mine = own.get(plain, (plain, None))
        source, theirs = converted.get(plain, (None, None))
        _account(match, may, name, mine, theirs, source)
    if match.unexpected or match.missing or match.shapes:
        raise WeightsMismatchError(match.section, match.unexpected, match.missing, match.shapes)
    check_finite({name: theirs for name, _, theirs in match.copies}, file or "the state dict")
    return match


def _find_target(network: nn.Module, part: str) -> tuple[nn.Module, str]:
    """The module to load into, and the prefix of its names in the network."""
    inner = getattr(network, part, None)
    if isinstance(inner, nn.Module) and not hasattr(network, "from_official"):
        return inner, f"{part}."
    return network, ""


def _selected(state_dict: Mapping[str, Tensor], rules: FileRules, section: PartReport) -> Named:
    """Tensors that belong to the network: name without prefix -> (name in the file, tensor)."""
    spellings = (rules.prefix, rules.prefix.removeprefix("module."))  # a wrapper's prefix may be removed already
    prefix = next((p for p in spellings if any(name.startswith(p) for name in state_dict)), "")
    official: Named = {}
    for name, tensor in state_dict.items():
        pattern = next((p for p in rules.drop if re.search(p, name)), None)
        if not name.startswith(prefix):
            section.dropped[name] = f"not under '{prefix}'"
        elif pattern is not None:
            section.dropped[name] = f"on purpose ('{pattern}')"
        else:
            official[name.removeprefix(prefix)] = (name, tensor)
    return official


def _account(
    match: Match, may: _Target, name: str, mine: Tensor | None, theirs: Tensor | None, source: str | None
) -> None:
    """Account for one name.

    Args:
        match: account to extend.
        may: rules of the target.
        name: name in the target.
        mine: tensor of the target, None if only the file has the name.
        theirs: tensor of the file, None if only the target has the name.
        source: name of ``theirs`` in the file, None for a tensor that the target's conversion made.
    """
    section, plain = match.section, _plain(name)
    if mine is None:
        if may.in_head(plain):
            section.adapted.pop(plain, None)
            section.dropped[plain] = "head without a counterpart"
        else:
            match.unexpected.append(plain)
    elif theirs is None:
        reason = may.be_missing(name)
        if reason is None:
            match.missing.append(name)
        else:
            section.missing[name] = reason
    elif mine.shape == theirs.shape:
        match.copies.append((source or name, mine, theirs))
        if source is not None:
            section.matched.append(name)
            match.unchanged[f"{may.path}{name}"] = source
    elif may.in_head(plain):
        section.adapted.pop(plain, None)
        section.dropped[plain] = f"head of another size, {list(theirs.shape)} for {list(mine.shape)}"
        section.missing[name] = "head, stays at its initial values"
    elif may.is_projection(plain) and _same_but_channels(mine, theirs):
        match.copies.append((source or name, mine, adapt_channels(theirs, mine.shape[1])))
        old, new = theirs.shape[1], mine.shape[1]
        section.adapted[plain] = f"input channels {old} -> {new}: sum over the old ones, divided by {new}"
    else:
        match.shapes[name] = (list(theirs.shape), list(mine.shape))


def _plain(name: str) -> str:
    """A name of the network as it was before peft wrapped the layer."""
    return name.replace(WRAPPED_LAYER, ".")


def _same_but_channels(mine: Tensor, theirs: Tensor) -> bool:
    return mine.ndim == theirs.ndim > 1 and mine.shape[0] == theirs.shape[0] and mine.shape[2:] == theirs.shape[2:]


def _converted(
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    official: Named,
    match: Match,
    file: Path | None,
) -> Named:
    """Convert names and positions with the target's own method, and note changed tensors as adapted.

    A tensor that stays the same object is unchanged, and traced to its name in the file by its identity.
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
    """Map a converted name back to the file: strip or add the prefix that only one side has."""
    inner = name
    while inner not in official and "." in inner:
        inner = inner.partition(".")[2]
    if inner in official:
        return inner
    return next((longer for longer in official if longer.endswith(f".{name}")), name)
