"""Logits of the network's grid to the label map of the image, block by block: no resampled logits are ever whole.

Where a plan resamples logits linearly, each axis is resampled by a matrix that has at most two entries per row. Labels
are taken of a block of rows of one plane before the next block is begun. The memory is that of the logits, the label
map, and a few blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from nnunet_fm.preprocessing.resampling import fm_resample_data_to_shape

BLOCK = 2**20
"""Values of a block, in rows of one plane of all classes: 4 MB, which stay in the processor's cache."""
COLUMNS = 48
"""Columns computed by one product; few enough to skip most of the zeros, enough for an efficient product."""


Neighbours = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class LinearResampling:
    """A matrix ``(new, old)`` per axis (z, y, x), None where nothing changes.

    ``rounded`` is whether results are rounded to the logits' own precision before labels are taken, as by nnU-Net's
    default.
    """

    matrices: tuple[Tensor | None, Tensor | None, Tensor | None]
    rounded: bool


def linear_resampling(
    function: Callable[..., Any],
    old: Sequence[int],
    new: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> LinearResampling | None:
    """Linear resampling of a plan's `resampling_fn_probabilities`; None if it is not linear, or not known."""
    if tuple(old) == tuple(new):
        return LinearResampling((None, None, None), rounded=False)
    if not isinstance(function, partial) or function.args:
        return None
    known = {
        resample_torch_fornnunet: (_torch_linear, _torch_nearest),
        resample_data_or_seg_to_shape: (_zoom_linear, _map_nearest),
        fm_resample_data_to_shape: (_zoom_linear, _map_nearest),
    }
    if function.func not in known:
        return None
    call = inspect.signature(function.func).bind(None, new, current_spacing, new_spacing, **function.keywords)
    call.apply_defaults()
    arguments = call.arguments
    # The first of each is the only one that is linear; a device is one of torch's, and cannot stand in a plan.
    expected = {"is_seg": False, "order": 1, "order_z": 0, "mode": "linear", "aniso_axis_mode": "nearest-exact"}
    if any(arguments.get(name, value) != value for name, value in expected.items()) or "device" in function.keywords:
        return None
    separate, thick = determine_do_sep_z_and_axis(
        arguments["force_separate_z"], current_spacing, new_spacing, arguments["separate_z_anisotropy_threshold"]
    )
    linear, nearest = known[function.func]
    matrices = [
        None if before == after else (nearest if separate and axis == thick else linear)(before, after)
        for axis, (before, after) in enumerate(zip(old, new, strict=True))
    ]
    return LinearResampling((matrices[0], matrices[1], matrices[2]), function.func is not resample_torch_fornnunet)


def _torch_linear(old: int, new: int) -> Tensor:
    return F.interpolate(torch.eye(old)[None], new, mode="linear")[0].T.contiguous()


def _torch_nearest(old: int, new: int) -> Tensor:
    chosen = F.interpolate(torch.arange(old, dtype=torch.float32)[None, None], new, mode="nearest-exact")[0, 0]
    return torch.eye(old)[chosen.long()]


def _zoom_linear(old: int, new: int) -> Tensor:
    """Matrix of linear resizing by scikit-image with mode "edge"."""
    matrix = ndimage.zoom(np.eye(old), (new / old, 1), order=1, mode="nearest", grid_mode=True)
    return torch.from_numpy(matrix.astype(np.float32))


def _map_nearest(old: int, new: int) -> Tensor:
    positions = old / new * (np.arange(new) + 0.5) - 0.5
    return torch.eye(old)[ndimage.map_coordinates(np.arange(old), positions[None], order=0, mode="nearest")]


def label_map(
    logits: NDArray[np.floating[Any]],
    properties: dict[str, Any],
    configuration: ConfigurationManager,
    plans: PlansManager,
    labels: LabelManager,
) -> NDArray[np.integer[Any]] | None:
    """The label map of a case, as nnU-Net's `convert_predicted_logits_to_segmentation_with_correct_shape` makes it.

    Args:
        logits: ``(K, Z, Y, X)``, of preprocessed axes and grid.
        properties: of the case, as preprocessing gives them.
        configuration: of the plan.
        plans: of the model.
        labels: of the dataset.

    Returns:
        Label map in the axes and the grid of the image; None if the plan's resampling is not linear.
    """
    new = tuple(int(edge) for edge in properties["shape_after_cropping_and_before_resampling"])
    spacing = [properties["spacing"][i] for i in plans.transpose_forward]
    current = configuration.spacing
    if len(current) != len(new):  # 2D plans keep the slices' distance
        current = [spacing[0], *current]
    resampling = linear_resampling(configuration.resampling_fn_probabilities, logits.shape[1:], new, current, spacing)
    if resampling is None:
        return None
    kind = np.uint8 if len(labels.foreground_labels) < 255 else np.uint16  # as nnU-Net's
    whole = np.zeros(properties["shape_before_cropping"], dtype=kind)
    inside = whole[tuple(slice(first, end) for first, end in properties["bbox_used_for_cropping"])]
    _fill(inside, torch.from_numpy(logits), resampling, _decision(labels))
    return whole.transpose(plans.transpose_backward)


def _decision(labels: LabelManager) -> Callable[[Tensor], Any]:
    """Labels ``(rows, X)`` of logits ``(K, rows, X)``."""
    if type(labels) is LabelManager and not labels.has_regions:
        return lambda block: block.max(dim=0).indices.numpy()  # faster than argmax; of equals the first, too
    return lambda block: np.asarray(labels.convert_logits_to_segmentation(block))


@torch.inference_mode()
def _fill(
    out: NDArray[np.integer[Any]], logits: Tensor, resampling: LinearResampling, decide: Callable[[Tensor], Any]
) -> None:
    """Write the labels of logits ``(K, Z, Y, X)`` to ``out`` ``(Z', Y', X')``."""
    depth, height, width = out.shape
    across, down = (None if matrix is None else _neighbours(matrix) for matrix in resampling.matrices[:2])
    rows = max(1, BLOCK // (len(logits) * width))
    for start in range(0, height, rows):
        block = slice(start, min(start + rows, height))
        planes: dict[int, Tensor] = {}
        for z in range(depth):
            first, second, share = z, z, 0.0
            if across is not None:
                first, second, share = int(across[0][z]), int(across[1][z]), float(across[2][z])
            planes = {
                source: planes[source]
                if source in planes
                else _in_plane(logits[:, source], block, down, resampling.matrices[2])
                for source in (first, second)
            }
            values = planes[first] if first == second else torch.lerp(planes[first], planes[second], share)
            if resampling.rounded and logits.dtype != values.dtype:
                values = values.to(logits.dtype).to(values.dtype)
            out[z, block] = decide(values)


def _in_plane(plane: Tensor, block: slice, down: Neighbours | None, along: Tensor | None) -> Tensor:
    """Rows ``block`` of a plane ``(K, Y, X)`` resampled to ``(K, Y', X')``, in float32."""
    if down is None:
        return _along(plane[:, block].float(), along)
    first, second, share = (side[block] for side in down)
    top, bottom = int(first.min()), int(second.max()) + 1
    values = _along(plane[:, top:bottom].float(), along)
    # Several times as fast as ``values[:, first - top]``.
    upper, lower = values.index_select(1, first - top), values.index_select(1, second - top)
    return torch.lerp(upper, lower, share[:, None])


def _along(values: Tensor, matrix: Tensor | None) -> Tensor:
    """Resample the last axis: a product with the matrix, block by block along its band of nonzero entries."""
    if matrix is None:
        return values
    parts = []
    for columns in matrix.split(COLUMNS):
        (used,) = columns.any(dim=0).nonzero(as_tuple=True)
        band = slice(int(used[0]), int(used[-1]) + 1)
        parts.append(torch.matmul(values[..., band], columns[:, band].T))
    return torch.cat(parts, dim=-1)


def _neighbours(matrix: Tensor) -> Neighbours:
    """The two neighbours that a linear ``(new, old)`` matrix joins in each row, and the share of the second."""
    used = matrix != 0
    first = used.int().argmax(dim=1)
    second = first + (used.sum(dim=1) == 2)
    share = torch.where(second > first, matrix[torch.arange(len(matrix)), second], 0)
    return first, second, share
