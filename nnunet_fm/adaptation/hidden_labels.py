"""Training cases with hidden labels: label maps are replaced before patches are drawn or augmented."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from numpy.typing import NDArray
from torch import Tensor

OUTSIDE = -1
"""nnU-Net's label of voxels outside the image's nonzero region."""


class HiddenLabels:
    """nnU-Net's dataset, in which all cases but the labelled ones have a marker instead of labels.

    Patches that a loader would centre on a labelled voxel of such a case are centred on a random one.

    Args:
        data: nnU-Net's dataset.
        labelled: cases that keep their labels.
        marker: label of no class.
        keep_outside: whether to keep `OUTSIDE`, which nnU-Net's masked normalisation needs.
    """

    def __init__(self, data: Any, labelled: Collection[str], marker: int, *, keep_outside: bool = False) -> None:
        self._data = data
        self.identifiers: list[str] = data.identifiers
        self.labelled, self.marker, self.keep_outside = frozenset(labelled), marker, keep_outside

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        data, segmentation, previous, properties = self._data.load_case(identifier)
        if identifier in self.labelled:
            return data, segmentation, previous, properties
        shape = tuple(data.shape[1:])
        anywhere = np.array([[0, *(np.random.randint(size) for size in shape)]])
        locations = {label: anywhere for label in properties.get("class_locations", {})}
        hidden = _Hidden((1, *shape), self.marker, segmentation if self.keep_outside else None)
        return data, hidden, previous, {**properties, "class_locations": locations}


class _Hidden:
    """A segmentation with the same marker everywhere, computed only for the patches that are cut out of it.

    Args:
        shape: shape of the segmentation.
        marker: its value.
        outside: segmentation from which `OUTSIDE` is kept; None without.
    """

    def __init__(self, shape: tuple[int, ...], marker: int, outside: Any = None) -> None:
        self.shape, self.marker, self.outside = shape, marker, outside

    def __getitem__(self, index: Any) -> NDArray[np.int16]:
        patch: NDArray[np.int16] = np.broadcast_to(np.int16(self.marker), self.shape)[index].copy()
        if self.outside is not None:
            patch[np.asarray(self.outside[index]) == OUTSIDE] = OUTSIDE
        return patch


def outside_marker(marker: int) -> int:
    """Label of pixels outside the image in patches whose labels are hidden by ``marker``."""
    return marker + 1


class MarkOutside(SegOnlyTransform):
    """Mark pixels outside the image in patches of cases without labels, which padding and rotation bring in."""

    def __init__(self, marker: int) -> None:
        super().__init__()
        self.marker = marker

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        hidden = segmentation == self.marker
        return segmentation.where(hidden, outside_marker(self.marker)) if hidden.any() else segmentation


def keep_hidden(pipeline: ComposeTransforms, marker: int) -> ComposeTransforms:
    """Add `MarkOutside` to training transforms, before nnU-Net turns padding into background."""
    transforms = list(pipeline.transforms)
    place = next(i for i, transform in enumerate(transforms) if isinstance(transform, RemoveLabelTransform))
    return ComposeTransforms([*transforms[:place], MarkOutside(marker), *transforms[place:]])
