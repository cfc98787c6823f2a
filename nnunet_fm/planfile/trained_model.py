"""A trained model from which another training starts: folder, checkpoint, plans and training configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_fm.io.dataset_json import canonical
from nnunet_fm.io.dataset_names import dataset_number
from nnunet_fm.io.untrusted import read_object
from nnunet_fm.models.build import Architecture
from nnunet_fm.models.names import UnknownNameError
from nnunet_fm.models.registry import grammar
from nnunet_fm.planfile.schema import PlanError, PlanKey
from nnunet_fm.planfile.training_config import TrainingConfig, network_architecture, resolve
from nnunet_fm.planfile.untrusted import read_plans
from nnunet_fm.records.training import TrainingRecord
from nnunet_fm.weights.cache import compute_sha256
from nnunet_fm.weights.files import WeightsFileError, read_trained

BEST, FINAL = "checkpoint_best.pth", "checkpoint_final.pth"


@dataclass(frozen=True)
class Source:
    """A trained model.

    Attributes:
        folder: nnU-Net's folder ``<trainer>__<plans>__<configuration>``.
        fold: fold of the checkpoint.
        checkpoint: path of the checkpoint.
        sha256: hash of the checkpoint.
        plans: content of ``plans.json`` in the folder.
        dataset_json: content of ``dataset.json`` in the folder.
        configuration: nnU-Net's configuration that was trained.
        config: configuration of the training.
        key: extra key of the plans; None for stock plans.
    """

    folder: Path
    fold: str
    checkpoint: Path
    sha256: str
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    configuration: str
    config: TrainingConfig
    key: PlanKey | None

    @property
    def dataset(self) -> str:
        """Name of the dataset on which the model was trained."""
        return str(self.plans["dataset_name"])

    @property
    def seen(self) -> dict[str, list[str]]:
        """Name of a dataset -> cases on which the model was trained, from its record; empty without a record."""
        record = TrainingRecord.read(self.folder / f"fold_{self.fold}")
        return {} if record is None else record.seen

    @property
    def number(self) -> str:
        """Number of this dataset, three digits."""
        return f"{dataset_number(self.dataset):03d}"

    @property
    def axes(self) -> list[int]:
        """Order of the image axes, indices into (z, y, x)."""
        return [int(axis) for axis in self.plans["transpose_forward"]]

    @property
    def geometry(self) -> ConfigurationManager:
        """nnU-Net's reader of the configuration: spacing, patch and batch size."""
        return PlansManager(json.loads(json.dumps(self.plans))).get_configuration(self.configuration)

    @property
    def network(self) -> Architecture:
        """The ``architecture`` entry."""
        return network_architecture(self.config, self.geometry)

    @property
    def entry(self) -> dict[str, Any]:
        """The configuration's entry in the plans, with inherited entries and the network's architecture."""
        entry: dict[str, Any] = {k: v for k, v in self.geometry.configuration.items() if k != "inherits_from"}
        return {**entry, "architecture": self.network}


def read_source(folder: Path, fold: str = "0", checkpoint: str | None = None) -> Source:
    """Read a model folder, without the network's weights.

    Args:
        folder: nnU-Net's model folder.
        fold: number, or ``all``.
        checkpoint: file name; None takes the best, or the final one if there is no best.

    Raises:
        PlanError: naming what is missing, or why no training can start from the model.
        ForeignFileError: for a file of the folder that is no JSON object.
    """
    folder = folder.expanduser().resolve()
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise PlanError(
                f"{folder} is no folder of a trained model: it has no {name}. It is the folder "
                f"<trainer>__<plans>__<configuration> in nnUNet_results/<dataset>",
                code="model-incomplete",
            )
    plans, dataset_json = read_plans(folder / "plans.json"), canonical(read_object(folder / "dataset.json"))
    file = _checkpoint(folder, fold, checkpoint)
    try:
        content = read_trained(file)
        trainer, configuration = content["trainer_name"], content["init_args"]["configuration"]
    except (WeightsFileError, LookupError, TypeError) as error:
        raise PlanError(
            f"{file} is not a readable checkpoint of nnU-Net: {error}", code="checkpoint-unreadable"
        ) from None
    try:
        spec = grammar().trainer(trainer)
    except UnknownNameError:
        spec = None
    if spec is None or spec.method == "stock":
        raise PlanError(
            f"{folder} was trained by {trainer}: only models of fm_trainer, or of a trainer pinned to a model such as "
            f"fm_trainer_stunet_b, can be adapted",
            code="model-trainer",
        )
    config = resolve(plans, spec)
    return Source(
        folder, fold, file, compute_sha256(file), plans, dataset_json, configuration, config, PlanKey.read(plans)
    )


def _checkpoint(folder: Path, fold: str, name: str | None) -> Path:
    of_fold = folder / f"fold_{fold}"
    if not of_fold.is_dir():
        there = ", ".join(sorted(f.name.removeprefix("fold_") for f in folder.glob("fold_*"))) or "none"
        raise PlanError(f"{folder} has no fold {fold}; folds there: {there}", code="fold-missing")
    wanted = [BEST, FINAL] if name is None else [name]
    for file in (of_fold / w for w in wanted):
        if file.is_file():
            if name is None and file.name != BEST:
                print(f"NOTE: {of_fold} has no {BEST}, the model is adapted from {file.name}")
            return file
    there = ", ".join(sorted(f.name for f in of_fold.glob("checkpoint_*.pth"))) or "none"
    raise PlanError(f"{of_fold} has no {' or '.join(wanted)}; checkpoints there: {there}", code="checkpoint-missing")
