"""Checks before a training builds anything: folder, memory, batch and preprocessed data."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.cpu.limits import shared_memory_fault
from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.planfile.schema import PlanError
from nnunet_fm.preprocessing.pairs import check_images
from nnunet_fm.preprocessing.shared_cache import label_settings, read_stamp
from nnunet_fm.trainers.callbacks.fold_lock import check_free


def check_start(trainer: nnUNetTrainer, *, raw_images: bool) -> None:
    """Refuse a training that cannot work, before its network is built.

    Args:
        trainer: the training, not yet initialised.
        raw_images: whether to compare raw label maps with raw images, too.

    Raises:
        FolderBusyError: if another process trains in the fold's folder.
        PlanError: for too little shared memory, a batch that several processes cannot share, or preprocessed data that
            are missing or have other labels.
    """
    if trainer.local_rank == 0:
        check_free(Path(trainer.output_folder))
    if fault := shared_memory_fault():  # which nnU-Net's validation needs in any case
        raise PlanError(fault, code="shared-memory")
    check_shares(trainer)
    _check_preprocessed(trainer)
    if raw_images:
        _check_raw_images(trainer)


def preprocess_command(trainer: nnUNetTrainer) -> str:
    """Command that preprocesses the dataset of a training again."""
    plans = trainer.plans_manager
    return (
        f"nnUNetv2_preprocess -d {dataset_number(plans.dataset_name)} -plans_name {plans.plans_name} "
        f"-c {trainer.configuration_name}"
    )


def check_shares(trainer: nnUNetTrainer) -> None:
    """Refuse a batch that processes cannot share; a Dice over the batch needs the same number of images in each."""
    batch, batch_dice = trainer.configuration_manager.batch_size, trainer.configuration_manager.batch_dice
    processes = dist.get_world_size() if trainer.is_ddp else 1
    if batch < processes or (batch_dice and batch % processes):
        raise PlanError(
            f"{processes} processes cannot share the batch of {batch} that plans '{trainer.plans_manager.plans_name}' "
            f"have: train with another number of them (-num_gpus)",
            code="batch-share",
        )


def _check_preprocessed(trainer: nnUNetTrainer) -> None:
    folder = Path(trainer.preprocessed_dataset_folder)
    if not folder.is_dir():
        raise PlanError(
            f"plans '{trainer.plans_manager.plans_name}' are not preprocessed, {folder} is "
            f"not there: run `{preprocess_command(trainer)}`",
            code="preprocessed-missing",
        )
    written = read_stamp(folder).get("labels")
    if written is not None and written != label_settings(trainer.dataset_json):
        raise PlanError(
            f"the labels of dataset.json have changed since {folder} was preprocessed: "
            f"run `{preprocess_command(trainer)}`",
            code="labels-changed",
        )


def _check_raw_images(trainer: nnUNetTrainer) -> None:
    """Compare raw label maps with raw images where both exist; stock preprocessing only checks images."""
    raw = Path(nnUNet_raw, trainer.plans_manager.dataset_name) if nnUNet_raw.is_set() else None
    if raw is not None and "dataset" not in trainer.dataset_json:
        check_images(raw, trainer.dataset_json["file_ending"])
