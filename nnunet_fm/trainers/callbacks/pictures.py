"""Pictures of a few validation slices, the same in each epoch: input, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
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
from torch import Tensor, autocast

from nnunet_fm.io.atomic_write import replacing
from nnunet_fm.reporting.overlay import COLOURS
from nnunet_fm.trainers.callbacks import Callback, EpochResult
from nnunet_fm.trainers.callbacks.volume_dice import label_map

FOLDER = "samples"
SLICES = 4
LARGEST_SIZE = 256
"""Larger slices are subsampled to at most this many pixels per axis."""


class Pictures(Callback):
    """Draw the middle slices of patches around the foreground, spread over the validation cases.

    Of several processes, only the first one draws.
    """

    def __init__(self, trainer: nnUNetTrainer) -> None:
        super().__init__(trainer)
        self.images: Tensor | None = None
        """Patches ``(slices, C, [Z,] Y, X)``; None where nothing is drawn."""
        self.truths: list[NDArray[Any]] = []
        """Label maps ``(Y, X)`` of the middle slices."""

    def train_start(self) -> None:
        _, validation = self.trainer.do_split()
        if self.trainer.local_rank != 0:
            return
        if self.trainer.current_epoch == 0:
            remove_pictures(Path(self.trainer.output_folder))
        patches = list(_patches(self.trainer, sorted(validation)))
        self.images = torch.stack([image for image, _ in patches]) if patches else None
        self.truths = [truth for _, truth in patches]

    def epoch_end(self, result: EpochResult) -> None:
        """Write one PNG for each slice, and add their paths relative to the fold's folder."""
        if self.images is None:
            return
        folder = Path(self.trainer.output_folder)
        (folder / FOLDER).mkdir(exist_ok=True)
        drawn = zip(self.images, self.truths, self._predict(self.images), strict=True)
        for number, (image, truth, prediction) in enumerate(drawn, 1):
            name = f"{FOLDER}/epoch_{result.epoch:04d}_{number}.png"
            grey = _middle(image[0].numpy())
            with replacing(folder / name) as partial:
                imsave(partial, _picture(grey, truth, _middle(prediction)), format="png")
            result.images.append(name)

    def _predict(self, images: Tensor) -> NDArray[Any]:
        """Label maps ``(B, [Z,] Y, X)`` of patches ``(B, C, [Z,] Y, X)``, in batches of the training's size."""
        trainer = self.trainer
        maps = []
        with torch.no_grad(), autocast("cuda") if trainer.device.type == "cuda" else nullcontext():
            for batch in images.split(trainer.batch_size):
                output = trainer.bare_network(batch.to(trainer.device))
                logits = output if isinstance(output, Tensor) else output[0]
                maps += [np.asarray(label_map(one, trainer).cpu()) for one in logits]
        return np.stack(maps)


def remove_pictures(folder: Path, names: Sequence[str] | None = None) -> None:
    """Remove pictures of a fold's folder: the named ones, or all that a former training left."""
    files = [folder / name for name in names] if names is not None else (folder / FOLDER).glob("epoch_*.png")
    for file in files:
        file.unlink(missing_ok=True)


def _middle(volume: NDArray[Any]) -> NDArray[Any]:
    """The middle slice of a volume; a slice unchanged."""
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
            # A patch smaller than the slice lies inside it, a larger one is centred on it.
            low[1:] = np.where(shape > size, np.clip(low, 0, np.maximum(shape - size, 0)), (shape - size) // 2)[1:]
            box = [[int(start), int(start + length)] for start, length in zip(low, size, strict=True)]
            image, truth = (crop_and_pad_nd(array, box, 0) for array in (data, segmentation))
            if previous is not None:
                stage = crop_and_pad_nd(previous, box, 0)
                labels = trainer.label_manager.foreground_labels
                image = np.vstack((image, convert_labelmap_to_one_hot(stage[0], labels, output_dtype=image.dtype)))
            patch_image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
            yield (patch_image[:, 0] if flat else patch_image), _middle(truth[0])


def _centre(locations: dict[Any, Any], shape: NDArray[Any], share: float) -> NDArray[Any]:
    """Centre ``(z, y, x)`` of the foreground in one of the slices that show foreground.

    Args:
        locations: nnU-Net's voxels ``(c, z, y, x)`` of each class; a tuple with -1 stands for everything annotated.
        shape: of the volume, ``(Z, Y, X)``.
        share: position of the slice among those with foreground, from 0 (first) to 1 (last).
    """
    of_classes = [np.asarray(v) for k, v in locations.items() if len(v) and not (isinstance(k, tuple) and -1 in k)]
    if not of_classes:
        return np.array([int(shape[0] * share), *(shape[1:] // 2)])
    voxels = np.concatenate(of_classes)[:, 1:]
    slices = np.unique(voxels[:, 0])
    z = slices[int(share * len(slices))]
    return np.array([z, *np.median(voxels[voxels[:, 0] == z][:, 1:], axis=0).astype(int)])


def _picture(grey: NDArray[Any], *label_maps: NDArray[Any]) -> NDArray[Any]:
    """The slice, and beside it the slice with each label map drawn over it, as ``(Y, X, 3)``."""
    step = -(-max(grey.shape) // LARGEST_SIZE)
    grey = grey[::step, ::step]
    low, high = np.percentile(grey, (1, 99))
    plain = np.repeat(np.clip((grey - low) / max(high - low, 1e-6), 0, 1)[..., None], 3, axis=2)
    panels = [plain]
    for labels in (labels[::step, ::step] for labels in label_maps):
        panel = plain.copy()
        for label in np.unique(labels[labels > 0]):
            colour = np.array(to_rgb(COLOURS[(int(label) - 1) % len(COLOURS)]))
            panel[labels == label] = 0.5 * panel[labels == label] + 0.5 * colour
        panels += [np.ones((len(grey), 2, 3)), panel]
    return np.concatenate(panels, axis=1)
