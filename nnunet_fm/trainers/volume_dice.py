"""True Dice of whole validation volumes during training, by the sliding window that prediction uses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_fm.networks.base import FoundationNetwork

Classes = Sequence[int | Sequence[int]]
"""Foreground labels, or the labels of each region."""


def volume_dice(prediction: Tensor, reference: Tensor, classes: Classes, ignore_label: int | None = None) -> float:
    """Hard Dice of one volume, ``(2 |P ∩ R| + 1) / (|P| + |R| + 1)``, averaged over classes.

    A class that is empty in both has a Dice of 1.

    Args:
        prediction: label map of any shape.
        reference: label map of the same shape.
        classes: what is scored.
        ignore_label: voxels of the reference with this label do not count.
    """
    scores = []
    counted = None if ignore_label is None else reference != ignore_label
    for labels in classes:
        values = torch.as_tensor(np.atleast_1d(labels), device=prediction.device)
        here, there = torch.isin(prediction, values), torch.isin(reference, values)
        if counted is not None:
            here, there = here & counted, there & counted
        sizes = here.count_nonzero() + there.count_nonzero()
        scores.append((2 * (here & there).count_nonzero() + 1) / (sizes + 1))
    return float(torch.stack(scores).mean())


class VolumeDice:
    """Measures the mean Dice of a fold's validation volumes in preprocessed space.

    Args:
        trainer: an initialised trainer; its plans, fold, data, labels, device and mirroring axes are followed.
        network: the trainer's network without wrappers: in the buffers that DDP keeps equal, processes with unlike
            numbers of volumes would wait for one another.
        overlap: of the sliding windows, as a share of the patch.
    """

    def __init__(self, trainer: nnUNetTrainer, network: FoundationNetwork, overlap: float) -> None:
        self.network, self.labels = network, trainer.label_manager
        with redirect_stdout(io.StringIO()):  # it prints that only CUDA can do everything on the device
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
        _, keys = trainer.do_split()
        self.is_ddp = trainer.is_ddp
        if self.is_ddp:
            keys = keys[trainer.local_rank :: dist.get_world_size()]
        self.cases = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)

    def measure(self) -> float:
        """Mean over classes and then over volumes, the same in every process; leaves the network as it was."""
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
        return float(np.mean(scores))

    def _score(self, case: str) -> float:
        data, segmentation, _, _ = self.cases.load_case(case)
        logits = self.predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(data[:])))
        # nnU-Net's own conversion of exclusive classes is NumPy's, on the CPU.
        regions = self.labels.has_regions
        prediction = self.labels.convert_logits_to_segmentation(logits) if regions else logits.argmax(0)
        reference = torch.from_numpy(np.array(segmentation[0])).to(prediction.device)
        classes = self.labels.foreground_regions if regions else self.labels.foreground_labels
        return volume_dice(prediction, reference, classes, self.labels.ignore_label)
