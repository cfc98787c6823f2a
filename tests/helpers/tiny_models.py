"""Model folders as trainings leave them, with random weights: U-Nets of a few hundred, and models of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_fm.plans.planner import planner_class
from nnunet_fm.trainers import fm_trainer_scratch
from tests.helpers.datasets import nnunet_folders, write_dataset, write_fingerprint

UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
LABELS = {"background": 0, "one": 1, "two": 2}


def write_model(
    folder: Path,
    *,
    configuration: str = "3d_fullres",
    folds: Sequence[int | str] = (0,),
    channels: Sequence[str] = ("MRI",),
    labels: Mapping[str, Any] = LABELS,
    previous_stage: str | None = None,
    reader: str = "SimpleITKIO",
    transpose: Sequence[int] = (1, 0, 2),
    **dataset_json: Any,
) -> Path:
    """Write plans.json, dataset.json and one checkpoint per fold; the weights differ from fold to fold.

    Spacing, transposition and mirroring are such that every step of a prediction has something to do.
    """
    dataset = {
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **dataset_json,
    }
    dimensions = 2 if configuration == "2d" else 3
    entry = {
        "data_identifier": configuration,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8] * dimensions,
        "spacing": [1.5] * dimensions,
        "normalization_schemes": ["ZScoreNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": RESAMPLING for what in ("data", "probabilities")},
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True},
        "architecture": {
            "network_class_name": UNET,
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [[3] * dimensions] * 2,
                "strides": [[1] * dimensions, [2] * dimensions],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    configurations = {configuration: entry}
    if previous_stage is not None:
        configurations[previous_stage] = {**entry, "next_stage": configuration}
        entry["previous_stage"] = previous_stage
    plans = {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [list(transpose).index(axis) for axis in range(3)],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): {"mean": 100.0, "std": 20.0} for i in range(len(channels))
        },
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(plans)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    inputs = len(channels) + (0 if previous_stage is None else len(labels) - 1)
    for number, fold in enumerate(folds):
        torch.manual_seed(7 + number)
        network = nnUNetTrainer.build_network_architecture(
            manager, manager.get_configuration(configuration), inputs, heads, enable_deep_supervision=False
        )
        for layer in network.decoder.seg_layers:  # else one label wins everywhere
            torch.nn.init.normal_(layer.weight, std=3)
            torch.nn.init.zeros_(layer.bias)
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": configuration},
            "inference_allowed_mirroring_axes": tuple(range(dimensions)),
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_fm_model(root: Path, planner: str, shape: Sequence[int], spacing: Sequence[float]) -> Path:
    """The folder of a 2D model of ours, planned for images of one channel, such a shape (z, y, x) and spacing in mm."""
    with pytest.MonkeyPatch.context() as patch:
        folders = nnunet_folders(root, patch)
        raw = write_dataset(folders["nnUNet_raw"], 720, cases=2, test_cases=0, shape=(4, 4, 4))
        write_fingerprint(raw, [shape] * 2, [spacing] * 2)
        plans = planner_class(planner)(720, 40).plan_experiment()
    folder = root / "model"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_bytes((raw / "dataset.json").read_bytes())
    manager = PlansManager(plans)
    torch.manual_seed(0)
    network = fm_trainer_scratch.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3, False)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "fm_trainer_scratch",
        "init_args": {"configuration": "2d"},
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder
