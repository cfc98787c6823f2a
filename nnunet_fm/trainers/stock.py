"""fm_trainer_stock: stock nnU-Net as a control, with the budget, seed and training cases of its plans."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_fm.data.augmentation import without_timing
from nnunet_fm.planfile.schema import StockKey
from nnunet_fm.trainers.budget import Budget
from nnunet_fm.trainers.loop import BudgetTrainer


class fm_trainer_stock(BudgetTrainer):
    """Stock nnU-Net as a control: its own network, loss, augmentation and schedule on stock plans.

    Only budget, seed and training cases come from the plan's entry ``nnunet_fm_stock`` (`StockKey`). The learning rate
    follows nnU-Net's polynomial over the budget, iteration by iteration; in steps of epochs, a short training would
    keep its first learning rate.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        key = StockKey.read(plans)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.set_budget(
            Budget(
                iterations=key.iterations,
                iterations_per_epoch=key.iterations_per_epoch,
                validation_iterations=key.validation_iterations,
                seed=key.seed,
                train_cases=key.train_cases,
            )
        )

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's transforms, whose blur chooses its method without timing, so that a seed fixes a run."""
        return without_timing(nnUNetTrainer.get_training_transforms(*args, **kwargs))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take nnU-Net's optimiser step with the learning rate for the present progress."""
        self.lr_scheduler.step(self.progress * self.num_epochs)
        output: dict[str, Any] = super().train_step(batch)
        self.check_loss(float(output["loss"]), batch)
        self.iteration += 1
        return output
