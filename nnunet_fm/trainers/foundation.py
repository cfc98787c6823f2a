"""fm_trainer: network, weights, optimiser, loss and augmentation that the plan or the trainer's name decides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, autocast, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_fm.cpu.malloc import keep_freed_memory
from nnunet_fm.data.augmentation import accelerated, initial_patch_size, with_preset
from nnunet_fm.data.rare_class import RareClassDataLoader
from nnunet_fm.data.samples import count_samples
from nnunet_fm.data.sampling import FMDataLoader
from nnunet_fm.insides import replaced
from nnunet_fm.losses.dice_ce import DiceCE, OutputSupervision, fused
from nnunet_fm.models.build import build_network
from nnunet_fm.models.names import Spec, trainer_name
from nnunet_fm.models.parts import Part, load_part
from nnunet_fm.networks.base import FoundationNetwork
from nnunet_fm.planfile.eval_datasets import preprocessed_cases
from nnunet_fm.planfile.schema import unseen_mirroring
from nnunet_fm.planfile.training_config import check_configuration, check_sides, network_architecture, resolve
from nnunet_fm.preprocessing.value_ranges import symmetric_channels
from nnunet_fm.trainers.budget import Budget
from nnunet_fm.trainers.callbacks.feature_cache import FeatureCacheReport
from nnunet_fm.trainers.callbacks.volume_dice import VolumeValidation
from nnunet_fm.trainers.checkpoints import BestCheckpoints
from nnunet_fm.trainers.loading import shape_of
from nnunet_fm.trainers.loop import BudgetTrainer
from nnunet_fm.trainers.optimizer import build_optimizer
from nnunet_fm.trainers.schedule import ProgressSchedule
from nnunet_fm.weights.cache import MissingWeightsError, check_hash, has_hash, locate
from nnunet_fm.weights.files import WeightsFileError, read_trained
from nnunet_fm.weights.load import WeightsMismatchError, load_trained
from nnunet_fm.weights.report import LoadReport
from nnunet_fm.weights.slim import slim_state_dict

if TYPE_CHECKING:
    from nnunet_fm.networks.segmenter2d import FoundationSegmenter2D


class fm_trainer(BudgetTrainer):
    """Train a plan of nnunet-fm: its network, official weights, adapter and recipe.

    A longer trainer name overrides parts of the plan; one with a model's name also trains stock plans. See
    `nnunet_fm.trainers`.
    """

    spec = Spec()

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        # Refuse before nnU-Net creates folders and logs.
        config = resolve(plans, self.spec)
        warnings = [check_configuration(config, plans, configuration), check_sides(config, plans, dataset_json)]
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.config, self.recipe = config, config.recipe
        self.model_name = config.card.name
        self.initial_lr = self.recipe.learning_rate
        self.weight_decay = self.recipe.weight_decay
        self.oversample_foreground_percent = self.recipe.oversample_foreground
        self.enable_deep_supervision = config.deep_supervision
        self.set_budget(
            Budget(
                iterations=config.iterations,
                iterations_per_epoch=self.recipe.iterations_per_epoch,
                validation_iterations=self.recipe.validation_iterations,
                seed=self.recipe.seed,
                train_cases=config.train_cases,
                max_minutes=self.recipe.max_minutes,
                patience=self.recipe.patience,
                save_every=self.recipe.save_every,
            )
        )
        self._starts_from: Path | None = None
        every = self.recipe.volume_dice_every
        self.best_checkpoints = BestCheckpoints(by_volumes=bool(every))
        self.volume_validation = VolumeValidation(
            self, every, self.recipe.overlap, config.eval_datasets, self._find_dataset
        )
        self.callbacks.append(self.volume_validation)
        for warning in filter(None, warnings):
            self.print_to_log_file(f"WARNING: {warning}")

    # Network, weights, optimiser, loss

    def _do_i_compile(self) -> bool:
        """Compile where nnU-Net does; the lookups of the feature cache cannot be compiled."""
        return not self.recipe.feature_cache and bool(super()._do_i_compile())

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network with random weights; prediction calls this too, and knows only the plan and this class."""
        config = resolve(plans_manager.plans, cls.spec)
        if not enable_deep_supervision and (warning := unseen_mirroring(plans_manager.plans)):
            print(f"WARNING: {warning}", file=sys.stderr)
        return build_network(
            network_architecture(config, configuration_manager),
            num_input_channels,
            num_output_channels,
            adapter=config.adapter,
            deep_supervision=enable_deep_supervision and config.deep_supervision,
        )

    @property
    def bare_network(self) -> FoundationNetwork:
        """The network without DDP and compile wrappers."""
        return cast(FoundationNetwork, super().bare_network)

    def initialize(self) -> None:
        """Build network, optimiser and loss; load the official weights unless a checkpoint will follow.

        Official files are looked up before anything is built, so that a missing one costs no time.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        files = [] if self._restoring or self._starts_from is not None else self._official_files()
        with replaced(nnunet_trainer_module, "DDP", _distributed), _batch_norms_for(self.device):
            super().initialize()
        if files:
            self._load_official(files)
        if self.recipe.feature_cache:
            network = cast("FoundationSegmenter2D", self.bare_network)  # as `check_configuration` has seen
            cache = network.keep_maps(int(self.recipe.feature_cache * 1e9))
            self.callbacks.append(FeatureCacheReport(self, cache))

    def _official_files(self) -> list[tuple[Part, Path]]:
        """Find the official file of each part that starts from one, and compare it with the hash in the plan."""
        files: list[tuple[Part, Path]] = []
        missing: dict[str, str] = {}
        instead = f"use the trainer {trainer_name(replace(self.spec, scratch=True))}"
        for part in self.config.parts:
            official = part.checkpoint
            try:
                file = locate(
                    official.name, official.files, page=official.page, pull=bool(official.urls), instead=instead
                )
            except MissingWeightsError as error:
                missing[official.name] = str(error)  # one message per file, which several parts may share
                continue
            planned = self.config.sha256.get(part.name)
            check_hash(file, {"in the plans": planned, "from its publisher": official.required})
            if official.published and not has_hash(file, official.published):
                self.print_to_log_file(
                    f"WARNING: {file} is not the file of its publisher, whose hash is {official.published}"
                )
            files.append((part, file))
        if missing:
            raise MissingWeightsError("\n".join(missing.values()))
        return files

    def _load_official(self, files: Sequence[tuple[Part, Path]]) -> None:
        report = LoadReport()
        for part, file in files:
            report += load_part(self.bare_network, part, file)
        self.print_to_log_file(f"Official weights\n{report}")
        if self.local_rank == 0:
            report.write(Path(self.output_folder))

    def start_from(self, file: Path) -> None:
        """Start from the weights of another training (``-pretrained_weights``) instead of official weights.

        Raises:
            WeightsFileError: for a file that is no checkpoint of nnU-Net, or one of another model, head or adapter.
        """
        content = read_trained(file)
        self._starts_from = file
        if not self.was_initialized:
            self.initialize()
        training = content.get("init_args")
        training = training if isinstance(training, dict) else {}
        theirs, own = _classes(training.get("dataset_json")), _classes(self.dataset_json)
        try:
            report = load_trained(
                self.bare_network,
                content["network_weights"],
                file=file,
                same_classes=None if theirs is None else theirs == own,
            )
        except WeightsMismatchError as error:
            plans = training.get("plans")
            plans = plans.get("plans_name", "unknown") if isinstance(plans, dict) else "unknown"
            trainer = content.get("trainer_name", "a trainer")
            raise WeightsFileError(
                f"-pretrained_weights must be of the model, head and adapter that are trained here, {self.model_name} "
                f"of plans {self.plans_manager.plans_name}; those given are of {trainer} and plans {plans}: {error}",
                code="weights-mismatch",
            ) from None
        (section,) = report.sections
        self.print_to_log_file(
            f"Pretrained weights: {len(section.matched)} tensors of {file} are taken as they are, "
            f"{len(section.adapted)} are adapted, {len(section.missing)} of the network start anew\n{report}"
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ProgressSchedule]:
        """Build the optimiser of the trainable parameters, and its schedule over the training's progress."""
        optimizer = build_optimizer(self.bare_network, self.recipe)
        return optimizer, ProgressSchedule(optimizer, self.recipe)

    def _build_loss(self) -> nn.Module:
        """Build the recipe's loss, over several outputs with deep supervision, wrapped by the network."""
        loss = super()._build_loss()
        level = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        if self.recipe.loss == "ce":
            level.weight_dice = 0
        elif self.recipe.loss == "dice_ce":
            level = DiceCE(regions=self.label_manager.has_regions, ignore_label=self.label_manager.ignore_label)
        return self._over_outputs(fused(level), loss)

    def _over_outputs(self, level: nn.Module, stock: nn.Module) -> nn.Module:
        """Apply a loss of one output to all outputs, with the weights of nnU-Net's own loss ``stock``."""
        loss = level
        if isinstance(stock, DeepSupervisionWrapper):
            upsampled = self.recipe.supervision == "outputs"
            loss = OutputSupervision(level) if upsampled else DeepSupervisionWrapper(level, stock.weight_factors)
        return self.bare_network.wrap_loss(loss, regions=self.label_manager.has_regions)

    def budget_of_fold(self) -> Budget:
        """Budget with the iterations of this fold, where the plan counts passes over its training cases."""
        config, batch = self.config, self.configuration_manager.batch_size
        if config.epochs is None:
            return self.budget
        cases, _ = self.do_split()
        data = self.dataset_class(self.preprocessed_dataset_folder, cases)
        patch = self.configuration_manager.patch_size
        samples = count_samples([shape_of(data, case) for case in cases], patch)
        one_pass = -(-samples // batch)
        iterations = config.epochs * one_pass
        self.print_to_log_file(
            f"{config.epochs} passes over {samples:,} {'slices' if len(patch) == 2 else 'patches'} of {len(cases)} "
            f"training cases in batches of {batch}: {iterations:,} iterations"
        )
        by_user = self.budget.iterations_per_epoch != config.iterations // config.epochs
        return replace(
            self.budget,
            iterations=iterations,
            iterations_per_epoch=self.budget.iterations_per_epoch if by_user else one_pass,
        )

    # Deep supervision, mirroring, augmentation

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return self.bare_network.deep_supervision_scales if self.enable_deep_supervision else None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the extra outputs; they stay off where the recipe does not use them."""
        self.bare_network.deep_supervision = enabled and self.enable_deep_supervision

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[Any, bool, Any, tuple[int, ...] | None]:
        rotation, dummy_2d, initial_patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.recipe.augmentation != "nnunet":
            patch = self.configuration_manager.patch_size
            dummy_2d, initial_patch = False, initial_patch_size(self.recipe.augmentation, patch)
        self.inference_allowed_mirroring_axes = self.recipe.predicted_axes(self.config.card.dim)
        return rotation, dummy_2d, initial_patch, self.recipe.flipped_axes(self.config.card.dim) or None

    def get_training_transforms(
        self,
        patch_size: Sequence[int],
        rotation_for_DA: Any,
        deep_supervision_scales: list[list[float]] | None,
        mirror_axes: Sequence[int] | None,
        *args: Any,
        **kwargs: Any,
    ) -> BasicTransform:
        scales, axes = self._target_scales(deep_supervision_scales), tuple(mirror_axes or ())
        stock = nnUNetTrainer.get_training_transforms(patch_size, rotation_for_DA, scales, axes, *args, **kwargs)
        symmetric = symmetric_channels(
            self.configuration_manager.normalization_schemes,
            self.plans_manager.foreground_intensity_properties_per_channel,
        )
        return accelerated(with_preset(self.recipe.augmentation, stock, patch_size, symmetric, axes))

    def get_validation_transforms(
        self, deep_supervision_scales: list[list[float]] | None, *args: Any, **kwargs: Any
    ) -> BasicTransform:
        scales = self._target_scales(deep_supervision_scales)
        return nnUNetTrainer.get_validation_transforms(scales, *args, **kwargs)

    def _target_scales(self, scales: list[list[float]] | None) -> list[list[float]] | None:
        """Scales of the targets: those of the outputs, or full resolution alone if outputs are upsampled."""
        if scales is None or self.recipe.supervision == "targets":
            return scales
        return [[1.0] * len(scales[0])]

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Build nnU-Net's loaders; the recipe decides how training patches are drawn."""
        if self.recipe.sampling == "nnunet":
            return super().get_dataloaders()
        classes = iter((self._training_loader, nnUNetDataLoader))  # nnU-Net builds the training loader first
        with replaced(nnunet_trainer_module, "nnUNetDataLoader", lambda *args, **kw: next(classes)(*args, **kw)):
            return super().get_dataloaders()

    def _training_loader(self, *data_and_patches: Any, transforms: BasicTransform, **_: Any) -> nnUNetDataLoader:
        """Build our loader from nnU-Net's arguments; those for nnU-Net's way of drawing patches are left out."""
        if self.recipe.sampling == "rare_class":
            return RareClassDataLoader(*data_and_patches, transforms=transforms, faithful=self.recipe.faithful)
        assert self.recipe.sampling != "nnunet"
        return FMDataLoader(
            *data_and_patches,
            transforms=transforms,
            sampling=self.recipe.sampling,
            positive=self.recipe.oversample_foreground,
        )

    # The training

    def _find_dataset(self, name: str) -> tuple[Path, list[str]]:
        """Folder and validation cases of one of the plan's ``eval_datasets``; checks that labels agree."""
        plans, identifier = self.plans_manager.plans, self.configuration_manager.data_identifier
        return preprocessed_cases(plans, self.dataset_json, self.configuration_name, identifier, name, self.fold)

    def on_train_epoch_start(self) -> None:
        self.network.train()
        self.lr_scheduler.step(self.progress)
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)  # the head's, with layer decay
        self.print_to_log_file("")
        self.print_to_log_file(f"Epoch {self.current_epoch}")
        self.print_to_log_file(f"Current learning rate: {learning_rate:.3g}")
        self.logger.log("lrs", learning_rate, self.current_epoch)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one optimiser step, with the recipe's learning rate for this step and its gradient clipping."""
        self.lr_scheduler.step(self.progress)
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        target = (
            [t.to(self.device, non_blocking=True) for t in target]
            if isinstance(target, list)
            else target.to(self.device, non_blocking=True)
        )
        self.optimizer.zero_grad(set_to_none=True)
        # On a CPU the networks choose their precision themselves (see networks/base.py).
        with autocast("cuda") if self.device.type == "cuda" else dummy_context():
            loss = self.batch_loss(data, target)
        if loss is None:
            self.iteration += 1
            return {"loss": np.array(np.nan)}
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            self._clip_gradient()
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            self.check_loss(float(loss.detach()), batch)  # last, because reading the loss waits for the GPU
        else:
            self.check_loss(float(loss.detach()), batch)  # before a NaN reaches the weights
            loss.backward()
            self._clip_gradient()
            self.optimizer.step()
        self.iteration += 1
        return {"loss": loss.detach().cpu().numpy()}

    def batch_loss(self, data: Tensor, target: Tensor | list[Tensor]) -> Tensor | None:
        """Training loss of a batch on the device; None leaves the batch out, and its loss is logged as NaN."""
        return cast(Tensor, self.loss(self.network(data), target))

    def _clip_gradient(self) -> None:
        if self.recipe.gradient_clip is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.recipe.gradient_clip)

    # Checkpoints

    def network_state(self) -> dict[str, Tensor]:
        """State dict without frozen weights that an official file holds (see `nnunet_fm.weights.slim`)."""
        return slim_state_dict(self.bare_network)

    def extra_state(self) -> dict[str, Any]:
        return self.best_checkpoints.state()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.best_checkpoints.load_state(state)
        # nnU-Net has just read the axes from the checkpoint. Older versions stored axes that training had not flipped.
        self.inference_allowed_mirroring_axes = self.recipe.predicted_axes(self.config.card.dim)


def _classes(dataset_json: Any) -> dict[str, str] | None:
    """Name of every class or region -> its numbers, of a dataset.json; None for anything else."""
    labels = dataset_json.get("labels") if isinstance(dataset_json, dict) else None
    if not isinstance(labels, dict):
        return None
    numbers = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in labels.items()}
    return {str(name): " ".join(map(str, value)) for name, value in numbers.items() if name != "ignore"}


def _batch_norms_for(device: torch.device) -> AbstractContextManager[Any]:
    """Leave batch norms as they are on a CPU: SyncBatchNorm needs a GPU."""
    if device.type != "cpu":
        return nullcontext()
    return replaced(nn.SyncBatchNorm, "convert_sync_batchnorm", lambda module: module)


def _distributed(network: FoundationNetwork, **arguments: Any) -> DistributedDataParallel:
    """Wrap in DDP, with ``find_unused_parameters`` if trained parameters of the network get no gradient."""
    if next(network.parameters()).device.type == "cpu":
        arguments.pop("device_ids", None)  # these are indices of GPUs
    return DistributedDataParallel(network, find_unused_parameters=network.find_unused_parameters, **arguments)
