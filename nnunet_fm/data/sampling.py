"""Ways to draw training patches from cases; a recipe names one.

``nnunet``: nnU-Net's own, a fixed share of each batch is centred on foreground. ``pos_neg``: each patch is, with a
probability, centred on a voxel drawn uniformly from all foreground, otherwise on one from the background, as MONAI's
RandCropByPosNegLabel. ``balanced``: each patch is, with a probability, centred on a voxel of a foreground class (or
region) drawn uniformly from those present, otherwise anywhere, as PUMIT trains. A ratio of positive to negative
patches of 2:1 is a probability of 2/3, and holds in expectation. ``rare_class`` is for slices, see
`nnunet_fm.data.rare_class`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

Voxels = Literal["foreground", "background"]

SLAB = 32
"""Slices of a segmentation that are read at once."""


class FMDataLoader(nnUNetDataLoader):
    """nnU-Net's training loader with another choice of patches.

    A patch never has its centre on the ignore label. A case that lacks what a patch should be centred on gives a
    random patch: anywhere, or around a labelled voxel where there is an ignore label, as nnU-Net does.

    Args:
        data: nnU-Net's dataset.
        batch_size: patches per batch.
        patch_size: edges of the patch that is cut out.
        final_patch_size: edges of the patch that the transforms leave.
        label_manager: nnU-Net's.
        sampling: see the module.
        positive: probability of a positive patch.
        transforms: of the training.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        patch_size: Sequence[int],
        final_patch_size: Sequence[int],
        label_manager: LabelManager,
        *,
        sampling: Literal["pos_neg", "balanced"],
        positive: float,
        transforms: Any = None,
    ) -> None:
        self.cases = LastCase(data)
        super().__init__(
            self.cases,
            batch_size,
            patch_size,
            final_patch_size,
            label_manager,
            oversample_foreground_percent=positive,
            probabilistic_oversampling=True,
            transforms=transforms,
        )
        self.sampling = sampling
        self.ignore_label: int | None = label_manager.ignore_label
        self._counts: dict[str, dict[Voxels, NDArray[np.int64]]] = {}

    def get_bbox(
        self,
        data_shape: Sequence[int],
        force_fg: bool,
        class_locations: Mapping[Any, Any] | None,
        overwrite_class: Any = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Lower and upper corner of the patch to cut out of the case that was loaded last.

        The patch of ``pos_neg`` stays where nnU-Net's random patches may lie, so that a voxel near the border is in
        it, but not in its middle.
        """
        if self.sampling == "balanced":  # what nnU-Net does for the foreground share of a batch
            return super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        centre = self._draw("foreground" if force_fg else "background")
        if centre is None:
            return super().get_bbox(data_shape, False, class_locations)
        patch = np.asarray(self.patch_size)
        lowest, highest = corner_range(data_shape, patch, self.need_to_pad)
        lower = np.clip(centre - patch // 2, lowest, highest)
        return lower.tolist(), (lower + patch).tolist()

    def _draw(self, wanted: Voxels) -> NDArray[np.int64] | None:
        """A voxel (z, y, x) drawn uniformly from the foreground or background of the last case, None without any.

        nnU-Net's stored class locations cannot tell: they hold up to 10,000 voxels of a class, whatever its volume.
        """
        segmentation = self.cases.segmentation
        if self.cases.identifier not in self._counts:
            self._counts[self.cases.identifier] = self._count(segmentation)
        up_to = np.cumsum(self._counts[self.cases.identifier][wanted])
        if up_to[-1] == 0:
            return None
        z = int(np.searchsorted(up_to, np.random.randint(up_to[-1]), side="right"))
        inside = np.argwhere(self._mask(np.asarray(segmentation[0, z]), wanted))
        return np.array([z, *inside[np.random.randint(len(inside))]])

    def _count(self, segmentation: Any) -> dict[Voxels, NDArray[np.int64]]:
        """Number of foreground and background voxels in each slice; the whole case is read, once."""
        kinds: tuple[Voxels, ...] = ("foreground", "background")
        counts: dict[Voxels, list[NDArray[np.int64]]] = {kind: [] for kind in kinds}
        for start in range(0, segmentation.shape[1], SLAB):
            slab = np.asarray(segmentation[0, start : start + SLAB])
            for kind in kinds:
                counts[kind].append(np.count_nonzero(self._mask(slab, kind), axis=(1, 2)))
        return {kind: np.concatenate(counts[kind]) for kind in kinds}

    def _mask(self, labels: NDArray[np.integer], wanted: Voxels) -> NDArray[np.bool_]:
        """Mask of a label; the background is without the voxels outside of the nonzero region (-1)."""
        if wanted == "background":
            return labels == 0
        return labels > 0 if self.ignore_label is None else (labels > 0) & (labels != self.ignore_label)


def corner_range(
    shape: Sequence[int], patch: NDArray[np.int64], need_to_pad: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lowest and highest lower corner of nnU-Net's random patches, both legal.

    Args:
        shape: edges of the image.
        patch: edges of the patch that is cut out.
        need_to_pad: how much of the patch the transforms cut off, which may lie outside.
    """
    pad = np.maximum(need_to_pad, patch - np.asarray(shape))
    return -pad // 2, np.asarray(shape) + pad // 2 + pad % 2 - patch


class LastCase:
    """Dataset that remembers the case it loaded last, because the patch is chosen right after loading."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.identifiers = data.identifiers
        self.identifier = ""
        self.segmentation: Any = None

    def load_case(self, identifier: str) -> Any:
        data, self.segmentation, previous, properties = self._data.load_case(identifier)
        self.identifier = identifier
        return data, self.segmentation, previous, properties
