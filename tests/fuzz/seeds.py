"""Small sound files of every kind, which tests change and fuzzers start from."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk
import torch

from nnunet_fm.models.card import Recipe

UNET: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {"n_stages": 2, "conv_op": "torch.nn.modules.conv.Conv3d", "nonlin": "torch.nn.LeakyReLU"},
    "_kw_requires_import": ["conv_op", "nonlin"],
}
PLAN_KEY: dict[str, Any] = {
    "version": 1,
    "model": "stunet_s",
    "recipe": Recipe().model_dump(),
    "iterations": 10,
    "eval_datasets": ["Dataset002_B"],
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_A",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "experiment_planner_used": "ExperimentPlanner",
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "normalization_schemes": ["CTNormalization"],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "patch_size": [16, 16, 16],
            "architecture": UNET,
        },
        "cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"},
    },
    "nnunet_fm": PLAN_KEY,
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
    "file_ending": ".nii.gz",
    "slice_axis": "y",
}


def _torch(content: Any, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _checkpoint() -> dict[str, Any]:
    return {
        "network_weights": {"layer.weight": torch.zeros(2, 3), "layer.bias": torch.ones(2)},
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres", "device": torch.device("cpu")},
        "_best_ema": np.float64(0.5),
        "random": np.random.RandomState(0).get_state(),
    }


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def tarred(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def written(name: str, write: Callable[[Path], object]) -> bytes:
    """What a library writes into a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path)
        return path.read_bytes()


def hdf5_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("images", "labels"):
            file.create_dataset(name, data=np.zeros((3, 4, 4), np.uint8), compression="gzip", track_times=False)
        file["nz"], file["pz"], file["patnames"] = [1, 2], [1.0, 2.0], np.array([b"a", b"b"])


def _image(dimensions: int) -> sitk.Image:
    return sitk.GetImageFromArray(np.arange(4**dimensions, dtype=np.uint8).reshape((4,) * dimensions) % 3)


def _images() -> tuple[bytes, ...]:
    names = {"a.nii": 3, "a.nii.gz": 3, "a.nrrd": 3, "a.mha": 3, "a.png": 2, "a.tif": 2, "a.gipl": 3}
    return tuple(
        written(name, lambda path, d=dimensions: sitk.WriteImage(_image(d), str(path)))  # type: ignore[misc]
        for name, dimensions in names.items()
    )


@cache
def seeds(reader: str) -> tuple[bytes, ...]:
    """Sound files of the kind that a reader of `readers.READERS` takes."""
    cards = resources.files("nnunet_fm.plans.cards")
    checkpoint = _torch(_checkpoint())
    known: dict[str, Callable[[], tuple[bytes, ...]]] = {
        "plans": lambda: (json.dumps(PLANS).encode(),),
        "plan_key": lambda: (json.dumps(PLAN_KEY).encode(),),
        "names": lambda: (b"fm_trainer_sam_b_hqhsam_rein", b"FMPlanner_stunet_s_official"),
        "card": lambda: ((cards / "swinmm.yaml").read_bytes(), (cards / "vanilla_unet2d.yaml").read_bytes()),
        "study": lambda: (resources.files("nnunet_fm.studies").joinpath("example.yaml").read_bytes(),),
        "dataset_json": lambda: (json.dumps(DATASET).encode(),),
        "weights": lambda: (checkpoint, _torch({"a": torch.ones(2)}, legacy=True), zipped(("model.pth", checkpoint))),
        "archive": lambda: (
            zipped(("a/b.txt", b"b"), ("c.zip", zipped(("d", b"d")))),
            tarred(("./a", b"a"), ("b.zip", zipped(("c", b"c")))),
        ),
        "hdf5": lambda: (written("a.hdf5", hdf5_file),),
        "images": _images,
        "tables": lambda: (
            b'{"train": ["a"], "test": ["b"]}',
            b'[{"train": ["a"], "val": ["b"]}]',
            b"a_1,train\nb,test\n",
            b"case,class,size_group,metric,value\na,one,<1 %,Dice,0.5\n",
            b'{"a_1": "masks/a.nii.gz"}',
            b'{"processor": "p", "device": "cpu", "threads": 1, "cases": {}}',
        ),
    }
    return known[reader]()
