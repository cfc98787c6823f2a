"""Base of the trainers that adapt a trained model: its weights, the trained part, and hidden labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_raw, nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_fm.adaptation.hidden_labels import HiddenLabels, keep_hidden, outside_marker
from nnunet_fm.adaptation.pseudo_labels import read_target
from nnunet_fm.adaptation.trained_part import set_trainable
from nnunet_fm.adaptation.views import in_two_views
from nnunet_fm.data.folds import first_cases
from nnunet_fm.data.patients import seen_cases
from nnunet_fm.io.messages import listed
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.planfile.schema import Adaptation, PlanError
from nnunet_fm.planfile.training_config import resolve
from nnunet_fm.published_quirks import published_labelled, trains_norms_only
from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.trainers.foundation import fm_trainer
from nnunet_fm.weights.cache import compute_sha256
from nnunet_fm.weights.files import read_trained


class AdaptingTrainer(fm_trainer):
    """Adapt a trained model (the source) to the dataset of a plan of ``nnunet-fm adapt`` (the target).

    Training starts from the source's checkpoint. Labels of training cases that must not be used are hidden from the
    choice of patches, the augmentation and the loss. Validation cases choose ``checkpoint_best`` as in any training.
    """

    two_views = False
    """Whether batches hold a weak and a strong view of each image."""

    @property
    def adaptation(self) -> Adaptation:
        """Entry of the plan; `resolve` refuses plans without one."""
        assert self.config.adaptation is not None
        return self.config.adaptation

    @property
    def marker(self) -> int:
        """Label of pixels without a label: the first that the dataset does not use."""
        return 1 + max([*self.label_manager.all_labels, self.label_manager.ignore_label or 0])

    @property
    def regions(self) -> int:
        """Number of regions, 0 where labels exclude one another."""
        return len(self.label_manager.foreground_regions) if self.label_manager.has_regions else 0

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the source's network with random weights, and train only the part that the plan names."""
        network = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        adaptation = resolve(plans_manager.plans, cls.spec).adaptation
        assert adaptation is not None
        norms_only = trains_norms_only(adaptation.method, adaptation.faithful)
        set_trainable(cast(FoundationNetwork, network), adaptation.train, norms_only=norms_only)
        return network

    def initialize(self) -> None:
        """Build network, optimiser and loss; load the source's weights unless a checkpoint will follow."""
        source = None if self._restoring else self._source_checkpoint()
        super().initialize()
        self.source_cases = self._source_cases()
        if source is not None:
            self.bare_network.load_state_dict(read_trained(source)["network_weights"])
            self.print_to_log_file(f"Weights of {source}, trained on {self.adaptation.source}")

    def _source_cases(self) -> dict[str, list[str]]:
        """Dataset -> training cases of the source model.

        Raises:
            PlanError: naming validation cases that are among them.
        """
        record = TrainingRecord.read(self._source_fold())
        seen = {} if record is None else record.seen
        if self.fold == "all" or not nnUNet_raw.is_set():
            return seen
        raw, (_, validation) = Path(nnUNet_raw, self.plans_manager.dataset_name), self.do_split()
        for dataset, cases in seen.items():
            if shared := seen_cases(validation, raw, cases, raw.parent / dataset):
                raise PlanError(
                    f"the model that '{self.plans_manager.plans_name}' adapt was trained on {listed(shared)} of "
                    f"{dataset}, which fold {self.fold} validates on: take another fold, or another split",
                    code="cases-seen",
                )
        return seen

    def _source_fold(self) -> Path:
        """Folder of the source's fold, also if ``nnUNet_results`` has moved."""
        adaptation = self.adaptation
        folder = Path(adaptation.model_folder)
        if not folder.is_dir() and nnUNet_results.is_set():
            folder = Path(nnUNet_results, adaptation.source, folder.name)
        return folder / f"fold_{adaptation.fold}"

    def _source_checkpoint(self) -> Path:
        """Find the source's checkpoint, which must not have changed since the adaptation was planned."""
        adaptation = self.adaptation
        file = self._source_fold() / adaptation.checkpoint
        again = (
            f"run `nnunet-fm adapt --source MODEL_FOLDER --force` with the options of '{self.plans_manager.plans_name}'"
        )
        if not file.is_file():
            raise PlanError(
                f"the model to adapt is not there: neither {adaptation.model_folder} nor nnUNet_results has "
                f"fold_{adaptation.fold}/{adaptation.checkpoint}. Put the model back, or {again}",
                code="source-missing",
            )
        if compute_sha256(file) != adaptation.sha256:
            raise PlanError(f"{file} has changed since the adaptation was planned: {again}", code="source-changed")
        return file

    def _build_loss(self) -> nn.Module:
        """Build the recipe's loss for validation, and the adaptation's loss over all outputs for training."""
        self.adaptation_loss = self._over_outputs(self.level_loss(), nnUNetTrainer._build_loss(self))
        return super()._build_loss()

    def read_target(self, target: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Labels and unlabelled pixels of a batch's target (see `nnunet_fm.adaptation.pseudo_labels.read_target`)."""
        finest = target[0] if isinstance(target, list) else target
        return read_target(finest, self.marker, regions=self.regions, ignore_label=self.label_manager.ignore_label)

    @abstractmethod
    def level_loss(self) -> nn.Module:
        """Loss of the adaptation for one output of the network."""

    # Labels that the training sees

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        labelled = self.labelled_cases(training.identifiers)
        self.print_to_log_file(
            f"Labels are used of {len(labelled)} of {len(training.identifiers)} training cases"
            f"{': ' if labelled else ''}{', '.join(labelled)}"
        )
        if self.fold == "all":
            self.print_to_log_file(
                "WARNING: fold 'all' validates on its training cases, so that their labels choose checkpoint_best; "
                "checkpoint_final has not seen them"
            )
        masked = any(self.configuration_manager.use_mask_for_norm)
        return HiddenLabels(training, labelled, self.marker, keep_outside=masked), validation

    def labelled_cases(self, training: Sequence[str]) -> list[str]:
        """Training cases whose labels are used: those named in the plan, or the first ones of a seeded order.

        Raises:
            PlanError: if the plan names a case that is no training case of this fold.
        """
        adaptation = self.adaptation
        foreign = sorted(set(adaptation.labelled_cases) - set(training))
        if foreign:
            raise PlanError(
                f"'{self.plans_manager.plans_name}' use the labels of {', '.join(foreign)}, no training cases of fold "
                f"{self.fold}: take another fold, or name cases among {', '.join(sorted(training))}",
                code="case-unknown",
            )
        if adaptation.labelled_cases:
            return sorted(adaptation.labelled_cases)
        count = min(adaptation.labelled, len(training))
        if adaptation.faithful:
            return published_labelled(training, count)
        return first_cases(training, count, self.recipe.seed)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        if kwargs.get("regions") is not None:
            kwargs["regions"] = [*kwargs["regions"], self.marker, outside_marker(self.marker)]
        pipeline = keep_hidden(super().get_training_transforms(*args, **kwargs), self.marker)
        return in_two_views(pipeline, self.num_input_channels) if self.two_views else pipeline

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean loss of the batches that were not left out."""
        used = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(used or train_outputs[:1])
