"""Pictures of a few validation slices, the same ones each time: input, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from nnunetv2.training.dataloading.data_loader import crop_and_pad_nd
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from numpy.typing import NDArray
from torch import Tensor

from nnunet_fm.io.atomic_write import replacing
from nnunet_fm.reporting.overlay import COLOURS

FOLDER = "samples"
SLICES = 4
LARGEST_EDGE = 256
"""Longer slices are thinned out to at most so many pixels."""


class SamplePictures:
    """Patches around the foreground of the first validation cases, whose middle slices are drawn.

    Args:
        trainer: an initialised trainer.
        cases: its validation cases; the pictures are spread over them.
    """

    def __init__(self, trainer: nnUNetTrainer, cases: Sequence[str]) -> None:
        patches = list(_patches(trainer, sorted(cases)))
        self.images = torch.stack([image for image, _ in patches]) if patches else None
        """``(slices, C, [Z,] Y, X)``"""
        self.truths = [truth for _, truth in patches]
        """Label maps ``(Y, X)`` of the middle slices."""

    def draw(self, predict: Callable[[Tensor], NDArray[Any]], folder: Path, stem: str) -> list[str]:
        """Write one PNG for each slice; returns their paths relative to the folder.

        Args:
            predict: patches ``(B, C, [Z,] Y, X)`` to label maps ``(B, [Z,] Y, X)``.
            folder: the fold's.
            stem: beginning of the file names.
        """
        if self.images is None:
            return []
        predictions = predict(self.images)
        names = []
        (folder / FOLDER).mkdir(exist_ok=True)
        for number, (image, truth, prediction) in enumerate(zip(self.images, self.truths, predictions, strict=True), 1):
            names.append(f"{FOLDER}/{stem}_{number}.png")
            grey = _middle(image[0].numpy())
            with replacing(folder / names[-1]) as partial:
                imsave(partial, _picture(grey, truth, _middle(np.asarray(prediction))), format="png")
        return names


def remove_pictures(folder: Path, names: Sequence[str] | None = None) -> None:
    """Remove pictures of a fold's folder: the named ones, or all that a former training left."""
    files = [folder / name for name in names] if names is not None else (folder / FOLDER).glob("epoch_*.png")
    for file in files:
        file.unlink(missing_ok=True)


def _middle(volume: NDArray[Any]) -> NDArray[Any]:
    """The middle axial slice; a slice as it is."""
    return volume[volume.shape[0] // 2] if volume.ndim == 3 else volume


def _patches(trainer: nnUNetTrainer, cases: list[str]) -> Iterator[tuple[Tensor, NDArray[Any]]]:
    """Patches ``(C, [Z,] Y, X)`` and the label maps of their middle slices."""
    patch = list(trainer.configuration_manager.patch_size)
    flat = len(patch) == 2
    size = np.array([1, *patch] if flat else patch)
    chosen = [cases[index] for index in np.linspace(0, len(cases) - 1, SLICES).round().astype(int)] if cases else []
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder,
        list(dict.fromkeys(chosen)),
        folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
    )
    for case in dict.fromkeys(chosen):
        data, segmentation, previous, properties = dataset.load_case(case)
        shape = np.array(data.shape[1:])
        for share in (np.arange(chosen.count(case)) + 1) / (chosen.count(case) + 1):
            low = _centre(properties.get("class_locations") or {}, shape, share) - size // 2
            # Inside the slice where the patch is smaller, around it where it is larger.
            low[1:] = np.where(shape > size, np.clip(low, 0, np.maximum(shape - size, 0)), (shape - size) // 2)[1:]
            box = [[int(start), int(start + edge)] for start, edge in zip(low, size, strict=True)]
            image, truth = (crop_and_pad_nd(array, box, 0) for array in (data, segmentation))
            if previous is not None:
                stage = crop_and_pad_nd(previous, box, 0)
                labels = trainer.label_manager.foreground_labels
                image = np.vstack((image, convert_labelmap_to_one_hot(stage[0], labels, output_dtype=image.dtype)))
            patch_image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
            yield (patch_image[:, 0] if flat else patch_image), _middle(truth[0])


def _centre(locations: dict[Any, Any], shape: NDArray[Any], share: float) -> NDArray[Any]:
    """A voxel in the middle of the foreground of a slice, at a share of the way through the foreground's slices.

    Args:
        locations: nnU-Net's voxels ``(c, z, y, x)`` of each class; a tuple with -1 stands for everything annotated.
        shape: of the volume.
        share: 0 to 1.
    """
    of_classes = [np.asarray(v) for k, v in locations.items() if len(v) and not (isinstance(k, tuple) and -1 in k)]
    if not of_classes:
        return np.array([int(shape[0] * share), *(shape[1:] // 2)])
    voxels = np.concatenate(of_classes)[:, 1:]
    slices = np.unique(voxels[:, 0])
    z = slices[int(share * len(slices))]
    return np.array([z, *np.median(voxels[voxels[:, 0] == z][:, 1:], axis=0).astype(int)])


def _picture(grey: NDArray[Any], *label_maps: NDArray[Any]) -> NDArray[Any]:
    """The slice, and beside it the slice under each label map, as ``(Y, X, 3)``."""
    step = -(-max(grey.shape) // LARGEST_EDGE)
    grey = grey[::step, ::step]
    low, high = np.percentile(grey, (1, 99))
    plain = np.repeat(np.clip((grey - low) / max(high - low, 1e-6), 0, 1)[..., None], 3, axis=2)
    panels = [plain]
    for labels in (label_map[::step, ::step] for label_map in label_maps):
        panel = plain.copy()
        for label in np.unique(labels[labels > 0]):
            colour = np.array(to_rgb(COLOURS[(int(label) - 1) % len(COLOURS)]))
            panel[labels == label] = 0.5 * panel[labels == label] + 0.5 * colour
        panels += [np.ones((len(grey), 2, 3)), panel]
    return np.concatenate(panels, axis=1)
