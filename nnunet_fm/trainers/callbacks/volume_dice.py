"""Dice of whole validation volumes during training, by the sliding window that prediction uses."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.records.training import Overlap
from nnunet_fm.trainers.callbacks import Callback, EpochResult

Classes = Sequence[int | Sequence[int]]
"""Foreground labels, or the labels of each region."""


def volume_overlap(prediction: Tensor, reference: Tensor, classes: Classes, ignore_label: int | None = None) -> Overlap:
    """Overlap of one volume, averaged over classes.

    With the intersection I, hard Dice is ``(2 I + 1) / (|P| + |R| + 1)`` and intersection over union
    ``(I + 1) / (|P| + |R| - I + 1)``: a class that is empty in both has 1.

    Args:
        prediction: label map of any shape.
        reference: label map of the same shape.
        classes: foreground labels or regions to score.
        ignore_label: voxels of the reference with this label do not count.
    """
    scores = []
    counted = None if ignore_label is None else reference != ignore_label
    for labels in classes:
        values = torch.as_tensor(np.atleast_1d(labels), device=prediction.device)
        here, there = torch.isin(prediction, values), torch.isin(reference, values)
        if counted is not None:
            here, there = here & counted, there & counted
        both = (here & there).count_nonzero()
        sizes = here.count_nonzero() + there.count_nonzero()
        scores.append(torch.stack([(2 * both + 1) / (sizes + 1), (both + 1) / (sizes - both + 1)]))
    dice, miou = torch.stack(scores).mean(0).tolist()
    return Overlap(dice=dice, miou=miou)


def label_map(logits: Tensor, trainer: nnUNetTrainer) -> Tensor:
    """Label map of logits ``(K, …)``, on their device, where nnU-Net converts exclusive classes on the CPU only."""
    labels = trainer.label_manager
    return labels.convert_logits_to_segmentation(logits) if labels.has_regions else logits.argmax(0)


class VolumeDice:
    """Measure the mean Dice and intersection over union of whole volumes in preprocessed space.

    Args:
        trainer: an initialised trainer; its plans, fold, labels, device and mirroring axes are used.
        network: the trainer's network without wrappers. DDP synchronises buffers in each forward pass, so that
            processes with different numbers of volumes would wait for one another.
        overlap: of the sliding windows, as a share of the patch.
        folder: preprocessed cases; the trainer's own by default.
        keys: cases in the folder; the fold's validation cases by default.
    """

    def __init__(
        self,
        trainer: nnUNetTrainer,
        network: FoundationNetwork,
        overlap: float,
        folder: Path | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        self.trainer, self.network = trainer, network
        with redirect_stdout(io.StringIO()):  # it prints a note about CUDA
            self.predictor = nnUNetPredictor(
                tile_step_size=1 - overlap, use_mirroring=True, device=trainer.device, allow_tqdm=False
            )
        self.predictor.manual_initialization(
            network,
            trainer.plans_manager,
            trainer.configuration_manager,
            None,
            trainer.dataset_json,
            type(trainer).__name__,
            trainer.inference_allowed_mirroring_axes,
        )
        mine = list(trainer.do_split()[1] if keys is None else keys)
        self.is_ddp = trainer.is_ddp
        if self.is_ddp:
            mine = mine[trainer.local_rank :: dist.get_world_size()]
        self.cases = trainer.dataset_class(str(folder or trainer.preprocessed_dataset_folder), mine)

    def measure(self) -> Overlap:
        """Mean over classes and then over volumes, the same in every process; the network's mode is restored."""
        training, supervised = self.network.training, self.network.deep_supervision
        self.network.deep_supervision = False
        self.network.eval()
        try:
            scores = [self._score(case) for case in self.cases.identifiers]
        finally:
            self.network.deep_supervision = supervised
            self.network.train(training)
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, scores)
            scores = [score for part in gathered for score in part]
        dice, miou = np.mean([[score.dice, score.miou] for score in scores], axis=0).tolist()
        return Overlap(dice=dice, miou=miou)

    def _score(self, case: str) -> Overlap:
        data, segmentation, _, _ = self.cases.load_case(case)
        logits = self.predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(data[:])))
        prediction = label_map(logits, self.trainer)
        reference = torch.from_numpy(np.array(segmentation[0])).to(prediction.device)
        labels = self.trainer.label_manager
        classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        return volume_overlap(prediction, reference, classes, labels.ignore_label)


class VolumeValidation(Callback):
    """Measure the Dice of whole validation volumes every few epochs and after the last.

    Args:
        trainer: the training.
        every: epochs between two measurements; with 0 only other datasets are measured, after the last epoch.
        overlap: of the sliding windows, as a share of the patch.
        datasets: names of other datasets to measure in the same epochs.
        find: function that returns folder and cases of a dataset, and raises for one that cannot be measured.
    """

    def __init__(
        self,
        trainer: nnUNetTrainer,
        every: int,
        overlap: float,
        datasets: Sequence[str],
        find: Callable[[str], tuple[Path, list[str]]],
    ) -> None:
        super().__init__(trainer)
        self.every, self.overlap, self.datasets, self.find = every, overlap, datasets, find
        self.own: VolumeDice | None = None
        self.others: dict[str, VolumeDice] = {}

    def begin(self) -> None:
        for name in self.datasets:
            self.find(name)

    def measure(self, result: EpochResult) -> None:
        due = bool(self.every) and (result.epoch + 1) % self.every == 0
        if not due and not (self.trainer.finished and (self.every or self.datasets)):
            return
        if self.own is None:
            network = self.trainer.bare_network
            self.own = VolumeDice(self.trainer, network, self.overlap)
            self.others = {
                name: VolumeDice(self.trainer, network, self.overlap, *self.find(name)) for name in self.datasets
            }
        result.per_volume = self.own.measure()
        result.domains = {name: dice.measure() for name, dice in self.others.items()}
