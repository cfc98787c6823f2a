"""Make nnU-Net's ``architecture`` entry of a plan from a model card, and a network from that entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pydoc import locate
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_fm.adapters import apply_adapter
from nnunet_fm.errors import FMError, InvalidValueError
from nnunet_fm.models.card import ModelCard
from nnunet_fm.models.registry import cards
from nnunet_fm.moved import present_path
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.weights import slim

Architecture = dict[str, Any]

OURS = "nnunet_fm.networks."
"""Package of our networks. Other modules of a plan are not imported, because importing runs their code."""

MIN_BOTTLENECK_SIZE = 4
"""Fewest voxels of an axis after halving, like in nnU-Net's own planner."""

UNIT_RANGE = frozenset(
    {"FMPercentileNormalization", "ScaleIntensity", "RescaleTo01Normalization", "RGBTo01Normalization"}
)
"""Normalisation schemes whose results lie in [0, 1]."""


def legal_patch(card: ModelCard, patch: Sequence[int], spacing: Sequence[float]) -> tuple[list[int], list[list[int]]]:
    """Round a patch up to the next legal size of a network.

    Args:
        card: the model.
        patch: wanted size in voxels, one per axis.
        spacing: voxel spacing in mm, same axes.

    Returns:
        Legal size, and the strides per stage (first stage ``[1, 1, 1]``) if the network has configurable pooling, else
        an empty list.
    """
    multiple = card.network.multiple
    sizes = [-(-max(size, card.network.min_edge) // multiple) * multiple for size in patch]
    if card.network.max_pooling is None:
        return sizes, []
    # Pooling follows nnU-Net's rule: an axis of few or thick slices is pooled less, and may be smaller than min_edge.
    thin = [max(1, size) for size in patch]
    _, strides, _, rounded, _ = get_pool_and_conv_props(spacing, thin, MIN_BOTTLENECK_SIZE, card.network.max_pooling)
    return [int(e) for e in rounded], [list(s) for s in strides]


def architecture(
    card: ModelCard,
    *,
    patch_size: Sequence[int],
    spacing: Sequence[float],
    strides: Sequence[Sequence[int]] = (),
    head: str | None = None,
    normalization_schemes: Sequence[str] = (),
    unit_channels: Sequence[int] = (),
    changes: Mapping[str, Any] | None = None,
) -> Architecture:
    """nnU-Net's ``architecture`` entry: a class path and arguments that build the network without the card.

    Args:
        card: the model.
        patch_size: patch of the plan in voxels.
        spacing: spacing of the plan in mm, same axes.
        strides: pooling per stage, for networks with configurable pooling.
        head: decode head of a 2D model; None for the card's first.
        normalization_schemes: schemes of the plan, one per channel, which decide ``input_range`` of networks that were
            pre-trained on photographs.
        unit_channels: channels that the plan scales to [0, 1], for networks with an argument of this name.
        changes: arguments of the network that differ from the card's.

    Raises:
        ValueError: for a change of an argument that the card does not name.
    """
    unknown = sorted(set(changes or {}) - set(card.network.arguments))
    if unknown:
        raise InvalidValueError(
            f"the network of '{card.name}' has no argument {', '.join(unknown)} to change; "
            f"it has {', '.join(card.network.arguments) or 'none'}",
            code="argument-unknown",
        )
    given = dict(card.network.arguments)
    if "unit_channels" in given:
        given["unit_channels"] = list(unit_channels)
    arguments = network_class(card.network.class_path).resolve_arguments(
        {**given, **(changes or {})}, patch_size=patch_size, spacing=spacing
    )
    if card.network.max_pooling is not None:
        arguments["strides"] = [list(s) for s in strides]
    if card.heads:
        arguments["head"] = head or card.default_head
    if card.network.input_range:
        unit = bool(normalization_schemes) and all(s in UNIT_RANGE for s in normalization_schemes)
        arguments["input_range"] = "unit" if unit else "standardised"
    return {"network_class_name": card.network.class_path, "arch_kwargs": arguments, "_kw_requires_import": []}


def official_architecture(
    card: ModelCard, *, head: str | None = None, changes: Mapping[str, Any] | None = None
) -> Architecture:
    """The ``architecture`` entry in the geometry of the official weights; arguments as in `architecture`."""
    geometry = card.variants["official"].geometry
    spacing = geometry.spacing if isinstance(geometry.spacing, list) else [1.0] * card.dim
    patch, strides = legal_patch(card, geometry.patch, spacing)
    return architecture(card, patch_size=patch, spacing=spacing, strides=strides, head=head, changes=changes)


class NetworkClassError(FMError, ImportError, TypeError):
    """A class that is not there, or is no network of this package."""


def network_class(class_path: str) -> type[FoundationNetwork]:
    """The network class of a dotted path, which may be a former one.

    Raises:
        NetworkClassError: if it does not exist; or, before any module is imported, if it is neither one of ours nor one
            that a model card names.
    """
    class_path = present_path(class_path) if isinstance(class_path, str) else class_path
    if not isinstance(class_path, str) or not (class_path.startswith(OURS) or class_path in _of_cards()):
        raise NetworkClassError(f"'{class_path}' is not a network of nnunet-fm", code="network-foreign")
    found = locate(class_path)
    if found is None:
        raise NetworkClassError(f"network class '{class_path}' of the plan does not exist", code="network-missing")
    if not (isinstance(found, type) and issubclass(found, FoundationNetwork)):
        raise NetworkClassError(f"'{class_path}' is not a network of nnunet-fm", code="network-foreign")
    return found


def _of_cards() -> set[str]:
    """Class paths of all networks in model cards, including the user's own cards."""
    return {card.network.class_path for card in cards().values()}


def build_network(
    entry: Mapping[str, Any],
    input_channels: int,
    num_classes: int,
    *,
    adapter: str | None = None,
    deep_supervision: bool = False,
) -> FoundationNetwork:
    """Build the network of an ``architecture`` entry with random weights, without access to the net or the disk.

    The network can load slim checkpoints, too (see `nnunet_fm.weights.slim`).

    Raises:
        ImportError, TypeError: see `network_class`.
    """
    network = network_class(entry["network_class_name"])(
        input_channels, num_classes, deep_supervision=deep_supervision, **entry["arch_kwargs"]
    )
    if adapter is not None:
        apply_adapter(adapter, network, **network.adapter_arguments.get(adapter, {}))
    if network.convolutional:
        network.compute_channels_last()
    slim.register(network)
    return network
