"""Drawing of training slices that shows rare classes more often: ``sampling: rare_class`` of 2D recipes.

A class, background included, is drawn with probability softmax((1 - frequency) / 0.1), its frequency being the mean of
its share of a slice's pixels over all training slices. Then one of the slices with more than 4 pixels of that class is
drawn uniformly, from all cases alike.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from scipy.special import softmax

from nnunet_fm.data.sampling import SLAB, LastCase, corner_range
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.published_quirks import published_slices

TEMPERATURE = 0.1
MIN_PIXELS = 5
"""A slice with fewer pixels of a class is not drawn for it."""


@dataclass(frozen=True)
class Survey:
    """Classes in each training slice.

    Attributes:
        slices: label -> ``(N, 2)``, case and slice of those with at least `MIN_PIXELS` of its pixels, in order. Labels
            that no slice shows often enough are left out.
        frequencies: label -> mean share of a slice's labelled pixels.
    """

    slices: Mapping[int, NDArray[np.int32]]
    frequencies: Mapping[int, float]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Sampling probability of each label, in the order of ``slices``."""
        rarity = 1 - np.array([self.frequencies[label] for label in self.slices])
        result: NDArray[np.float64] = softmax(rarity / TEMPERATURE)
        return result


def survey(data: Any, ignore_label: int | None = None) -> Survey:
    """Read every segmentation of nnU-Net's dataset once, some slices at a time.

    Pixels outside the nonzero region (-1) are background; those with the ignore label are no class and count nowhere.

    Raises:
        ValueError: if no slice holds `MIN_PIXELS` labelled pixels of any class.
    """
    found: defaultdict[int, array[int]] = defaultdict(lambda: array("i"))
    shares: defaultdict[int, float] = defaultdict(float)
    labelled = 0
    for case, identifier in enumerate(data.identifiers):
        segmentation = data.load_case(identifier)[1]
        for start in range(0, segmentation.shape[1], SLAB):
            slab = np.maximum(np.asarray(segmentation[0, start : start + SLAB]), 0)
            for z, labels in enumerate(slab, start):
                counts = np.bincount(labels.ravel())
                if ignore_label is not None:
                    counts[ignore_label : ignore_label + 1] = 0
                total = int(counts.sum())
                labelled += total > 0
                for label in np.flatnonzero(counts).tolist():
                    shares[label] += counts[label] / total
                    if counts[label] >= MIN_PIXELS:
                        found[label].extend((case, z))
    if not found:
        raise InvalidValueError(f"no training slice has {MIN_PIXELS} labelled pixels of any class", code="labels-empty")
    order = sorted(found)
    return Survey(
        slices={label: np.array(found[label], dtype=np.int32).reshape(-1, 2) for label in order},
        frequencies={label: shares[label] / labelled for label in order},
    )


class RareClassDataLoader(nnUNetDataLoader):
    """nnU-Net's training loader, which draws slices by the classes they show instead of cases.

    Where a slice is larger than the patch, the patch is centred, as far as it stays inside, on a pixel of the class
    that was drawn, or lies anywhere for background.

    All training segmentations are read when this is made, so that the processes it is sent to need not.

    Args:
        data: nnU-Net's dataset.
        batch_size: patches per batch.
        patch_size: edges of the patch that is cut out, two.
        final_patch_size: edges of the patch that the transforms leave.
        label_manager: nnU-Net's.
        faithful: draw every class from one list of slices, see `published_quirks`.
        transforms: of the training.

    Raises:
        ValueError: for 3D patches, or without labelled pixels.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        patch_size: Sequence[int],
        final_patch_size: Sequence[int],
        label_manager: LabelManager,
        *,
        faithful: bool = False,
        transforms: Any = None,
    ) -> None:
        if len(patch_size) != 2:
            raise InvalidValueError(
                f"sampling 'rare_class' draws slices for 2D patches, not for {len(patch_size)}D ones",
                code="recipe-dimension",
            )
        self.cases = LastCase(data)
        super().__init__(self.cases, batch_size, patch_size, final_patch_size, label_manager, transforms=transforms)
        self.ignore_label: int | None = label_manager.ignore_label
        seen = survey(data, self.ignore_label)
        self.labels, self.probabilities = list(seen.slices), seen.probabilities
        self.slices = published_slices(seen.slices) if faithful else seen.slices
        self._drawn: deque[tuple[int, int]] = deque()

    def get_indices(self) -> list[str]:
        """Cases of the next batch; label and slice of each wait for `get_bbox`, which is asked in the same order."""
        self._drawn.clear()
        identifiers = []
        for _ in range(self.batch_size):
            label = self.labels[np.random.choice(len(self.labels), p=self.probabilities)]
            slices = self.slices[label]
            case, z = slices[np.random.randint(len(slices))].tolist()
            self._drawn.append((label, z))
            identifiers.append(self.indices[case])
        return identifiers

    def get_bbox(
        self,
        data_shape: Sequence[int],
        force_fg: bool,
        class_locations: Mapping[Any, Any] | None,
        overwrite_class: Any = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Lower and upper corner (z, y, x) of the patch to cut out of the case that was loaded last."""
        label, z = self._drawn.popleft()
        patch = np.asarray(self.patch_size)[1:]
        lowest, highest = corner_range(data_shape[1:], patch, self.need_to_pad[1:])
        pixel = self._pixel(label, z)
        if pixel is None:
            corner = np.random.randint(lowest, highest + 1)
        else:
            corner = np.clip(pixel - patch // 2, lowest, highest)
        return [z, *corner.tolist()], [z + 1, *(corner + patch).tolist()]

    def _pixel(self, label: int, z: int) -> NDArray[np.int64] | None:
        """A pixel (y, x) of a label in a slice of the last case; None where any place will do.

        With an ignore label background has pixels, too: elsewhere may be nothing labelled.
        """
        if label == 0 and self.ignore_label is None:
            return None
        pixels = np.argwhere(np.maximum(np.asarray(self.cases.segmentation[0, z]), 0) == label)
        return pixels[np.random.randint(len(pixels))] if len(pixels) else None
