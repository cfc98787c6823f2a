"""A network by its name, with official weights: for scripts that do without nnU-Net's folders."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.models.build import architecture, build_network, legal_patch
from nnunet_fm.models.names import SCRATCH, TRAINER_PREFIX
from nnunet_fm.models.parts import BACKBONE, Part, load_part, official_parts
from nnunet_fm.models.registry import get_card, grammar
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.weights.cache import check_hash, locate
from nnunet_fm.weights.report import LoadReport


def create_model(
    name: str,
    num_classes: int,
    in_channels: int = 1,
    *,
    pretrained: bool | str = True,
    patch_size: Sequence[int] | None = None,
    deep_supervision: bool = False,
) -> FoundationNetwork:
    """Build a network and load its official weights.

    Args:
        name: a model, for 2D models with a decode head and an adapter if others than the card's first are wanted:
            ``stunet_b``, ``dinov2_s_linear``, ``sam_b_hqhsam_rein``; `nnunet-fm list models` prints all.
        num_classes: number of output channels, the background among them.
        in_channels: number of channels of an image.
        pretrained: True for the default official file, the name of another one of the model, False for random weights.
        patch_size: size of the images, ``(Z, Y, X)`` or ``(Y, X)``, which some networks are built for; by default that
            of the pre-training. Images of other sizes are padded or resized inside of the network.
        deep_supervision: whether the network returns an output of each stage of its decoder in training.

    Returns:
        A network from images ``(B, C, Z, Y, X)`` or ``(B, C, Y, X)`` to logits of the same size, in evaluation mode.
        Its `load_report` says what became of every tensor; print it.

    Raises:
        UnknownNameError: for a name that is no model; the message lists the nearest.
        MissingWeightsError: if an official file is not in the weights folder; the message says how to get it.
        WeightsMismatchError: if a file does not fit.
        InvalidValueError: for ``pretrained`` of a model without official weights.
    """
    spec = grammar().trainer(f"{TRAINER_PREFIX}_{name}")
    if spec.model is None or spec.scratch:
        raise InvalidValueError(
            f"'{name}' is no model: name it without '{SCRATCH}' and give pretrained=False", code="model-name"
        )
    card = get_card(spec.model)
    head = spec.head or (card.default_head if card.heads else None)
    geometry = card.variants["official"].geometry
    spacing = geometry.spacing if isinstance(geometry.spacing, list) else [1.0] * card.dim
    patch, strides = legal_patch(card, patch_size or geometry.patch, spacing)
    entry = architecture(card, patch_size=patch, spacing=spacing, strides=strides, head=head)
    network = build_network(entry, in_channels, num_classes, adapter=spec.adapter, deep_supervision=deep_supervision)
    network.load_report = LoadReport()
    if pretrained:
        chosen = {BACKBONE: pretrained} if isinstance(pretrained, str) else {}
        parts = official_parts(card, head, spec.adapter, entry["arch_kwargs"], chosen=chosen)
        if not parts:
            raise InvalidValueError(
                f"{card.title} has no official weights: give pretrained=False", code="weights-none-official"
            )
        network.load_report = _load(network, parts)
    return network.eval()


def _load(network: FoundationNetwork, parts: Sequence[Part]) -> LoadReport:
    """Load the official file of each part from the weights folder."""
    report = LoadReport()
    for part in parts:
        official = part.checkpoint
        file = locate(
            official.name, official.files, page=official.page, pull=bool(official.urls),
            instead="give pretrained=False",
        )  # fmt: skip
        check_hash(file, {"from its publisher": official.required})
        report += load_part(network, part, file)
    return report
