"""Official files from which the parts of a network start: backbone, head, and a second branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nnunet_fm.adapters import DEFAULT_BRANCH
from nnunet_fm.heads import needs_official
from nnunet_fm.models.card import Checkpoint, ModelCard
from nnunet_fm.models.official import find_official
from nnunet_fm.models.registry import get_card

if TYPE_CHECKING:  # listing files must not import PyTorch
    from torch import nn

    from nnunet_fm.heads.base import Head
    from nnunet_fm.weights.report import LoadReport

BACKBONE, HEAD, LADDER = "backbone", "head", "ladder"
"""Names of the parts in plans and load reports, and of the submodules into which their files are loaded."""

_HEAD_DROP = (r"^(module\.)?image_encoder\.(?!neck\.)",)
_DECODER_DROP = (r"^(module\.)?mask_decoder\.",)
_ANY = (".",)


@dataclass(frozen=True)
class Part:
    """A part of a network, its official file, and rules for loading it.

    Attributes:
        name: `BACKBONE`, `HEAD` or `LADDER`.
        checkpoint: the official file.
        drop: regular expressions of names in the file that are left out on purpose.
        new: regular expressions of names in the network that the file lacks.
        decoder: whether a head's mask decoder also starts from the file, as far as shapes fit.
    """

    name: str
    checkpoint: Checkpoint
    drop: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    decoder: bool = False


def official_parts(
    card: ModelCard,
    head: str | None,
    adapter: str | None,
    arguments: Mapping[str, Any],
    *,
    chosen: Mapping[str, str] | None = None,
    decoder: bool = False,
) -> list[Part]:
    """The parts of a network that start from official files.

    Args:
        card: the model.
        head: decode head; None for a network with its own.
        adapter: name of the adapter.
        arguments: arguments of the network in the plan.
        chosen: part -> name of its file, if it is not the default.
        decoder: whether a head's mask decoder also starts from its file.

    Raises:
        LookupError: for a file that is not legal for the part; the message lists the legal ones.
    """
    chosen = chosen or {}
    found = []
    if card.checkpoint is not None:
        own = {c.name: c for c in card.checkpoints}
        checkpoint = _pick(BACKBONE, chosen, own, card.checkpoint)
        found.append(Part(BACKBONE, checkpoint, tuple(checkpoint.drop), tuple(checkpoint.new)))
    if head is not None and card.head_weights and needs_official(head):
        legal = {name: find_official(name) for name in card.head_weights.values()}
        checkpoint = _pick(HEAD, chosen, legal, next(iter(legal.values())))
        drop = _HEAD_DROP if decoder else (*_HEAD_DROP, *_DECODER_DROP)
        found.append(Part(HEAD, checkpoint, drop, _ANY, decoder))
    if adapter == LADDER:
        branch = get_card(arguments.get("adapter_arguments", {}).get(LADDER, {}).get("branch", DEFAULT_BRANCH))
        if branch.checkpoint is not None:
            own = {c.name: c for c in branch.checkpoints}
            checkpoint = _pick(LADDER, chosen, own, branch.checkpoint)
            found.append(Part(LADDER, checkpoint, tuple(checkpoint.drop), (*checkpoint.new, "^ladder\\.(?!branch)")))
    return found


def load_part(network: nn.Module, part: Part, file: Path) -> LoadReport:
    """Load a part's official file into a network; raises the errors of `nnunet_fm.weights.load.load_checkpoint`."""
    from nnunet_fm.weights.load import FileRules, load_checkpoint

    if part.name == HEAD:
        cast("Head", network.get_submodule(HEAD)).starts_mask_decoder = part.decoder
    official = part.checkpoint
    return load_checkpoint(
        network,
        file,
        FileRules(official.prefix, part.drop, part.new, part.name),
        containers=official.container,
        files=official.files,
        page=official.page,
    )


def _pick(part: str, chosen: Mapping[str, str], legal: Mapping[str, Checkpoint], default: Checkpoint) -> Checkpoint:
    name = chosen.get(part)
    if name is None:
        return default
    if name not in legal:
        raise LookupError(f"the {part} cannot start from '{name}'; legal: {', '.join(legal)}")
    return legal[name]
